"""The values that the layers hand to each other, without any wire format."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from rerank_grpc.callers import ANYONE, Caller
from rerank_grpc.errors import Cancelled, DeadlineExceeded


class Truncation(enum.Enum):
    """The end that is cut off a text too long for the model; NONE refuses it."""

    END = "end"
    START = "start"
    NONE = "none"


class Priority(enum.IntEnum):
    """The order of calls while the device is busy: the lower goes first."""

    INTERACTIVE = 0
    BATCH = 1


class State(enum.Enum):
    """A model's place on its way into memory and out of it."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


class Scoring(enum.Enum):
    """The function from a logit to a relevance_score."""

    SIGMOID = "sigmoid"
    COSINE = "cosine"
    SOFTMAX = "softmax"
    TANH = "tanh"
    MAXSIM = "maxsim"


# Values made for every call or document are named tuples: those cost a fourth of a frozen dataclass.


class Document(NamedTuple):
    """One text to be scored, with the caller's own id for it."""

    text: str
    id: str = ""


class RerankRequest(NamedTuple):
    """One query and its documents; defaults and limits are the proto's.

    `top_n` and `max_tokens_per_document` of 0 mean all; `max_chunks_per_document`
    of 1 means that a long document is truncated. With `ignore_unsupported_options`
    an instruction is left out where the model takes none, instead of refused, and
    `min_calibrated_score` where it has no calibration.
    """

    query: str
    documents: Sequence[Document]
    model: str = ""
    top_n: int = 0
    return_documents: bool = False
    min_relevance_score: float | None = None
    instruction: str = ""
    max_tokens_per_document: int = 0
    truncation: Truncation = Truncation.END
    max_chunks_per_document: int = 1
    priority: Priority = Priority.INTERACTIVE
    ignore_unsupported_options: bool = False
    min_calibrated_score: float | None = None


class Span(NamedTuple):
    """A part of a text in Unicode code points: start from 0, end exclusive."""

    start: int
    end: int


class ScoredDocument(NamedTuple):
    """One result: `index` is the document's place in the request.

    `calibrated_score` is the probability of relevance, None where the model has no calibration.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    relevance_score: float
    logit: float
    id: str = ""
    document: Document | None = None
    tokens: int = 0
    truncated: bool = False
    best_chunk: Span | None = None
    calibrated_score: float | None = None


class Usage(NamedTuple):
    """The cost of a call; durations in seconds."""

    input_tokens: int = 0
    cached_pairs: int = 0
    tokenization_seconds: float = 0.0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0


class RerankSummary(NamedTuple):
    """The part of a response that concerns the whole call."""

    model: str
    model_revision: str = ""
    usage: Usage = Usage()
    query_truncated: bool = False

    @classmethod
    def of(cls, parts: Sequence[RerankSummary]) -> RerankSummary:
        """Adds up what requests to one model have cost."""
        if len(parts) == 1:
            return parts[0]
        usage = Usage._make(map(sum, zip(*[part.usage for part in parts], strict=True)))
        return parts[0]._replace(usage=usage, query_truncated=any(part.query_truncated for part in parts))


class RerankResponse(NamedTuple):
    """Results by descending relevance_score; equal scores by logit, then in the caller's order."""

    results: tuple[ScoredDocument, ...]
    summary: RerankSummary


# The label of a reranker's one score, as transformers and other servers name it.
LABEL = "LABEL_0"

# Precisions as transformers and other servers name them.
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class CalibrationInfo:
    """The map from a model's logits to probabilities: its method, the pairs and the options it comes from."""

    method: str
    created: str = ""  # by RFC 3339
    queries: int = 0
    relevant_pairs: int = 0
    irrelevant_pairs: int = 0
    instruction: str = ""
    max_tokens_per_document: int = 0
    truncation: Truncation = Truncation.END
    max_chunks_per_document: int = 1


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One configured model; `serving` tells whether a call would be answered."""

    name: str
    state: State
    aliases: tuple[str, ...] = ()
    state_message: str = ""
    is_default: bool = False
    revision: str = ""
    family: str = ""
    device: str = ""
    precision: str = ""
    attention: str = ""
    max_tokens: int = 0
    max_batch_tokens: int = 0
    scoring: Scoring | None = None
    accepts_instruction: bool = False
    local_available: bool = False
    memory_bytes: int = 0
    pinned: bool = False
    serving: bool = False
    activation: str = ""
    pooling: str = ""
    prompt_source: str = ""
    hub_id: str = ""
    calibration: CalibrationInfo | None = None

    @property
    def dtype(self) -> str:
        """The precision by its longer name, such as "float32"; "" until loaded."""
        return _DTYPES.get(self.precision, self.precision)


@dataclass(frozen=True, slots=True)
class Health:
    """One model and its queue; a READY model is serving, and one that a call has loaded."""

    model: str
    state: State
    version: str
    uptime_seconds: float = 0.0
    queue_tokens: int = 0
    queue_capacity_tokens: int = 0
    tokens_per_second: float = 0.0
    serving: bool = False


@dataclass(slots=True)
class Timeline:
    """How far a request has come: times of time.monotonic, 0 until it is there, and what is known then."""

    entered: float
    model: str = ""  # its configured name, "" where no model has the name that was asked for
    admitted: float = 0.0  # the model is leased, and the gates are passed
    tokenized: float = 0.0
    started: float = 0.0  # the first batch with a sequence of it
    finished: float = 0.0  # all of its outputs are there
    documents: int = 0
    pairs: int = 0  # its sequences: chunks of documents count one by one
    tokens: int = 0
    truncated: int = 0  # documents
    shared: int = 0  # pairs that cost nothing, because an equal one was there
    batches: Sequence[object] = ()  # what the batch sink has returned for those that served it

    def stages(self) -> list[tuple[str, float]]:
        """The seconds of each stage that was completed.

        What is computed for another call as well may have begun before this one asked for it.
        """
        found = []
        if self.admitted:
            found.append(("admission", self.admitted - self.entered))
        if self.tokenized:
            found.append(("tokenize", self.tokenized - self.admitted))
        if self.started:
            found.append(("queue", max(0.0, self.started - self.tokenized)))
        if self.finished:
            found.append(("inference", max(0.0, self.finished - max(self.started, self.tokenized))))
        return found


class Call:
    """A request's deadline, in seconds of time.monotonic, its cancellation, and who has sent it.

    Any thread may cancel a call, a gRPC callback too: nothing here takes a lock.
    """

    __slots__ = ("_callbacks", "_cancelled", "caller", "deadline", "timelines")

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.caller: Caller = ANYONE
        self.timelines: list[Timeline] = []  # of its requests that have entered, in their order
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    def enter(self) -> Timeline:
        """Begins the timeline of one request."""
        timeline = Timeline(monotonic())
        self.timelines.append(timeline)
        return timeline

    def cancel(self) -> None:
        """Ends the call because its caller has left; harmless once the call is over."""
        self._cancelled = True
        callbacks = self._callbacks
        while callbacks:
            callbacks.pop()()

    def forget(self) -> None:
        """Drops what a cancellation would end, because all of it is over; other work may follow."""
        # Another list: `cancel` may be at work on the old one.
        self._callbacks = []

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has a function called when the call is cancelled, at once if it is; perhaps twice."""
        self._callbacks.append(callback)
        if self._cancelled:
            callback()

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded where further work would be wasted."""
        if self._cancelled:
            raise Cancelled("the caller cancelled")
        if self.deadline <= monotonic():
            raise DeadlineExceeded("the deadline passed before the call reached the queue")
