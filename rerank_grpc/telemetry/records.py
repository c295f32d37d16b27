"""The records of a call and of a batch, complete once these have ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, NamedTuple, TypeAlias
from typing import Protocol as Interface

from rerank_grpc.callers import ANYONE, Caller
from rerank_grpc.errors import Reason, describe
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.types import RerankSummary, Timeline

log = logging.getLogger("rerank_grpc.calls")

Protocol: TypeAlias = Literal["grpc", "rest", "tei", "kserve"]
# Of a call, in their order; see types.Timeline for all but the answer, which follows the outputs.
STAGES = ("admission", "tokenize", "queue", "inference", "answer")
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "rest", "tei", "kserve")

# Machines that watch the service call these every few seconds; a line each would drown the calls.
PROBES = frozenset(
    ("Health", "kserve.ServerLive", "kserve.ServerReady", "kserve.ModelReady", "health", "live", "ready")
)

# Of gRPC's own services, by which machines look at the server; they are recorded only where they fail.
LOOKS = frozenset(
    (
        "Check",
        "Watch",
        "ServerReflectionInfo",
        "GetTopChannels",
        "GetServers",
        "GetServer",
        "GetServerSockets",
        "GetChannel",
        "GetSubchannel",
        "GetSocket",
    )
)


@dataclass(slots=True)
class CallRecord:
    """One call; `left` where its caller left before the end, with the code "CANCELLED".

    The method is one of the service's own names, never a caller's text; "tei." and "kserve." stand before
    those of other protocols. `dialect` is REST's, "" elsewhere. Times are those of time.monotonic.
    """

    method: str
    ids: CallIds
    protocol: Protocol = "grpc"
    dialect: str = ""
    documents: int | None = None
    summary: RerankSummary | None = None
    code: str = "OK"  # a name of grpc.StatusCode
    reason: Reason | None = None
    left: bool = False
    status: int = 0  # of HTTP, where the protocol is "rest"
    route: str = ""  # of HTTP: its method and its path's template, such as "POST /v1/rerank"
    started: float = field(default_factory=monotonic)
    seconds: float = 0.0
    timelines: list[Timeline] = field(default_factory=list)  # one for each of its requests that entered
    caller: Caller = ANYONE
    known_model: str = ""  # what the name that was asked for means, where only that is known

    @property
    def model(self) -> str:
        """The configured name of the model that was asked for, "" as long as that is not known."""
        if self.summary is not None:
            return self.summary.model
        return self.timelines[-1].model if self.timelines else self.known_model

    @property
    def is_probe(self) -> bool:
        """Whether a machine asked how the service is."""
        return self.method in PROBES


class BatchRecord(NamedTuple):
    """One batch that the device has done; times are those of time.monotonic."""

    model: str
    tokens: int
    budget: int  # the most tokens that it could have had
    sequences: int
    started: float
    ended: float
    busy_seconds: float  # of the device's clock: less than passed where it was shared


# Takes each call's record on the thread that answers it; must not block.
Sink: TypeAlias = Callable[[CallRecord], None]
# Takes each batch's record on the device's thread, and may return what the timelines of its calls refer to.
BatchSink: TypeAlias = Callable[[BatchRecord], object]


class OpenSpan(Interface):
    """The span of a call that is still being answered."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The traceparent, and the tracestate where there is one, that the call is passed on with."""
        ...

    def end(self, record: CallRecord) -> None:
        """Ends the span with what became of its call; called once, by the thread that began it."""
        ...


class CallTracer(Interface):
    """Begins the span of each call that is passed on; must not block."""

    def begin(self, ids: CallIds, protocol: str) -> OpenSpan:
        """Begins a span below that of the caller, whose `ids` are as they came."""
        ...


def deliver(record: CallRecord, sinks: Iterable[Sink]) -> None:
    """Gives a record to each sink; the exception of one reaches neither the caller nor the next sink."""
    for sink in sinks:
        try:
            sink(record)
        except Exception as error:
            log.error(
                "a sink failed on a %s: %s", record.method, describe(error), extra={"kind": "a sink failed"}
            )


def protocol_of(method: str) -> Protocol:
    """Tells the protocol of a method of the gRPC server."""
    prefix, dot, _ = method.partition(".")
    if not dot:
        return "grpc"
    return "tei" if prefix == "tei" else "kserve"
