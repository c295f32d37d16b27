"""Which model leaves memory, and when: pure decisions over the slots, of which the first is the default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.registry.slot import Slot
from rerank_grpc.types import State
from rerank_grpc.units import size

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
# The least and the most that a model stays in memory once it is there. A pause of the
# whole machine counts as loading, and must not keep a model in memory for as long.
LEAST_STAY_SECONDS = 1.0
MOST_STAY_SECONDS = 300.0


def used_bytes(slots: Iterable[Slot]) -> int:
    """What the models in memory take."""
    return sum(slot.memory_bytes for slot in slots if slot.loaded is not None)


def stays_until(slot: Slot) -> float:
    """Says from when on a model may leave: it stays for as long as its loading took.

    So at most half of the time goes into loading, whatever is called or unloaded.
    A model that is not READY serves no call, and may leave at once.
    """
    if slot.state is not State.READY:
        return -math.inf
    return slot.ready_at + min(MOST_STAY_SECONDS, max(LEAST_STAY_SECONDS, slot.load_seconds))


def victim(slots: Sequence[Slot], now: float) -> tuple[Slot | None, float]:
    """Chooses the model to evict, or says how many seconds to wait before asking again.

    Idle models go before busy ones, the least recently used first. The default
    goes only where no other could go, not even later. What an operator wants
    out goes before all. `check_size` has made sure that a model can go.
    """
    if asked := unloadable(slots, now):
        return asked, 0.0
    able = [slot for slot in slots if slot.state is State.READY and not slot.spec.pinned]
    others = [slot for slot in able if slot is not slots[0]] or able
    free = [slot for slot in others if stays_until(slot) <= now]
    if free:
        return min(free, key=lambda each: (1, each.ready_at) if each.leases else (0, each.last_used)), 0.0
    others += [slot for slot in slots if slot.unload_asked and slot.state is State.READY]
    return None, min(stays_until(slot) - now for slot in others)


def unloadable(slots: Iterable[Slot], now: float) -> Slot | None:
    """Finds a model that an operator wants out of memory and that has been there long enough."""
    for slot in slots:
        if slot.unload_asked and slot.state is not State.LOADING and stays_until(slot) <= now:
            return slot
    return None


def why_still_loaded(slot: Slot, now: float) -> str:
    """Says why a model that an operator wants out of memory is still there, and when it goes."""
    name, left = slot.spec.name, stays_until(slot) - now
    if slot.state is State.LOADING:
        return f"model {name} is still loading; it is unloaded when it has stayed for as long as that takes"
    if left > 0:
        return f"model {name} has just been loaded; it is unloaded in {left:.1f} s"
    return f"calls in progress still use model {name}; it is unloaded after them"


class TooLarge(ModelLoadError):
    """A model that cannot fit, however often it is tried."""


def check_size(slot: Slot, slots: Iterable[Slot], budget: int) -> None:
    """Raises TooLarge if a model does not fit the budget alone, or beside what stays whatever happens."""
    if slot.memory_bytes > budget:
        raise TooLarge(
            f"model {slot.spec.name} takes {size(slot.memory_bytes)} where all models together may take "
            f"{size(budget)}: raise --model-memory, or hold it in a smaller --precision"
        )
    stay = [each for each in slots if each.loaded and (each.spec.pinned or each.dead)]
    left = budget - sum(each.memory_bytes for each in stay)
    if slot.memory_bytes > left:
        raise TooLarge(
            f"model {slot.spec.name} takes {size(slot.memory_bytes)} where {size(max(0, left))} of "
            f"{size(budget)} are left beside the pinned models: raise --model-memory, or pin less"
        )


def idle(slots: Iterable[Slot], now: float, seconds: float | None) -> Slot | None:
    """Finds a model that nobody has used for so long."""
    for slot in slots:
        if (
            seconds is not None
            and slot.state is State.READY
            and not slot.spec.pinned
            and not slot.leases
            and slot.last_used + seconds <= now
        ):
            return slot
    return None


def patience(slots: Sequence[Slot], now: float, idle_seconds: float | None) -> float | None:
    """How many seconds nothing has to be done unless something happens; None for ever."""
    times = [slot.retry_at for slot in slots if slot.state is State.FAILED and not slot.lazy]
    times += [stays_until(slot) for slot in slots if slot.unload_asked and slot.state is State.READY]
    if idle_seconds is not None:
        times += [
            max(slot.last_used, now if slot.leases else 0.0) + idle_seconds
            for slot in slots
            if slot.state is State.READY and not slot.spec.pinned
        ]
    soonest = min(times, default=math.inf)
    return None if soonest == math.inf else max(0.0, soonest - now)


def retry_seconds(failures: int) -> float:
    """How long after so many failures in a row loading is tried again: 1 s, doubled up to 5 minutes."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 20))
