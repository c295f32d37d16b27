"""Brings models into memory and takes them out again: one at a time, on a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import Literal

import torch

from rerank_grpc.errors import ConfigurationError, ModelLoadError, ShuttingDown, describe, one_line
from rerank_grpc.registry import eviction, memory
from rerank_grpc.registry.eviction import Evict, Step, Wait
from rerank_grpc.registry.loading import Loader
from rerank_grpc.registry.memory import ModelBudget, Shortage
from rerank_grpc.registry.slot import RETRY_SECONDS, LoadedModel, Slot
from rerank_grpc.telemetry.records import BatchSink
from rerank_grpc.types import State
from rerank_grpc.units import size

log = logging.getLogger("rerank_grpc.registry")


class Keeper:
    """Owns every change of a model's state; `changed` is the registry's lock.

    Memory is measured before and after a load, and an evicted model has to be gone before the next one takes
    its place. Files, which can take minutes to fetch, are fetched beforehand on threads of their own. No lock
    is held during either. `on_change` is called after each change, `on_hang` when a model's device hangs and
    its calls have failed: both without the lock.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        changed: threading.Condition,
        loader: Loader,
        on_change: Callable[[], None],
        on_hang: Callable[[], None],
        *,
        budget: ModelBudget,
        idle_seconds: float | None,
        on_batch: BatchSink | None = None,
    ) -> None:
        self._slots, self._changed, self._loader = slots, changed, loader
        self._on_change, self._on_hang, self._on_batch = on_change, on_hang, on_batch
        self._budget = budget
        self._idle_seconds = math.inf if idle_seconds is None else idle_seconds
        self._queue: deque[Slot] = deque()
        self._trimmer = memory.Trimmer()
        self._threads = (
            threading.Thread(target=self._preload, name="preload-models", daemon=True),
            threading.Thread(target=self._run, name="keep-models", daemon=True),
        )
        self.closing = False

    def start(self) -> None:
        """Starts to load the models that are not lazy, in their order, and to keep all of them."""
        for slot in self._slots:
            slot.preloading = not slot.lazy
        for thread in self._threads:
            thread.start()

    def want(self, slot: Slot) -> None:
        """Has a model loaded unless it is on its way; under the lock."""
        if slot.state not in (State.UNLOADED, State.FAILED) or slot.dead:
            return
        name = f"prepare-{slot.spec.name}"
        try:
            threading.Thread(target=self._prepare, args=[slot], name=name, daemon=True).start()
        except RuntimeError:  # the process may have no further thread
            slot.state, slot.message = State.FAILED, "no thread can be started to load it"
            slot.retry_at = monotonic() + RETRY_SECONDS
            slot.answer(slot.still_loading())
        else:
            slot.state, slot.message = State.LOADING, ""

    def close(self, wait_seconds: float) -> None:
        """Ends the threads, and waits so long at most; calls that wait for a model get ShuttingDown."""
        with self._changed:
            self.closing = True
            for slot in self._slots:
                slot.answer(ShuttingDown("the server is stopping", retry_after=1.0))
            self._changed.notify_all()
        latest = monotonic() + wait_seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, latest - monotonic()))

    def died(self, slot: Slot, hung: bool) -> None:
        """Marks a model whose device is gone: it stays FAILED until an operator unloads it.

        A hang is reported even for a model that is being loaded or has left:
        only the process's end frees its thread and memory.
        """
        with self._changed:
            loaded = slot.loaded
            # The dead engine may be an earlier one of this model, or the model may be leaving anyway.
            if loaded is not None and not loaded.engine.alive and slot.state is State.READY:
                slot.state, slot.dead, slot.retry_at = State.FAILED, True, math.inf
                slot.message = "its device thread died or hangs: unload it, or restart the server"
                self._changed.notify_all()
        if hung:  # first, because a probe could hold up the report of the change
            self._on_hang()
        self._tell()

    def _preload(self) -> None:
        for slot in self._slots:
            with self._changed:
                if self.closing:
                    return
                if slot.lazy or slot.state is not State.UNLOADED:
                    continue
                slot.state = State.LOADING
            self._prepare(slot)

    def _prepare(self, slot: Slot) -> None:
        text = "model %s is loading from %s"
        log.info(text, slot.spec.name, slot.spec.source, extra=_event("model_loading", slot))
        try:
            expected = self._loader.prepare(slot.spec)
        except Exception as error:
            self._fail(slot, error)
            return
        with self._changed:
            slot.local = True
            slot.memory_bytes = slot.memory_bytes or expected
            if slot.is_default:  # the default waits for no other
                self._queue.appendleft(slot)
            else:
                self._queue.append(slot)
            self._changed.notify_all()

    def _run(self) -> None:
        while job := self._next():
            job()

    def _next(self) -> Callable[[], None] | None:
        """Waits for a job; None when closing."""
        with self._changed:
            while not self.closing:
                now = monotonic()
                if asked := eviction.unloadable(self._slots, now):
                    return self._leaving(asked)
                if self._queue:
                    return partial(self._load, self._queue.popleft())
                if stale := eviction.idle(self._slots, now, self._idle_seconds):
                    idle = _event("model_idle", stale, seconds=self._idle_seconds)
                    log.info(
                        "model %s was not used for %g s", stale.spec.name, self._idle_seconds, extra=idle
                    )
                    return self._leaving(stale)
                self._retry(now)
                if self._trimmer.due(now):
                    return self._trimmer.trim
                seconds = eviction.seconds_to_next(self._slots, now, self._idle_seconds)
                self._changed.wait(min(seconds, memory.TRIM_SECONDS))
        return None

    def _retry(self, now: float) -> None:
        for slot in self._slots:
            if slot.state is State.FAILED and slot.retry_at <= now and not slot.lazy:
                slot.preloading = True  # no call waits for it: it must evict nothing
                self.want(slot)

    def _load(self, slot: Slot) -> None:
        try:
            if not self._free_memory(slot):
                return
            with ExitStack() as undo:
                loaded, seconds = self._loaded(slot)
                undo.callback(loaded.engine.close)
                slot.memory_bytes = loaded.memory_bytes or slot.memory_bytes
                slot.batch_bytes = loaded.batch_bytes
                if self._free_memory(slot):  # the model may be larger than expected
                    self._ready(slot, loaded, seconds)
                    undo.pop_all()
        except Exception as error:
            self._fail(slot, error)

    def _loaded(self, slot: Slot) -> tuple[LoadedModel, float]:
        """Loads a model, and evicts others while too little memory is free; returns the seconds as well."""
        while True:
            started = monotonic()
            try:
                loaded = self._loader.load(slot.spec, partial(self.died, slot))
                return loaded, monotonic() - started
            except Shortage as shortage:
                self._make_room(slot, partial(eviction.relief, slot, self._slots, shortage))

    def _free_memory(self, slot: Slot) -> bool:
        """Evicts until a model fits; False: left for its first call. Raises ModelLoadError if too big."""
        decide = partial(eviction.step, slot, self._slots, self._budget)
        while (done := self._make_room(slot, decide)) is None:
            pass
        return done == "fits"

    def _make_room(self, slot: Slot, decide: Callable[[float], Step]) -> Literal["fits", "later"] | None:
        """Evicts one model, if any must leave, as soon as one may; None once it is gone."""
        with self._changed:
            while isinstance(step := self._decided(decide), Wait):
                self._changed.wait(step.seconds)
            if step == "later":
                self._leave_for_later(slot)
            if not isinstance(step, Evict):
                return step
            other, unload = step.slot, self._leaving(step.slot)
        evicted = _event("model_evicted", other, for_model=slot.spec.name)
        log.info("model %s makes room for %s", other.spec.name, slot.spec.name, extra=evicted)
        unload()
        return None

    def _decided(self, decide: Callable[[float], Step]) -> Step:
        if self.closing:
            raise ModelLoadError("the server is stopping")
        return decide(monotonic())

    def _leave_for_later(self, slot: Slot) -> None:
        slot.state, slot.settled, slot.lazy = State.UNLOADED, True, True
        slot.preloading, slot.failures = False, 0
        self._changed.notify_all()
        remedy = self._budget.remedy(eviction.batches([slot, *eviction.in_memory(self._slots)]))
        log.warning(
            "model %s takes %s, for which the others leave no room: it is loaded when it is called; to keep "
            "it in memory, %s",
            *(slot.spec.name, size(slot.memory_bytes), remedy),
        )

    def _ready(self, slot: Slot, loaded: LoadedModel, seconds: float) -> None:
        with self._changed:
            if self.closing or not loaded.engine.alive:
                raise ModelLoadError(f"model {slot.spec.name}: its device broke while it was loaded")
            loaded.engine.on_batch = self._on_batch  # the batches of the warm-up served no call
            slot.state, slot.message, slot.loaded = State.READY, "", loaded
            slot.failures, slot.retry_at, slot.preloading = 0, 0.0, False
            slot.ready_at = slot.last_used = monotonic()
            slot.load_seconds = seconds
            slot.device, slot.precision = loaded.card.device, loaded.card.precision
            slot.settled = slot.was_ready = True
            # Waiting calls get their leases before the model can be evicted.
            slot.leases += len(slot.waiting)
            slot.answer(loaded)
            self._changed.notify_all()
        text, name, memory_bytes = "model %s is ready after %.1f s, %s", slot.spec.name, slot.memory_bytes
        ready = _event("model_ready", slot, seconds=round(seconds, 3), memory_bytes=memory_bytes)
        log.info(text, name, seconds, size(memory_bytes), extra=ready)
        self._tell()

    def _fail(self, slot: Slot, error: Exception) -> None:
        text = f"model {slot.spec.name} could not be loaded from {slot.spec.source}: {describe(error)}"
        if isinstance(error, ConfigurationError):  # its text is for operators
            text = one_line(str(error))
        with self._changed:
            if self.closing:
                return
            slot.failures += 1
            hopeless = isinstance(error, memory.TooLarge)
            slot.retry_at = monotonic() + (math.inf if hopeless else eviction.retry_seconds(slot.failures))
            slot.state, slot.message = State.FAILED, text
            slot.settled, slot.preloading = True, False
            slot.answer(slot.failed())
            self._changed.notify_all()
        name, attempt = slot.spec.name, slot.failures
        failed = _event("model_failed", slot, attempt=attempt, error=text)
        log.error("model %s failed to load, attempt %d: %s", name, attempt, text, extra=failed)
        self._tell()

    def _leaving(self, slot: Slot) -> Callable[[], None]:
        """Closes a model to new calls; under the lock that chose it, so that no call comes in between."""
        slot.state = State.UNLOADING
        slot.evictions += not slot.unload_asked
        return partial(self._unload, slot)

    def _unload(self, slot: Slot) -> None:
        with self._changed:
            self._changed.wait_for(lambda: slot.leases == 0 or self.closing)
            if self.closing:
                return
            loaded, slot.loaded = slot.loaded, None
            if loaded is not None:
                slot.past_busy_seconds += loaded.engine.counts.busy_seconds
        self._tell()
        try:
            if loaded is not None:
                loaded.engine.close()
                device = torch.device(loaded.card.device)
                del loaded  # the last reference, so that the memory can be given back
                memory.give_back(device)
        except Exception as error:  # a broken device may refuse; the next load says whether it is
            log.error("model %s: its memory could not be given back: %s", slot.spec.name, describe(error))
        with self._changed:
            slot.state, slot.message = State.UNLOADED, ""
            slot.failures, slot.retry_at, slot.dead, slot.unload_asked = 0, 0.0, False, False
            if slot.waiting:  # calls that came while it was leaving
                self.want(slot)
            self._changed.notify_all()
        log.info("model %s is unloaded", slot.spec.name, extra=_event("model_unloaded", slot))
        self._tell()

    def _tell(self) -> None:
        """Reports a change, without the lock; a failure of the listener must not end this thread."""
        try:
            self._on_change()
        except Exception as error:
            log.error("a change of a model could not be told: %s", describe(error))


def _event(name: str, slot: Slot, **fields: object) -> dict[str, object]:
    """Makes the fields of a model's event in the log."""
    return {"event": name, "model": slot.spec.name, **fields}
