"""The content of the spans of calls and batches: names, attributes and times, and no text of a caller.

`rpc.*`, `http.*`, `url.*`, `enduser.*` and `error.*` are those of OpenTelemetry's semantic conventions 1.44,
`gen_ai.*` those of its conventions for generative AI. These have no value for reranking yet, and allow one's
own: it is "rerank" here. Names that begin with `rerank.` are this service's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from rerank_grpc.errors import Reason
from rerank_grpc.telemetry.records import LOOKS, BatchRecord, CallRecord
from rerank_grpc.types import Timeline

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

ENDUSER_ID = "enduser.id"
ERROR_TYPE = "error.type"
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"
RPC_METHOD = "rpc.method"
RPC_RESPONSE_STATUS_CODE = "rpc.response.status_code"
RPC_SYSTEM_NAME = "rpc.system.name"
URL_SCHEME = "url.scheme"

# Full names by those of the records.
_METHODS = {
    "rerank.v1.RerankService": ("Rerank", "StreamRerank", "ListModels", "Health"),
    "rerank.v1.ModelAdminService": ("LoadModel", "UnloadModel"),
    "tei.v1.Rerank": ("tei.Rerank", "tei.RerankStream"),
    "tei.v1.Predict": ("tei.PredictPair", "tei.PredictPairStream"),
    "tei.v1.Info": ("tei.Info",),
    "inference.GRPCInferenceService": (
        "kserve.ServerLive",
        "kserve.ServerReady",
        "kserve.ModelReady",
        "kserve.ServerMetadata",
        "kserve.ModelMetadata",
        "kserve.ModelConfig",
        "kserve.ModelInfer",
    ),
}
RPC_METHODS = {
    method: f"{service}/{method.rpartition('.')[2]}"
    for service, methods in _METHODS.items()
    for method in methods
}
# Those that have a model score texts.
SCORING = frozenset(
    (
        "rerank",  # of REST
        "Rerank",
        "StreamRerank",
        "tei.Rerank",
        "tei.RerankStream",
        "tei.PredictPair",
        "tei.PredictPairStream",
        "kserve.ModelInfer",
    )
)

# The codes that are a server's failures by the conventions; the others are the caller's, or a refusal.
FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)

Attributes: TypeAlias = dict[str, str | int | float | bool]


def is_traced(record: CallRecord) -> bool:
    """Tells whether a call has spans.

    Those have none by which machines look how the service is, nor has a stranger's without a token.
    """
    looks = record.is_probe or record.method in LOOKS
    return not looks and record.reason is not Reason.UNAUTHENTICATED


def name_of(record: CallRecord) -> str:
    """Names a call's span: the full name of its method, or the method and route of HTTP."""
    if record.protocol == "rest":
        return record.route or "HTTP"
    return RPC_METHODS.get(record.method, "grpc")


def is_fault(record: CallRecord) -> bool:
    """Tells whether the server failed, and not the caller."""
    return record.status >= 500 if record.protocol == "rest" else record.code in FAULTS


def attributes_of(record: CallRecord) -> Attributes:
    """Tells a call that has ended."""
    attributes = _of_http(record) if record.protocol == "rest" else _of_rpc(record)
    if record.method in SCORING:
        attributes[GEN_AI_OPERATION_NAME] = "rerank"
        attributes[GEN_AI_PROVIDER_NAME] = "rerank-grpc"
    if record.caller.name:
        attributes[ENDUSER_ID] = record.caller.name
    if record.model:
        attributes[GEN_AI_REQUEST_MODEL] = record.model
    if record.summary is not None:
        attributes[GEN_AI_USAGE_INPUT_TOKENS] = record.summary.usage.input_tokens
    elif tokens := sum([timeline.tokens for timeline in record.timelines]):
        attributes[GEN_AI_USAGE_INPUT_TOKENS] = tokens
    if record.documents is not None:
        attributes["rerank.documents"] = record.documents
    if record.dialect:
        attributes["rerank.dialect"] = record.dialect
    if len(record.timelines) > 1:
        attributes["rerank.requests"] = len(record.timelines)
    if error := _error_of(record):
        attributes[ERROR_TYPE] = error
    return attributes


