"""Proto messages ↔ the values of types.py; no decisions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import Limits, check_document_count
from rerank_grpc.types import (
    Document,
    Health,
    ModelInfo,
    Priority,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Scoring,
    State,
    Truncation,
    Usage,
)
from rerank_grpc.v1 import rerank_pb2 as pb

TRUNCATIONS = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.END,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
    pb.TRUNCATION_NONE: Truncation.NONE,
}
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BATCH: Priority.BATCH,
}
STATES = {
    State.UNLOADED: pb.MODEL_STATE_UNLOADED,
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.READY: pb.MODEL_STATE_READY,
    State.UNLOADING: pb.MODEL_STATE_UNLOADING,
    State.FAILED: pb.MODEL_STATE_FAILED,
}
SCORINGS = {
    None: pb.SCORING_UNSPECIFIED,
    Scoring.SIGMOID: pb.SCORING_SIGMOID,
    Scoring.COSINE: pb.SCORING_COSINE,
    Scoring.SOFTMAX: pb.SCORING_SOFTMAX,
}


def request_from(message: pb.RerankRequest | pb.StreamRerankRequest, limits: Limits) -> RerankRequest:
    """Reads a request; raises InvalidRequest for too many documents or an unknown enum value."""
    check_document_count(len(message.documents), limits)
    if message.truncation not in TRUNCATIONS:
        raise InvalidRequest.of("truncation", f"{message.truncation} is not a Truncation")
    if message.priority not in PRIORITIES:
        raise InvalidRequest.of("priority", f"{message.priority} is not a Priority")
    bounded = message.HasField("min_relevance_score")
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
    )


def response_to(response: RerankResponse) -> pb.RerankResponse:
    """Writes a response."""
    summary = response.summary
    return pb.RerankResponse(
        results=results_to(response.results),
        model=summary.model,
        model_revision=summary.model_revision,
        usage=usage_to(summary.usage),
        query_truncated=summary.query_truncated,
    )


def summary_to(summary: RerankSummary) -> pb.RerankSummary:
    """Writes a stream's summary."""
    return pb.RerankSummary(
        model=summary.model,
        model_revision=summary.model_revision,
        usage=usage_to(summary.usage),
        query_truncated=summary.query_truncated,
    )


def results_to(results: Iterable[ScoredDocument]) -> list[dict[str, object]]:
    """Writes results, as what the messages that hold them are made of: each a message first costs thrice."""
    return [_result_to(result) for result in results]


def _result_to(result: ScoredDocument) -> dict[str, object]:
    index, score, logit, id_, document, tokens, truncated, span = result
    fields: dict[str, object] = {"index": index, "relevance_score": score, "logit": logit, "tokens": tokens}
    if id_:
        fields["id"] = id_
    if truncated:
        fields["truncated"] = True
    if document is not None:
        fields["document"] = document._asdict()
    if span is not None:
        fields["best_chunk"] = span._asdict()
    return fields


def usage_to(usage: Usage) -> pb.Usage:
    """Writes what a call cost."""
    return pb.Usage(
        input_tokens=usage.input_tokens,
        cached_pairs=usage.cached_pairs,
        tokenization_duration=duration_to(usage.tokenization_seconds),
        queue_duration=duration_to(usage.queue_seconds),
        inference_duration=duration_to(usage.inference_seconds),
    )


def duration_to(seconds: float) -> Duration:
    """Writes a duration that is not negative, to the nanosecond."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def model_to(info: ModelInfo) -> pb.Model:
    """Writes a model's description."""
    return pb.Model(
        name=info.name,
        aliases=info.aliases,
        state=STATES[info.state],
        state_message=info.state_message,
        is_default=info.is_default,
        revision=info.revision,
        family=info.family,
        device=info.device,
        precision=info.precision,
        attention=info.attention,
        max_tokens=info.max_tokens,
        max_batch_tokens=info.max_batch_tokens,
        scoring=SCORINGS[info.scoring],
        accepts_instruction=info.accepts_instruction,
        local_available=info.local_available,
        memory_bytes=info.memory_bytes,
        pinned=info.pinned,
        serving=info.serving,
    )


def health_to(health: Health) -> pb.HealthResponse:
    """Writes what Health says."""
    return pb.HealthResponse(
        model=health.model,
        state=STATES[health.state],
        version=health.version,
        uptime=duration_to(health.uptime_seconds),
        queue_tokens=health.queue_tokens,
        queue_capacity_tokens=health.queue_capacity_tokens,
        tokens_per_second=health.tokens_per_second,
        serving=health.serving,
    )
