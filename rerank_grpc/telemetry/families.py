"""The families of metrics: one table, of which the metrics are made and docs/metrics.md is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from rerank_grpc.errors import Reason
from rerank_grpc.telemetry.records import LOOKS, PROTOCOLS, STAGES
from rerank_grpc.telemetry.spans import RPC_METHODS
from rerank_grpc.types import State

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)

# The value that a text of a caller's own becomes: no caller can make a series.
OTHER = "other"

# From half a millisecond, a short pair on a GPU, to two minutes, the longest deadline but for batches.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = tuple(1 << power for power in range(4, 18))  # to the largest budget of a batch, 131,072
# A pair larger than the budget goes alone, and lies above 1.
FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric with its labels; `buckets`, their upper ends, are a histogram's."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str  # a sentence, for the scrape and the docs
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Makes the family's counter."""
        return Counter(self.name, self.meaning, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Makes the family's histogram."""
        return Histogram(self.name, self.meaning, self.labels, registry=registry, buckets=self.buckets)


class Children(dict[tuple[str, ...], MetricT]):
    """The series of one metric by the values of its labels, each made when it is first asked for.

    Any thread may ask: two that ask at once get the same one.
    """

    def __init__(self, metric: MetricT) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> MetricT:
        child = self[values] = self._metric.labels(*values)
        return child


CALLS = MetricFamily(
    "rerank_calls_total",
    "counter",
    "Calls that have ended, refused ones too, but for those of gRPC methods that nobody has; one that gRPC "
    "refuses for its size counts as cancelled.",
    ("method", "protocol", "dialect", "model", "code", "reason", "caller"),
    "calls",
)
CALL_SECONDS = MetricFamily(
    "rerank_call_duration_seconds",
    "histogram",
    "Time from a call's request being there to its answer; of a stream, to its last part. "
    "grpc_server_call_duration_seconds has the wait for a thread and for the request as well.",
    ("method", "protocol", "model"),
    "seconds",
    SECONDS,
)
STAGE_SECONDS = MetricFamily(
    "rerank_stage_duration_seconds",
    "histogram",
    "Time that requests have spent in each stage that they came through.",
    ("stage", "model"),
    "seconds",
    SECONDS,
)
DOCUMENTS = MetricFamily(
    "rerank_documents_total",
    "counter",
    "Documents of requests that reached the queue.",
    ("model", "caller"),
    "documents",
)
PAIRS = MetricFamily(
    "rerank_pairs_total",
    "counter",
    "Pairs of a query and a document that reached the queue. Each chunk of a long document is one; of a "
    "model that reads them apart, each query and each document is.",
    ("model",),
    "pairs",
)
REQUEST_TOKENS = MetricFamily(
    "rerank_tokens_total",
    "counter",
    "Tokens of the pairs that reached the queue, those of shared pairs included.",
    ("model", "caller"),
    "tokens",
)
TRUNCATED = MetricFamily(
    "rerank_truncated_documents_total",
    "counter",
    "Documents of which a part was cut off, because they were too long.",
    ("model",),
    "documents",
)
SHARED = MetricFamily(
    "rerank_shared_pairs_total",
    "counter",
    "Pairs that cost the device nothing, because an equal one was on its way.",
    ("model",),
    "pairs",
)
QUEUE_TOKENS = MetricFamily(
    "rerank_queue_tokens", "gauge", "Tokens that wait for the device.", ("model",), "tokens"
)
QUEUE_SECONDS = MetricFamily(
    "rerank_queue_seconds",
    "gauge",
    "Time that the device needs, alone with this model, for the tokens that wait, at the measured rate; 0 "
    "where nothing waits or no rate is known. Scale by it: the sum of a server's models against 1 s.",
    ("model",),
    "seconds",
)
QUEUE_CAPACITY = MetricFamily(
    "rerank_queue_capacity_tokens",
    "gauge",
    "Tokens that may wait before calls are refused; 0 while the model is not in memory.",
    ("model",),
    "tokens",
)
QUEUE_OLDEST = MetricFamily(
    "rerank_queue_oldest_seconds",
    "gauge",
    "Age of the oldest call of which something waits for the device; 0 where nothing waits.",
    ("model",),
    "seconds",
)
CALLS_INSIDE = MetricFamily(
    "rerank_calls_inside", "gauge", "Calls that hold the model now, in whichever stage.", ("model",), "calls"
)
BATCH_TOKENS = MetricFamily(
    "rerank_batch_tokens", "histogram", "Tokens of a batch.", ("model",), "tokens", TOKENS
)
BATCH_FILL = MetricFamily(
    "rerank_batch_fill_ratio",
    "histogram",
    "Tokens of a batch, of those that it could have had; above 1 where one pair is larger than a batch.",
    ("model",),
    "ratio",
    FILL,
)
BATCH_SECONDS = MetricFamily(
    "rerank_batch_duration_seconds",
    "histogram",
    "Time from a batch's launch, or the end of the one before it, to its outputs.",
    ("model",),
    "seconds",
    SECONDS,
)
DEVICE_BUSY = MetricFamily(
    "rerank_device_busy_seconds_total",
    "counter",
    "Time that the device has worked for the model; that of its warm-up comes when the model is ready. Of "
    "time that models share each has its part, so that the sum grows by one second a second at most.",
    ("model",),
    "seconds",
)
REFUSALS = MetricFamily(
    "rerank_refusals_total",
    "counter",
    "Calls that were refused though nothing in them was wrong, or for want of the right to call; with "
    "`rate_limited` those of a caller above its own rate.",
    ("reason", "caller"),
    "calls",
)
MODEL_STATE = MetricFamily(
    "rerank_model_state",
    "gauge",
    "1 for the state that the model is in, 0 for the others.",
    ("model", "state"),
)
MODEL_LOAD_SECONDS = MetricFamily(
    "rerank_model_load_duration_seconds",
    "gauge",
    "Time that the model's last load took; there is none before the first.",
    ("model",),
    "seconds",
)
MODEL_MEMORY = MetricFamily(
    "rerank_model_memory_bytes",
    "gauge",
    "Memory that the model takes; 0 while it is not in memory.",
    ("model",),
    "bytes",
)
MODEL_LAST_USED = MetricFamily(
    "rerank_model_last_used_timestamp_seconds",
    "gauge",
    "Unix time at which a call last took or returned the model, or its load ended; there is none before.",
    ("model",),
    "seconds since 1970",
)
MODEL_EVICTIONS = MetricFamily(
    "rerank_model_evictions_total",
    "counter",
    "Times that the model left memory because another needed the room, or because it was idle.",
    ("model",),
    "evictions",
)
AUTHENTICATION_FAILURES = MetricFamily(
    "rerank_authentication_failures_total",
    "counter",
    "Calls without a token that is accepted.",
    ("protocol",),
    "calls",
)
DEVICE_MEMORY_USED = MetricFamily(
    "rerank_device_memory_used_bytes",
    "gauge",
    "Memory of a GPU, or of the machine for cpu, that all processes together use.",
    ("device",),
    "bytes",
)
DEVICE_MEMORY_FREE = MetricFamily(
    "rerank_device_memory_free_bytes",
    "gauge",
    "Memory of a GPU, or of the machine for cpu, that any process can still have.",
    ("device",),
    "bytes",
)
CERTIFICATE_EXPIRY = MetricFamily(
    "rerank_tls_certificate_expiry_timestamp_seconds",
    "gauge",
    "Unix time at which the certificate in force ends; there is none without TLS.",
    (),
    "seconds since 1970",
)
CERTIFICATE_RELOADS = MetricFamily(
    "rerank_tls_reloads_total",
    "counter",
    "Changes of the certificate's files since the start: taken, or refused, when the last good certificate "
    "stays in force.",
    ("outcome",),
    "changes",
)
LOG_DROPPED = MetricFamily(
    "rerank_log_dropped_lines_total",
    "counter",
    "Lines of the log that were dropped because nobody took them in time.",
    (),
    "lines",
)
BUILD_INFO = MetricFamily(
    "rerank_build_info",
    "gauge",
    "1; its labels tell the release, and torch, device and precision of the default model once that has "
    "been loaded.",
    ("version", "torch", "device", "precision"),
)

FAMILIES: Sequence[MetricFamily] = (
    CALLS,
    CALL_SECONDS,
    STAGE_SECONDS,
    DOCUMENTS,
    PAIRS,
    REQUEST_TOKENS,
    TRUNCATED,
    SHARED,
    QUEUE_TOKENS,
    QUEUE_SECONDS,
    QUEUE_CAPACITY,
    QUEUE_OLDEST,
    CALLS_INSIDE,
    BATCH_TOKENS,
    BATCH_FILL,
    BATCH_SECONDS,
    DEVICE_BUSY,
    REFUSALS,
    MODEL_STATE,
    MODEL_LOAD_SECONDS,
    MODEL_MEMORY,
    MODEL_LAST_USED,
    MODEL_EVICTIONS,
    AUTHENTICATION_FAILURES,
    DEVICE_MEMORY_USED,
    DEVICE_MEMORY_FREE,
    CERTIFICATE_EXPIRY,
    CERTIFICATE_RELOADS,
    LOG_DROPPED,
    BUILD_INFO,
)

# Of grpc.StatusCode.
CODES = frozenset(
    (
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    )
)
REASONS: Mapping[Reason, str] = {reason: reason.name.lower() for reason in Reason}
# The reasons that count as refusals: a later call may succeed, or needs a token.
REFUSED = frozenset(
    (
        Reason.QUEUE_FULL,
        Reason.DEADLINE_UNREACHABLE,
        Reason.MODEL_LOADING,
        Reason.MODEL_FAILED,
        Reason.SHUTTING_DOWN,
        Reason.RATE_LIMITED,
        Reason.UNAUTHENTICATED,
        Reason.PERMISSION_DENIED,
    )
)
GRPC_METHODS = (*LOOKS, *RPC_METHODS)
REST_METHODS: tuple[str, ...] = ("rerank", "health", "live", "ready", "models", "info")
METHODS = frozenset((*GRPC_METHODS, *REST_METHODS))
DIALECTS = frozenset(
    (
        "batch",
        "connect",
        "dashscope",
        "deepinfra",
        "fastgpt",
        "huggingface",
        "infinity",
        "mixedbread",
        "nim",
        "ollama",
        "openrouter",
        "pinecone",
        "sglang",
        "superset",
        "tei",
        "tei-predict",
        "text-pairs",
        "vllm-score",
        "voyage",
        "weaviate",
    )
)

# The values of each label but those that the configuration and the machine bound.
VALUES: Mapping[str, frozenset[str]] = {
    "method": METHODS | {OTHER},
    "protocol": frozenset(PROTOCOLS),
    "dialect": DIALECTS | {"", OTHER},
    "code": CODES | {OTHER},
    "reason": frozenset(REASONS.values()) | {""},
    "stage": frozenset(STAGES),
    "state": frozenset(state.value for state in State),
    "outcome": frozenset(("taken", "refused")),
}