def _of_rpc(record: CallRecord) -> Attributes:
    return {
        RPC_SYSTEM_NAME: "grpc",
        RPC_METHOD: RPC_METHODS.get(record.method, "_OTHER"),
        RPC_RESPONSE_STATUS_CODE: record.code,
    }


def _of_http(record: CallRecord) -> Attributes:
    method, _, route = record.route.partition(" ")
    attributes: Attributes = {HTTP_REQUEST_METHOD: method or "_OTHER", URL_SCHEME: "http"}
    if route:
        attributes[HTTP_ROUTE] = route
    if record.status:
        attributes[HTTP_RESPONSE_STATUS_CODE] = record.status
    return attributes


def _error_of(record: CallRecord) -> str:
    """Names the error that a call ended with, "" where with none: a reason in lower case, else a code."""
    if record.reason is not None:
        return record.reason.name.lower()
    if record.protocol == "rest":
        return str(record.status) if record.status >= 400 else ""
    return "" if record.code == "OK" else record.code.lower()


class Stage(NamedTuple):
    """A part of a request's time, in seconds of time.monotonic; one that is `broken` was the call's last."""

    name: str
    start: float
    end: float
    broken: bool
    attributes: Attributes


# The counts of a timeline that concern a stage, known once the request is in the queue.
_COUNTS: dict[str, tuple[str, ...]] = {
    "tokenize": ("documents", "truncated_documents", "pairs", "tokens"),
    "queue": ("pairs", "tokens"),
    "inference": ("pairs", "shared_pairs", "tokens", "batches"),
    "answer": ("documents",),
}


def stages_of(record: CallRecord, most: int) -> Iterator[tuple[Stage, Sequence[object]]]:
    """Yields the stages of a call's first `most` requests, each with what the batch sink returned for it."""
    end, last = record.started + record.seconds, len(record.timelines) - 1
    for index, timeline in enumerate(record.timelines[:most]):
        for stage in _stages(record, timeline, end, is_last=index == last):
            yield stage, timeline.batches if stage.name == "inference" else ()


def _stages(record: CallRecord, timeline: Timeline, end: float, *, is_last: bool) -> Iterator[Stage]:
    """Yields the stages of one request up to that in which its call ended; `end` is the call's."""
    failed = record.reason is not None
    counts = _counts_of(timeline)

    def stage(name: str, until: float, *, broken: bool = False) -> Stage:
        own: Attributes = {f"rerank.{count}": counts[count] for count in _COUNTS.get(name, ()) if counts}
        return Stage(name, begin, until, broken, own)

    begin = timeline.entered
    reached = {
        "admission": timeline.admitted,
        "tokenize": timeline.tokenized,
        "queue": timeline.started,
        "inference": timeline.finished,
    }
    for name, moment in reached.items():
        if moment:
            # A sequence that joins an equal one on the device may have been started before it came.
            until = min(max(moment, begin), end)
            yield stage(name, until)
            begin = until
        elif failed:
            yield stage(name, end, broken=True)
            return
        # Else the request was answered without the device: nothing was to be scored.
    if is_last:
        yield stage("answer", end, broken=failed)


def _counts_of(timeline: Timeline) -> dict[str, int]:
    if not timeline.documents:
        return {}
    return {
        "documents": timeline.documents,
        "truncated_documents": timeline.truncated,
        "pairs": timeline.pairs,
        "tokens": timeline.tokens,
        "shared_pairs": timeline.shared,
        "batches": len(timeline.batches),
    }


def attributes_of_batch(record: BatchRecord) -> Attributes:
    """Tells a batch that the device has done."""
    return {
        GEN_AI_REQUEST_MODEL: record.model,
        "rerank.tokens": record.tokens,
        "rerank.sequences": record.sequences,
        "rerank.batch.budget_tokens": record.budget,
        "rerank.batch.fill_ratio": record.tokens / record.budget if record.budget else 0.0,
        "rerank.batch.device_seconds": record.busy_seconds,
    }
