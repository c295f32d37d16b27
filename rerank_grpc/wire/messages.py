"""The values of types.py ↔ protobuf messages: `…_to` writes a message, `…_from` reads one."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf import wrappers_pb2
from google.protobuf.duration_pb2 import Duration

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.types import (
    CalibrationInfo,
    Document,
    Health,
    ModelInfo,
    Priority,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Scoring,
    Span,
    State,
    Truncation,
    Usage,
)
from rerank_grpc.v1 import rerank_pb2 as pb

UINT32_MAX = 2**32 - 1

_Member = TypeVar("_Member", bound=enum.Enum)
_Request = TypeVar("_Request", pb.RerankRequest, pb.StreamRerankRequest)


def _tables(
    prefix: str, kind: type[_Member], unspecified: _Member | None = None
) -> tuple[dict[int, _Member], dict[_Member | None, Any]]:
    """Maps the contract's numbers to an enum's members and back; their names differ by a prefix."""
    members = {getattr(pb, f"{prefix}_{member.name}"): member for member in kind}
    if unspecified is not None:
        members[0] = unspecified
    return members, {member: number for number, member in members.items()}


# A default is written as UNSPECIFIED: a message holds only the options that differ from the contract's.
TRUNCATIONS, TRUNCATION_NUMBERS = _tables("TRUNCATION", Truncation, Truncation.END)
PRIORITIES, PRIORITY_NUMBERS = _tables("PRIORITY", Priority, Priority.INTERACTIVE)
STATES, STATE_NUMBERS = _tables("MODEL_STATE", State)
SCORINGS, SCORING_NUMBERS = _tables("SCORING", Scoring)


def request_to(kind: type[_Request], request: RerankRequest) -> _Request:
    """Writes a request; raises InvalidRequest for a count or a text that no message can hold."""
    for field in ("top_n", "max_tokens_per_document", "max_chunks_per_document"):
        value = getattr(request, field)
        if not 0 <= value <= UINT32_MAX:
            raise InvalidRequest.of(field, f"0 to {UINT32_MAX}, not {value}")
    chunks = request.max_chunks_per_document
    try:
        return kind(
            model=request.model,
            query=request.query,
            # A dict for each document costs a third of a message for each.
            documents=[{"text": document.text, "id": document.id} for document in request.documents],
            top_n=request.top_n,
            return_documents=request.return_documents,
            min_relevance_score=request.min_relevance_score,
            min_calibrated_score=request.min_calibrated_score,
            instruction=request.instruction,
            max_tokens_per_document=request.max_tokens_per_document,
            truncation=TRUNCATION_NUMBERS[request.truncation],
            max_chunks_per_document=0 if chunks == 1 else chunks,
            priority=PRIORITY_NUMBERS[request.priority],
            ignore_unsupported_options=request.ignore_unsupported_options,
        )
    except UnicodeEncodeError:
        pass
    for field, text in _texts(request):
        check_text(field, text)
    raise AssertionError("one of the texts has a lone surrogate")


def request_from(message: pb.RerankRequest | pb.StreamRerankRequest) -> RerankRequest:
    """Reads a request; raises InvalidRequest for an unknown enum value."""
    if message.truncation not in TRUNCATIONS:
        raise InvalidRequest.of("truncation", f"{message.truncation} is not a Truncation")
    if message.priority not in PRIORITIES:
        raise InvalidRequest.of("priority", f"{message.priority} is not a Priority")
    bounded, calibrated = message.HasField("min_relevance_score"), message.HasField("min_calibrated_score")
    return RerankRequest(
        query=message.query,
        documents=[Document(document.text, document.id) for document in message.documents],
        model=message.model,
        top_n=message.top_n,
        return_documents=message.return_documents,
        min_relevance_score=message.min_relevance_score if bounded else None,
        instruction=message.instruction,
        max_tokens_per_document=message.max_tokens_per_document,
        truncation=TRUNCATIONS[message.truncation],
        max_chunks_per_document=message.max_chunks_per_document or 1,
        priority=PRIORITIES[message.priority],
        ignore_unsupported_options=message.ignore_unsupported_options,
        min_calibrated_score=message.min_calibrated_score if calibrated else None,
    )


def _texts(request: RerankRequest) -> Iterator[tuple[str, str]]:
    yield "model", request.model
    yield "query", request.query
    for index, document in enumerate(request.documents):
        yield f"documents[{index}].text", document.text
        yield f"documents[{index}].id", document.id
    yield "instruction", request.instruction


def check_text(field: str, text: str) -> None:
    """Raises InvalidRequest for a text that UTF-8 cannot hold."""
    try:
        text.encode()
        return
    except UnicodeEncodeError as error:
        start = error.start
    # Outside the handler: the codec's error holds the whole text, and must not become a context.
    raise InvalidRequest.of(field, f"a lone surrogate at character {start}")


def response_to(response: RerankResponse) -> pb.RerankResponse:
    """Writes a response."""
    return pb.RerankResponse(results=map(_result_to, response.results), **_facts_of(response.summary))


def response_from(message: pb.RerankResponse) -> RerankResponse:
    """Reads a response."""
    return RerankResponse(tuple(map(result_from, message.results)), summary_from(message))


def part_to(part: list[ScoredDocument] | RerankSummary) -> pb.StreamRerankResponse:
    """Writes a message of a stream: results, or the summary."""
    if isinstance(part, RerankSummary):
        return pb.StreamRerankResponse(summary=_facts_of(part))
    return pb.StreamRerankResponse(results=map(_result_to, part))


def _result_to(result: ScoredDocument) -> dict[str, object]:
    """Writes a result as a dict, which costs a third of a message."""
    index, score, logit, id_, document, tokens, truncated, span, calibrated = result
    fields: dict[str, object] = {"index": index, "relevance_score": score, "logit": logit, "tokens": tokens}
    if id_:
        fields["id"] = id_
    if truncated:
        fields["truncated"] = True
    if document is not None:
        fields["document"] = document._asdict()
    if span is not None:
        fields["best_chunk"] = span._asdict()
    if calibrated is not None:
        fields["calibrated_score"] = calibrated
    return fields


def result_from(message: pb.RerankResult) -> ScoredDocument:
    """Reads one result."""
    document, span = message.document, message.best_chunk
    return ScoredDocument(
        index=message.index,
        relevance_score=message.relevance_score,
        logit=message.logit,
        id=message.id,
        document=Document(document.text, document.id) if message.HasField("document") else None,
        tokens=message.tokens,
        truncated=message.truncated,
        best_chunk=Span(span.start, span.end) if message.HasField("best_chunk") else None,
        calibrated_score=message.calibrated_score if message.HasField("calibrated_score") else None,
    )


def _facts_of(summary: RerankSummary) -> dict[str, Any]:
    """Returns the fields that RerankResponse and RerankSummary share."""
    usage = summary.usage
    return summary._asdict() | {
        "usage": pb.Usage(
            input_tokens=usage.input_tokens,
            cached_pairs=usage.cached_pairs,
            tokenization_duration=duration_to(usage.tokenization_seconds),
            queue_duration=duration_to(usage.queue_seconds),
            inference_duration=duration_to(usage.inference_seconds),
        )
    }


def summary_from(message: pb.RerankResponse | pb.RerankSummary) -> RerankSummary:
    """Reads a summary; both messages name these fields alike."""
    usage = Usage(
        input_tokens=message.usage.input_tokens,
        cached_pairs=message.usage.cached_pairs,
        tokenization_seconds=duration_from(message.usage.tokenization_duration),
        queue_seconds=duration_from(message.usage.queue_duration),
        inference_seconds=duration_from(message.usage.inference_duration),
    )
    return RerankSummary(message.model, message.model_revision, usage, message.query_truncated)


def duration_to(seconds: float) -> Duration:
    """Writes a duration that is not negative, to the nanosecond."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def duration_from(message: Duration) -> float:
    """Reads a duration, in seconds."""
    return message.seconds + message.nanos / 1e9


