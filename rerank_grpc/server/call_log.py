"""The record of a gRPC call, and its line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from rerank_grpc.errors import Reason, describe
from rerank_grpc.types import RerankSummary
from rerank_grpc.wire.status import CallIds

log = logging.getLogger("rerank_grpc.calls")


@dataclass(slots=True)
class CallRecord:
    """One call, complete when its handler ends; `left` where its caller left in the middle of a stream."""

    method: str
    ids: CallIds
    documents: int | None = None
    summary: RerankSummary | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: Reason | None = None
    left: bool = False
    seconds: float = 0.0


# Machines that watch the service call these every few seconds; a line each would drown the calls.
PROBES = frozenset(("Health", "kserve.ServerLive", "kserve.ServerReady", "kserve.ModelReady"))

# Takes each call's record on the thread that answers it; must not block.
Sink: TypeAlias = Callable[[CallRecord], None]


def deliver(record: CallRecord, sinks: Iterable[Sink]) -> None:
    """Gives a record to each sink; the exception of one reaches neither the caller nor the next sink."""
    for sink in sinks:
        try:
            sink(record)
        except Exception as error:
            log.error(
                "a sink failed on a %s: %s", record.method, describe(error), extra={"kind": "a sink failed"}
            )


def log_call(record: CallRecord) -> None:
    """Writes a call's line to the log; a server's default sink."""
    code, reason = record.code.name, record.reason and record.reason.name
    level = logging.DEBUG if reason is None and record.method in PROBES else logging.INFO
    # The kind bounds repetitions: a refused caller can return at once.
    kind = None if reason is None else {"kind": f"{record.method} {code} {reason}"}
    summary = record.summary
    facts = {
        "documents": record.documents,
        "model": summary and summary.model,
        "tokens": summary and summary.usage.input_tokens,
        "left": record.left or None,
        "reason": reason,
        "request_id": record.ids.request_id or None,
        "trace_id": record.ids.trace_id or None,
    }
    notes = "".join([f" {name}={value}" for name, value in facts.items() if value is not None])
    log.log(level, "%s %s%s ms=%.1f", record.method, code, notes, record.seconds * 1000, extra=kind)
