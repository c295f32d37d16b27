"""Which model leaves memory, and when: pure decisions over the entries, of which the first is the default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.registry.entry import Entry
from rerank_grpc.types import State
from rerank_grpc.units import size

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
# The least and the most that a model stays in memory once it is there. A pause of the
# whole machine counts as loading, and must not keep a model in memory for as long.
LEAST_STAY_SECONDS = 1.0
MOST_STAY_SECONDS = 300.0


def used_bytes(entries: Iterable[Entry]) -> int:
    """What the models in memory take."""
    return sum(entry.memory_bytes for entry in entries if entry.loaded is not None)


def stays_until(entry: Entry) -> float:
    """Says from when on a model may leave: it stays for as long as its loading took.

    So at most half of the time goes into loading, whatever is called or unloaded.
    A model that is not READY serves no call, and may leave at once.
    """
    if entry.state is not State.READY:
        return -math.inf
    return entry.ready_at + min(MOST_STAY_SECONDS, max(LEAST_STAY_SECONDS, entry.load_seconds))


def victim(entries: Sequence[Entry], now: float) -> tuple[Entry | None, float]:
    """Chooses the model to evict, or says how many seconds to wait before asking again.

    Idle models go before busy ones, the least recently used first. The default
    goes only where no other could go, not even later. What an operator wants
    out goes before all. `check_size` has made sure that a model can go.
    """
    if asked := unloadable(entries, now):
        return asked, 0.0
    able = [entry for entry in entries if entry.state is State.READY and not entry.spec.pinned]
    others = [entry for entry in able if entry is not entries[0]] or able
    free = [entry for entry in others if stays_until(entry) <= now]
    if free:
        return min(free, key=lambda each: (1, each.ready_at) if each.leases else (0, each.last_used)), 0.0
    others += [entry for entry in entries if entry.unload_asked and entry.state is State.READY]
    return None, min(stays_until(entry) - now for entry in others)


def unloadable(entries: Iterable[Entry], now: float) -> Entry | None:
    """Finds a model that an operator wants out of memory and that has been there long enough."""
    for entry in entries:
        if entry.unload_asked and entry.state is not State.LOADING and stays_until(entry) <= now:
            return entry
    return None


def why_still_loaded(entry: Entry, now: float) -> str:
    """Says why a model that an operator wants out of memory is still there, and when it goes."""
    name, left = entry.spec.name, stays_until(entry) - now
    if entry.state is State.LOADING:
        return f"model {name} is still loading; it is unloaded when it has stayed for as long as that takes"
    if left > 0:
        return f"model {name} has just been loaded; it is unloaded in {left:.1f} s"
    return f"calls in progress still use model {name}; it is unloaded after them"


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


def patience(entries: Sequence[Entry], now: float, idle_seconds: float | None) -> float | None:
    """How many seconds nothing has to be done unless something happens; None for ever."""
    times = [entry.retry_at for entry in entries if entry.state is State.FAILED and not entry.lazy]
    times += [stays_until(entry) for entry in entries if entry.unload_asked and entry.state is State.READY]
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
