"""From arguments to request messages, and from reply messages to values; no I/O.

Only what a message cannot hold is refused here; the limits are the server's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import TypedDict, TypeVar

from google.protobuf import duration_pb2, wrappers_pb2

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.types import (
    Document,
    Health,
    ModelInfo,
    Priority,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Scoring,
    Span,
    State,
    Truncation,
    Usage,
)
from rerank_grpc.v1 import rerank_pb2

DocumentLike = str | Document | Mapping[str, str]

_UINT32_MAX = 2**32 - 1
_Request = TypeVar("_Request", rerank_pb2.RerankRequest, rerank_pb2.StreamRerankRequest)


class RerankOptions(TypedDict, total=False):
    """The options of `rerank` and `stream_rerank`; one left out or None is the proto's default."""

    return_documents: bool
    min_relevance_score: float | None
    instruction: str | None
    max_tokens_per_document: int | None
    truncation: Truncation | str | None
    max_chunks_per_document: int | None
    priority: Priority | str | None


def rerank_request(
    kind: type[_Request],
    query: str,
    documents: Iterable[DocumentLike],
    model: str | None = None,
    top_n: int | None = None,
    *,
    return_documents: bool = False,
    min_relevance_score: float | None = None,
    instruction: str | None = None,
    max_tokens_per_document: int | None = None,
    truncation: Truncation | str | None = None,
    max_chunks_per_document: int | None = None,
    priority: Priority | str | None = None,
) -> _Request:
    """Builds a request; raises TypeError for a wrong type, InvalidRequest for a wrong value."""
    return kind(
        model=_text("model", model or ""),
        query=_text("query", query),
        documents=_documents(documents),
        top_n=_count("top_n", top_n),
        return_documents=bool(return_documents),
        min_relevance_score=_number("min_relevance_score", min_relevance_score),
        instruction=_text("instruction", instruction or ""),
        max_tokens_per_document=_count("max_tokens_per_document", max_tokens_per_document),
        truncation=_choice("truncation", Truncation, truncation),
        max_chunks_per_document=_count("max_chunks_per_document", max_chunks_per_document),
        priority=_choice("priority", Priority, priority),
    )


def health_request(model: str | None) -> rerank_pb2.HealthRequest:
    """Builds a Health request."""
    return rerank_pb2.HealthRequest(model=_text("model", model or ""))


# grpc.health.v1.Health/Check without its package, which only servers have: a message with one
# field of the same number and kind has the same bytes.
CHECK_METHOD = "/grpc.health.v1.Health/Check"
CheckRequest = wrappers_pb2.StringValue  # service = 1
CheckResponse = wrappers_pb2.Int32Value  # status = 1
_SERVING = 1


def check_request(service: str) -> wrappers_pb2.StringValue:
    """Builds a request of grpc.health.v1.Health/Check; "" asks for the server as a whole."""
    return CheckRequest(value=_text("service", service))


def is_serving(reply: wrappers_pb2.Int32Value) -> bool:
    """Reads its reply."""
    return reply.value == _SERVING


def rerank_response(reply: rerank_pb2.RerankResponse) -> RerankResponse:
    """Reads the reply of Rerank."""
    return RerankResponse(tuple(scored_document(result) for result in reply.results), summary(reply))


def scored_document(result: rerank_pb2.RerankResult) -> ScoredDocument:
    """Reads one result."""
    return ScoredDocument(
        index=result.index,
        relevance_score=result.relevance_score,
        logit=result.logit,
        id=result.id,
        document=(
            Document(result.document.text, result.document.id) if result.HasField("document") else None
        ),
        tokens=result.tokens,
        truncated=result.truncated,
        best_chunk=(
            Span(result.best_chunk.start, result.best_chunk.end) if result.HasField("best_chunk") else None
        ),
    )


def summary(reply: rerank_pb2.RerankResponse | rerank_pb2.RerankSummary) -> RerankSummary:
    """Reads what is said once about a call; both messages name these fields alike."""
    usage = reply.usage
    return RerankSummary(
        model=reply.model,
        model_revision=reply.model_revision,
        usage=Usage(
            input_tokens=usage.input_tokens,
            cached_pairs=usage.cached_pairs,
            tokenization_seconds=_seconds(usage.tokenization_duration),
            queue_seconds=_seconds(usage.queue_duration),
            inference_seconds=_seconds(usage.inference_duration),
        ),
        query_truncated=reply.query_truncated,
    )


