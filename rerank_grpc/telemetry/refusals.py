"""The log's lines on when a server begins to refuse calls for a reason, and when that is over."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from rerank_grpc.errors import Reason
from rerank_grpc.telemetry.records import CallRecord

log = logging.getLogger("rerank_grpc.refusals")

QUIET_SECONDS = 10.0  # a reason is over once no call was refused for it in this time
# Those that say how the server is. For a caller's own fault there is the line of its call.
REASONS = frozenset(
    (
        Reason.QUEUE_FULL,
        Reason.DEADLINE_UNREACHABLE,
        Reason.MODEL_LOADING,
        Reason.MODEL_FAILED,
        Reason.RATE_LIMITED,
        Reason.SHUTTING_DOWN,
    )
)


@dataclass(slots=True)
class _Spell:
    """The calls refused for one reason, from the first to the last; times are those of the records."""

    first: float
    last: float
    calls: int = 1


class RefusalLog:
    """Tells of each reason when calls are first refused for it, and after that how many were; a sink.

    It has no thread and no clock: the first record that ends QUIET_SECONDS after the last refusal, a probe's
    too, ends its spell.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spells: dict[Reason, _Spell] = {}

    def __call__(self, record: CallRecord) -> None:
        # REST has a record of its own for the calls that it passed on.
        reason = record.reason if record.reason in REASONS and not record.ids.told_by_rest else None
        if reason is None and not self._spells:
            return
        now = record.started + record.seconds
        with self._lock:
            ended = self._taken_out(now - QUIET_SECONDS)
            begins = reason is not None and self._begins(reason, now)
        _tell_end(ended)
        if reason is not None and begins:
            name = reason.name.lower()
            caller = record.caller.name or None
            fields = {"event": "refusing", "reason": name, "model": record.model or None, "caller": caller}
            log.warning("refusing calls: %s", name, extra=fields)

    def close(self) -> None:
        """Tells how many calls were refused in the spells that have not ended."""
        with self._lock:
            ended = self._taken_out(float("inf"))
        _tell_end(ended)

    def _begins(self, reason: Reason, now: float) -> bool:
        """Counts a refusal; tells whether it is the first of its spell."""
        spell = self._spells.get(reason)
        if spell is None:
            self._spells[reason] = _Spell(now, now)
            return True
        spell.last, spell.calls = max(spell.last, now), spell.calls + 1
        return False

    def _taken_out(self, before: float) -> list[tuple[Reason, _Spell]]:
        """Takes out the spells whose last refusal was then or earlier."""
        ended = [(reason, spell) for reason, spell in self._spells.items() if spell.last <= before]
        for reason, _ in ended:
            del self._spells[reason]
        return ended


def _tell_end(ended: list[tuple[Reason, _Spell]]) -> None:
    for reason, spell in ended:
        name, seconds = reason.name.lower(), round(spell.last - spell.first, 1)
        fields = {"event": "refusing_ended", "reason": name, "calls": spell.calls, "seconds": seconds}
        text = "no longer refusing calls: %s (%d in %.1f s)"
        log.warning(text, name, spell.calls, seconds, extra=fields)