# Fields of one name and one form on both sides.
_MODEL_FIELDS = {each.name for each in fields(ModelInfo)} - {
    *("aliases", "state", "scoring", "serving", "calibration")
}
_CALIBRATION_FIELDS = {each.name for each in fields(CalibrationInfo)} - {"truncation"}
_HEALTH_FIELDS = {each.name for each in fields(Health)} - {"state", "uptime_seconds", "serving"}


def _copied(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def model_to(info: ModelInfo) -> pb.Model:
    """Writes a model's description."""
    return pb.Model(
        aliases=info.aliases,
        state=STATE_NUMBERS[info.state],
        scoring=SCORING_NUMBERS.get(info.scoring),
        serving=info.serving,
        calibration=_calibration_to(info.calibration) if info.calibration else None,
        **_copied(info, _MODEL_FIELDS),
    )


def model_from(message: pb.Model) -> ModelInfo:
    """Reads a model's description."""
    return ModelInfo(
        aliases=tuple(message.aliases),
        scoring=SCORINGS.get(message.scoring),
        calibration=_calibration_from(message.calibration) if message.HasField("calibration") else None,
        **_state_from(message),
        **_copied(message, _MODEL_FIELDS),
    )


def _calibration_to(info: CalibrationInfo) -> pb.Calibration:
    copied = _copied(info, _CALIBRATION_FIELDS)
    return pb.Calibration(truncation=TRUNCATION_NUMBERS[info.truncation], **copied)


def _calibration_from(message: pb.Calibration) -> CalibrationInfo:
    truncation = TRUNCATIONS.get(message.truncation, Truncation.END)
    return CalibrationInfo(truncation=truncation, **_copied(message, _CALIBRATION_FIELDS))


def models_from(message: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    """Reads the configured models."""
    return tuple(map(model_from, message.models))


def health_request(model: str) -> pb.HealthRequest:
    """Writes a request of Health; "" is the default model."""
    check_text("model", model)
    return pb.HealthRequest(model=model)


def health_to(health: Health) -> pb.HealthResponse:
    """Writes a model's health."""
    return pb.HealthResponse(
        state=STATE_NUMBERS[health.state],
        uptime=duration_to(health.uptime_seconds),
        serving=health.serving,
        **_copied(health, _HEALTH_FIELDS),
    )


def health_from(message: pb.HealthResponse) -> Health:
    """Reads a model's health."""
    return Health(
        uptime_seconds=duration_from(message.uptime),
        **_state_from(message),
        **_copied(message, _HEALTH_FIELDS),
    )


def _state_from(message: pb.Model | pb.HealthResponse) -> dict[str, Any]:
    # A newer server's state is at least not READY; a server older than `serving` tells it by the state.
    state = STATES.get(message.state, State.UNLOADED)
    return {"state": state, "serving": message.serving or state is State.READY}


# grpc.health.v1.Health/Check without its package, which only servers install: a message with one
# field of the same number and kind has the same bytes.
CHECK_METHOD = "/grpc.health.v1.Health/Check"
CheckRequest = wrappers_pb2.StringValue  # service = 1
CheckResponse = wrappers_pb2.Int32Value  # status = 1


def check_request(service: str) -> wrappers_pb2.StringValue:
    """Writes a request of grpc.health.v1.Health/Check; "" is the server as a whole."""
    check_text("service", service)
    return CheckRequest(value=service)


def is_serving(message: wrappers_pb2.Int32Value) -> bool:
    """Reads the reply of grpc.health.v1.Health/Check."""
    return message.value == 1  # SERVING
