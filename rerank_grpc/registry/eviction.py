"""Decides which model leaves memory, and when; pure, over slots of which the first is the default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rerank_grpc.registry.memory import TooLarge, check_budget
from rerank_grpc.registry.slot import Slot
from rerank_grpc.types import State
from rerank_grpc.units import size

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
# The bounds of a model's stay in memory. A pause of the whole machine counts as
# loading, and must not keep a model in memory for as long.
LEAST_STAY_SECONDS = 1.0
MOST_STAY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Evict:
    """Another model has to leave first."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Wait:
    """No model may leave yet; the question is worth asking again after `seconds`."""

    seconds: float


# "later": the model is left for its first call, because now it would disturb others.
Step: TypeAlias = Literal["fits", "later"] | Evict | Wait


def step(slot: Slot, slots: Sequence[Slot], budget: int | None, now: float) -> Step:
    """Decides the next step on a model's way into memory; raises TooLarge if it can never fit."""
    if budget is None:
        return "fits"
    check_size(slot, slots, budget)
    used = sum(each.memory_bytes for each in slots if each.loaded is not None)
    if used + slot.memory_bytes <= budget:
        return "fits"
    if slot.preloading and not slot.waiting and slot is not slots[0]:
        return "later"
    return victim(slots, now)


def check_size(slot: Slot, slots: Iterable[Slot], budget: int) -> None:
    """Raises TooLarge if a model does not fit the budget alone, or beside models that never leave."""
    check_budget(slot.spec.name, slot.memory_bytes, budget)
    stay = [each for each in slots if each.loaded and (each.spec.pinned or each.dead)]
    left = budget - sum(each.memory_bytes for each in stay)
    if slot.memory_bytes > left:
        raise TooLarge(
            f"model {slot.spec.name} takes {size(slot.memory_bytes)} where {size(max(0, left))} of "
            f"{size(budget)} are left beside the pinned models: raise --model-memory, or pin less"
        )


def victim(slots: Sequence[Slot], now: float) -> Evict | Wait:
    """Chooses the model to evict, or the time to wait for one.

    A model that an operator wants out goes before all, idle ones before busy
    ones, the least recently used first. The default goes only where no other
    could go, not even later. `check_size` has made sure that a model can go.
    """
    if asked := unloadable(slots, now):
        return Evict(asked)
    able = [slot for slot in slots if slot.state is State.READY and not slot.spec.pinned]
    others = [slot for slot in able if slot is not slots[0]] or able
    free = [slot for slot in others if stays_until(slot) <= now]
    if free:
        return Evict(min(free, key=lambda each: (1, each.ready_at) if each.leases else (0, each.last_used)))
    others += [slot for slot in slots if slot.unload_asked and slot.state is State.READY]
    return Wait(min(stays_until(slot) - now for slot in others))


def stays_until(slot: Slot) -> float:
    """Returns the time from which a model may leave: it stays for as long as its loading took.

    Then at most half of the time goes into loading, in any order of calls and
    unloads. A model that is not READY serves no call, and may leave at once.
    """
    if slot.state is not State.READY:
        return -math.inf
    return slot.ready_at + min(MOST_STAY_SECONDS, max(LEAST_STAY_SECONDS, slot.load_seconds))


def unloadable(slots: Iterable[Slot], now: float) -> Slot | None:
    """Finds a model that an operator wants out of memory and that has stayed long enough."""
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


def idle(slots: Iterable[Slot], now: float, seconds: float | None) -> Slot | None:
    """Finds a model that has been without a call for `seconds`; no model if that is None."""
    for slot in _idlers(slots, seconds):
        if not slot.leases and slot.last_used + (seconds or 0.0) <= now:
            return slot
    return None


def patience(slots: Sequence[Slot], now: float, idle_seconds: float | None) -> float | None:
    """Returns the seconds until something is due without an event; None for ever."""
    times = [slot.retry_at for slot in slots if slot.state is State.FAILED and not slot.lazy]
    times += [stays_until(slot) for slot in slots if slot.unload_asked and slot.state is State.READY]
    times += [
        max(slot.last_used, now if slot.leases else 0.0) + (idle_seconds or 0.0)
        for slot in _idlers(slots, idle_seconds)
    ]
    soonest = min(times, default=math.inf)
    return None if soonest == math.inf else max(0.0, soonest - now)


def _idlers(slots: Iterable[Slot], seconds: float | None) -> list[Slot]:
    """Lists the models that leave memory when they are idle."""
    if seconds is None:
        return []
    return [slot for slot in slots if slot.state is State.READY and not slot.spec.pinned]


def retry_seconds(failures: int) -> float:
    """Returns the pause before loading is tried again: 1 s after one failure, doubled up to 5 minutes."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 20))