def model_info(model: rerank_pb2.Model) -> ModelInfo:
    """Reads one configured model."""
    return ModelInfo(
        name=model.name,
        state=_state(model.state),
        aliases=tuple(model.aliases),
        state_message=model.state_message,
        is_default=model.is_default,
        revision=model.revision,
        family=model.family,
        device=model.device,
        precision=model.precision,
        attention=model.attention,
        max_tokens=model.max_tokens,
        max_batch_tokens=model.max_batch_tokens,
        scoring=_SCORINGS.get(model.scoring),
        accepts_instruction=model.accepts_instruction,
        local_available=model.local_available,
        memory_bytes=model.memory_bytes,
        pinned=model.pinned,
    )


def health(reply: rerank_pb2.HealthResponse) -> Health:
    """Reads the reply of Health."""
    return Health(
        model=reply.model,
        state=_state(reply.state),
        version=reply.version,
        uptime_seconds=_seconds(reply.uptime),
        queue_tokens=reply.queue_tokens,
        queue_capacity_tokens=reply.queue_capacity_tokens,
        tokens_per_second=reply.tokens_per_second,
        serving=_state(reply.state) is State.READY,
    )


_STATES: Mapping[int, State] = {
    rerank_pb2.ModelState.Value(f"MODEL_STATE_{state.name}"): state for state in State
}
_SCORINGS: Mapping[int, Scoring] = {
    rerank_pb2.Scoring.Value(f"SCORING_{scoring.name}"): scoring for scoring in Scoring
}


def _state(number: int) -> State:
    # A newer server's state is at least not READY, which is all that callers act on.
    return _STATES.get(number, State.UNLOADED)


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{field}: a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # No chaining: the codec's error holds the whole text.
        raise InvalidRequest.of(field, f"a lone surrogate at character {error.start}") from None
    return value


def _count(field: str, value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field}: an int, not {type(value).__name__}")
    if not 0 <= value <= _UINT32_MAX:
        raise InvalidRequest.of(field, f"0 to {_UINT32_MAX}, not {value}")
    return value


def _number(field: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{field}: a float, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequest.of(field, "too large for a float") from None


def _choice(field: str, kind: type[enum.Enum], value: object) -> str | None:
    """Takes a member of `kind` or its name in lower case; None leaves the field unset."""
    if value is None:
        return None
    if not isinstance(value, kind | str):
        raise TypeError(f"{field}: a {kind.__name__} or its name, not {type(value).__name__}")
    names = [member.name.lower() for member in kind]
    name = value.name.lower() if isinstance(value, enum.Enum) else value
    if name not in names:
        raise InvalidRequest.of(field, f"one of {', '.join(names)}")
    return f"{field}_{name}".upper()


def _documents(documents: object) -> list[rerank_pb2.Document]:
    if isinstance(documents, str | bytes | Mapping | Document) or not isinstance(documents, Iterable):
        raise TypeError(f"documents: a sequence of documents, not one {type(documents).__name__}")
    return [_document(f"documents[{index}]", document) for index, document in enumerate(documents)]


def _document(field: str, document: object) -> rerank_pb2.Document:
    if isinstance(document, str):
        return rerank_pb2.Document(text=_text(f"{field}.text", document))
    if isinstance(document, Document):
        return rerank_pb2.Document(
            text=_text(f"{field}.text", document.text), id=_text(f"{field}.id", document.id)
        )
    if not isinstance(document, Mapping):
        raise TypeError(
            f'{field}: a str, a Document or a mapping with "text" and maybe "id", '
            f"not {type(document).__name__}"
        )
    if "text" not in document:
        raise InvalidRequest.of(field, 'a mapping needs "text"')
    if unknown := document.keys() - {"text", "id"}:
        raise InvalidRequest.of(field, f"unknown key {min(map(repr, unknown))}")
    return rerank_pb2.Document(
        text=_text(f"{field}.text", document["text"]), id=_text(f"{field}.id", document.get("id", ""))
    )
