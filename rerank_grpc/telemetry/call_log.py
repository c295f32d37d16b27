"""A call's line in the log."""

from __future__ import annotations

import logging

from rerank_grpc.telemetry.records import PROBES, STAGES, CallRecord, log
from rerank_grpc.types import Usage


def log_call(record: CallRecord) -> None:
    """Writes a call's line to the log; a server's default sink.

    The fields travel in `extra`, and are rendered on the log's own thread.
    """
    failed, reason = record.code != "OK", record.reason and record.reason.name.lower()
    # A probe that succeeds is nobody's call, and REST has a line of its own for those that it passed on.
    quiet = record.ids.told_by_rest or (record.method in PROBES and not failed)
    level = logging.DEBUG if quiet else logging.INFO
    if not log.isEnabledFor(level):
        return
    ids, summary, timelines = record.ids, record.summary, record.timelines
    tokens = summary.usage.input_tokens if summary else sum([each.tokens for each in timelines])
    fields: dict[str, object] = {
        "event": "call",
        "method": record.method,
        "caller": record.caller.name or None,
        "code": record.code,
        "status": record.status or None,
        "documents": record.documents,
        "model": record.model or None,
        "tokens": tokens or None,
        "left": record.left or None,
        "reason": reason,
        "request_id": ids.request_id or None,
        "trace_id": ids.trace_id or None,
        "ms": round(record.seconds * 1000, 2),
        "protocol": record.protocol,
        "dialect": record.dialect or None,
    }
    if timelines:
        _add_stages(fields, record)
    elif summary:  # of REST, which knows what the answer tells
        _add_usage(fields, summary.usage)
    outcome = record.status or record.code
    if failed:
        # The kind bounds repetitions: a refused caller can return at once.
        fields["kind"] = f"{record.method} {outcome} {reason}"
    log.log(level, "%s %s", record.method, outcome, extra=fields)


def _add_usage(fields: dict[str, object], usage: Usage) -> None:
    """Adds the milliseconds of the stages that an answer tells of."""
    fields["tokenize_ms"] = round(usage.tokenization_seconds * 1000, 2)
    fields["queue_ms"] = round(usage.queue_seconds * 1000, 2)
    fields["inference_ms"] = round(usage.inference_seconds * 1000, 2)


def _add_stages(fields: dict[str, object], record: CallRecord) -> None:
    """Adds the milliseconds of each stage that was completed, summed over the call's requests."""
    seconds = dict.fromkeys(STAGES, 0.0)
    for timeline in record.timelines:
        for stage, passed in timeline.stages():
            seconds[stage] += passed
    if finished := record.timelines[-1].finished:
        seconds["answer"] = max(0.0, record.started + record.seconds - finished)
    for stage, passed in seconds.items():
        fields[f"{stage}_ms"] = round(passed * 1000, 2)
