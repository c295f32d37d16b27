"""Decides which model leaves memory, and when; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rerank_grpc.registry.memory import ModelBudget, Shortage, TooLarge, check_budget
from rerank_grpc.registry.slot import Slot
from rerank_grpc.types import State
from rerank_grpc.units import size

LEAST_STAY_SECONDS = 1.0
MOST_STAY_SECONDS = 300.0  # a pause of the whole machine counts as loading, and must not count for more


@dataclass(frozen=True, slots=True)
class Evict:
    """Another model has to leave first."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Wait:
    """No model may leave yet; the question is worth asking again after `seconds`."""

    seconds: float


# What comes next on a model's way into memory.
Step: TypeAlias = Literal["fits", "later"] | Evict | Wait


def step(slot: Slot, slots: Sequence[Slot], budget: ModelBudget, now: float) -> Step:
    """Decides the next step on a model's way into memory; raises TooLarge if it can never fit.

    "later" leaves a model for its first call, because now it would disturb others.
    """
    _check_size(slot, slots, budget)
    if _fit([slot, *in_memory(slots)], budget):
        return "fits"
    if slot.preloading and not slot.waiting and not slot.is_default:
        return "later"
    return victim(slots, now)


def _fit(models: Sequence[Slot], budget: ModelBudget) -> bool:
    """Whether models fit together, each with a batch; one alone does where its load was not refused."""
    room = budget.room(batches(models))
    return room is None or len(models) == 1 or sum(each.memory_bytes for each in models) <= room


def in_memory(slots: Iterable[Slot]) -> list[Slot]:
    """Lists the models that are in memory."""
    return [each for each in slots if each.loaded is not None]


def batches(models: Iterable[Slot]) -> int:
    """Returns the bytes of one batch of each model."""
    return sum(each.batch_bytes for each in models)


def _check_size(slot: Slot, slots: Iterable[Slot], budget: ModelBudget) -> None:
    """Raises TooLarge if a model does not fit the budget alone, or beside models that never leave."""
    check_budget(slot.spec.name, slot.memory_bytes, budget)
    stay = [each for each in slots if each.loaded and (each.spec.pinned or each.dead)]
    beside = batches([slot, *stay])
    room = budget.room(beside)
    if room is not None and not _fit([slot, *stay], budget):
        left = room - sum(each.memory_bytes for each in stay)
        raise TooLarge(
            f"model {slot.spec.name} takes {size(slot.memory_bytes)} where {size(max(0, left))} of "
            f"{size(room)} are left beside the pinned models: {budget.remedy(beside)}, or pin less"
        )


def relief(slot: Slot, slots: Sequence[Slot], shortage: Shortage, now: float) -> Evict | Wait:
    """Decides which model leaves where a load found too little free memory.

    Raises the shortage where no model may leave for this one, or all of them would not free enough.
    """
    able = [each for each in slots if each.evictable]
    freed = sum(each.memory_bytes for each in able)
    if (slot.preloading and not slot.waiting and not slot.is_default) or not able or freed < shortage.missing:
        raise shortage
    return victim(slots, now)


def victim(slots: Sequence[Slot], now: float) -> Evict | Wait:
    """Chooses the model to evict, or the time to wait for one.

    A model that an operator wants out goes before all, idle ones before busy
    ones, the least recently used first. The default goes only where no other
    could go, not even later. `_check_size` has made sure that a model can go.
    """
    if asked := unloadable(slots, now):
        return Evict(asked)
    able = [slot for slot in slots if slot.evictable]
    others = [slot for slot in able if not slot.is_default] or able
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
    asked = (slot for slot in slots if slot.unload_asked and slot.state is not State.LOADING)
    return next((slot for slot in asked if stays_until(slot) <= now), None)


def why_still_loaded(slot: Slot, now: float) -> str:
    """Says why a model that an operator wants out of memory is still there, and when it goes."""
    name, left = slot.spec.name, stays_until(slot) - now
    if slot.state is State.LOADING:
        return f"model {name} is still loading; it is unloaded when it has stayed for as long as that takes"
    if left > 0:
        return f"model {name} has just been loaded; it is unloaded in {left:.1f} s"
    return f"calls in progress still use model {name}; it is unloaded after them"


def idle(slots: Iterable[Slot], now: float, seconds: float) -> Slot | None:
    """Finds a model that has been without a call for `seconds`."""
    unused = (slot for slot in slots if slot.evictable and not slot.leases)
    return next((slot for slot in unused if slot.last_used + seconds <= now), None)


def seconds_to_next(slots: Sequence[Slot], now: float, idle_seconds: float) -> float:
    """Returns the seconds until the next retry, unload or idle model is due; math.inf if none will be."""
    times = [slot.retry_at for slot in slots if slot.state is State.FAILED and not slot.lazy]
    times += [stays_until(slot) for slot in slots if slot.unload_asked and slot.state is State.READY]
    times += [(now if slot.leases else slot.last_used) + idle_seconds for slot in slots if slot.evictable]
    return max(0.0, min(times, default=math.inf) - now)


def retry_seconds(failures: int) -> float:
    """Returns the pause before loading is tried again: 1 s after one failure, doubled up to 5 minutes."""
    return min(300.0, 2.0 ** min(failures - 1, 20))
