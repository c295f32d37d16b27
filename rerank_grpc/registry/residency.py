"""Which model goes when another needs the room: pure decisions over the entries."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.registry.entry import Entry
from rerank_grpc.types import State
from rerank_grpc.units import size

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0


def used_bytes(entries: Iterable[Entry]) -> int:
    """What the models in memory take."""
    return sum(entry.memory_bytes for entry in entries if entry.loaded is not None)


def victim(entries: Iterable[Entry], now: float) -> tuple[Entry | None, float]:
    """Chooses whom to evict, or says how many seconds to wait before asking again.

    Idle models go before busy ones, the least recently used first. A busy one
    stays at least as long as its loading took, so that under a load that wants
    more models than fit no more than half of the time goes into loading.
    """
    able = [entry for entry in entries if entry.state is State.READY and not entry.spec.pinned]
    idle = [entry for entry in able if not entry.leases]
    if idle:
        return min(idle, key=lambda entry: entry.last_used), 0.0
    stay = [(entry.ready_at + entry.load_seconds - now, entry) for entry in able]
    gone = [entry for left, entry in stay if left <= 0]
    if gone:
        return min(gone, key=lambda entry: entry.ready_at), 0.0
    return None, min((left for left, _ in stay), default=0.0)


class TooLarge(ModelLoadError):
    """A model that cannot fit, however often it is tried."""


def check_size(entry: Entry, entries: Iterable[Entry], budget: int) -> None:
    """Raises TooLarge if a model does not fit the budget alone, or beside what stays whatever happens."""
    if entry.memory_bytes > budget:
        raise TooLarge(
            f"model {entry.spec.name} takes {size(entry.memory_bytes)} where all models together may take "
            f"{size(budget)}: raise --model-memory, or hold it in a smaller --precision"
        )
    stay = [each for each in entries if each.loaded and (each.spec.pinned or each.dead)]
    left = budget - sum(each.memory_bytes for each in stay)
    if entry.memory_bytes > left:
        raise TooLarge(
            f"model {entry.spec.name} takes {size(entry.memory_bytes)} where {size(max(0, left))} of "
            f"{size(budget)} are left beside the pinned models: raise --model-memory, or pin less"
        )


def idle(entries: Iterable[Entry], now: float, seconds: float | None) -> Entry | None:
    """Finds a model that nobody has used for so long."""
    for entry in entries:
        if (
            seconds is not None
            and entry.state is State.READY
            and not entry.spec.pinned
            and not entry.leases
            and entry.last_used + seconds <= now
        ):
            return entry
    return None


def patience(entries: Iterable[Entry], now: float, idle_seconds: float | None) -> float | None:
    """How many seconds nothing has to be done unless something happens; None for ever."""
    times = [entry.retry_at for entry in entries if entry.state is State.FAILED and not entry.spec.lazy]
    if idle_seconds is not None:
        times += [
            max(entry.last_used, now if entry.leases else 0.0) + idle_seconds
            for entry in entries
            if entry.state is State.READY and not entry.spec.pinned
        ]
    soonest = min(times, default=math.inf)
    return None if soonest == math.inf else max(0.0, soonest - now)


def retry_seconds(failures: int) -> float:
    """How long after so many failures in a row loading is tried again: 1 s, doubled up to 5 minutes."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 20))
