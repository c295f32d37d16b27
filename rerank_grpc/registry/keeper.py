"""Brings models into memory and takes them out again: one at a time, on a thread of its own.

One at a time, because memory is measured before and after, and because a model
that is evicted has to be gone before the next one takes its room. Fetching
files, which can take minutes, is done beforehand on threads of its own. No
lock is held while either happens.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from rerank_grpc.errors import ModelLoadError, ShuttingDown, describe
from rerank_grpc.registry import eviction, memory
from rerank_grpc.registry.loading import Loader, Preparer, let_go, one_line
from rerank_grpc.registry.slot import RETRY_SECONDS, LoadedModel, Slot, failed, settle, still_loading
from rerank_grpc.types import State
from rerank_grpc.units import size

log = logging.getLogger("rerank_grpc.registry")


class Keeper:
    """Owns every change of a model's state; `changed` is the registry's lock.

    `on_change` is called after each of them, `on_hang` when a model's device
    hangs and its calls have failed: both without the lock.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        changed: threading.Condition,
        load: Loader,
        prepare: Preparer,
        *,
        budget: int | None = None,
        idle_seconds: float | None = None,
        on_change: Callable[[], None],
        on_hang: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._changed = changed
        self._load_model = load
        self._prepare_model = prepare
        self._budget = budget
        self._idle_seconds = idle_seconds
        self._on_change = on_change
        self._on_hang = on_hang
        self._queue: deque[Slot] = deque()
        self._trimmer = memory.Trimmer()
        self.closing = False
        self._thread = threading.Thread(target=self._run, name="keep-models", daemon=True)

    def start(self) -> None:
        """Starts to load what is not lazy, in its order, and to keep the rest in order."""
        preloaded = [slot for slot in self._slots if not slot.lazy]
        for slot in preloaded:
            slot.preloading = True
        threading.Thread(target=self._preload, args=[preloaded], name="preload-models", daemon=True).start()
        self._thread.start()

    def want(self, slot: Slot) -> None:
        """Has a model loaded unless it is on its way; under the lock."""
        if slot.state in (State.UNLOADED, State.FAILED) and not slot.dead:
            name = f"prepare-{slot.spec.name}"
            thread = threading.Thread(target=self._prepare, args=[slot], name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process may have no further thread
                slot.state, slot.message = State.FAILED, "no thread can be started to load it"
                slot.retry_at = monotonic() + RETRY_SECONDS
                settle(slot, still_loading(slot))
                return
            slot.state, slot.message = State.LOADING, ""

    def close(self) -> None:
        """Ends the thread; whoever waits for a model gets ShuttingDown."""
        with self._changed:
            self.closing = True
            for slot in self._slots:
                settle(slot, ShuttingDown("the server is stopping", retry_after=1.0))
            self._changed.notify_all()

    def died(self, slot: Slot, hung: bool) -> None:
        """Marks a model whose device is gone: it stays FAILED until an operator unloads it.

        A hang is told even of a model that is being loaded or has left: nothing but
        the process's end frees its thread and memory.
        """
        with self._changed:
            loaded = slot.loaded
            # An earlier engine of this model may have broken, or it is leaving anyway.
            if loaded is not None and not loaded.engine.alive and slot.state is State.READY:
                slot.state, slot.message, slot.dead = State.FAILED, "its device thread died or hangs", True
                slot.retry_at = math.inf
                self._changed.notify_all()
        if hung:  # first: it waits for nothing that a probe could hold up
            self._on_hang()
        self._tell()

    # Before the thread: files

    def _preload(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            with self._changed:
                if self.closing:
                    return
                if slot.state is not State.UNLOADED:
                    continue
                slot.state = State.LOADING
            self._prepare(slot)

    def _prepare(self, slot: Slot) -> None:
        try:
            expected = self._prepare_model(slot.spec)
        except Exception as error:
            self._fail(slot, error)
            return
        with self._changed:
            slot.local = True
            slot.memory_bytes = slot.memory_bytes or expected
            if slot is self._slots[0]:  # the default waits for no other
                self._queue.appendleft(slot)
            else:
                self._queue.append(slot)
            self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        while job := self._next():
            job()

    def _next(self) -> Callable[[], None] | None:
        """Waits for something to do; None when closing."""
        with self._changed:
            while not self.closing:
                now = monotonic()
                if asked := eviction.unloadable(self._slots, now):
                    return self._leaving(asked)
                if self._queue:
                    return partial(self._load, self._queue.popleft())
                if stale := eviction.idle(self._slots, now, self._idle_seconds):
                    log.info("model %s was not used for %g s", stale.spec.name, self._idle_seconds)
                    return self._leaving(stale)
                for slot in self._slots:
                    if slot.state is State.FAILED and slot.retry_at <= now and not slot.lazy:
                        slot.preloading = True  # no call waits for it: it must evict nothing
                        self.want(slot)
                if self._trimmer.due(now):
                    return self._trimmer.trim
                patience = eviction.patience(self._slots, now, self._idle_seconds)
                self._changed.wait(
                    memory.TRIM_SECONDS if patience is None else min(patience, memory.TRIM_SECONDS)
                )
        return None

    def _load(self, slot: Slot) -> None:
        try:
            if not self._make_room(slot):
                return
            started = monotonic()
            loaded = self._load_model(slot.spec, partial(self.died, slot))
            seconds = monotonic() - started
            try:
                slot.memory_bytes = loaded.memory_bytes or slot.memory_bytes
                if self._make_room(slot):  # it may have turned out larger than expected
                    self._ready(slot, loaded, seconds)
                    return
                let_go(loaded)
            except BaseException:
                let_go(loaded)
                raise
        except Exception as error:
            self._fail(slot, error)

    def _make_room(self, slot: Slot) -> bool:
        """Evicts others until a model fits; False if it is only wanted where it disturbs nobody.

        Raises ModelLoadError if it can never fit.
        """
        while self._budget is not None:
            with self._changed:
                if self.closing:
                    raise ModelLoadError("the server is stopping")
                eviction.check_size(slot, self._slots, self._budget)
                if eviction.used_bytes(self._slots) + slot.memory_bytes <= self._budget:
                    break
                if slot.preloading and not slot.waiting and slot is not self._slots[0]:
                    self._leave_for_later(slot)
                    return False
                other, seconds = eviction.victim(self._slots, monotonic())
                if other is None:
                    self._changed.wait(seconds)
                    continue
                unload = self._leaving(other)
            log.info("model %s makes room for %s", other.spec.name, slot.spec.name)
            unload()
        return True

    def _leave_for_later(self, slot: Slot) -> None:
        slot.state, slot.settled, slot.lazy = State.UNLOADED, True, True
        slot.preloading, slot.failures = False, 0
        self._changed.notify_all()
        log.warning(
            "model %s takes %s, for which --model-memory leaves no room: it is loaded when it is called",
            slot.spec.name,
            size(slot.memory_bytes),
        )

    def _ready(self, slot: Slot, loaded: LoadedModel, seconds: float) -> None:
        with self._changed:
            if self.closing or not loaded.engine.alive:
                raise ModelLoadError(f"model {slot.spec.name}: its device broke while it was loaded")
            slot.state, slot.message, slot.loaded = State.READY, "", loaded
            slot.failures, slot.retry_at, slot.preloading = 0, 0.0, False
            slot.ready_at = slot.last_used = monotonic()
            slot.load_seconds = seconds
            slot.settled = slot.was_ready = True
            # Leased before anybody else can evict it: who waited for it is served by it.
            slot.leases += len(slot.waiting)
            settle(slot, loaded)
            self._changed.notify_all()
        log.info("model %s is ready after %.1f s, %s", slot.spec.name, seconds, size(slot.memory_bytes))
        self._tell()

    def _fail(self, slot: Slot, error: Exception) -> None:
        text, name = one_line(slot.spec, error), slot.spec.name
        with self._changed:
            if self.closing:
                return
            slot.failures += 1
            hopeless = isinstance(error, eviction.TooLarge)
            wait = math.inf if hopeless else eviction.retry_seconds(slot.failures)
            slot.retry_at = monotonic() + wait
            slot.state, slot.message = State.FAILED, text
            slot.settled, slot.preloading = True, False
            settle(slot, failed(name))
            self._changed.notify_all()
        log.error("model %s failed to load, attempt %d: %s", name, slot.failures, text)
        self._tell()

    def _leaving(self, slot: Slot) -> Callable[[], None]:
        """Closes a model to new calls; under the lock that chose it, so that no call comes in between."""
        slot.state = State.UNLOADING
        return partial(self._unload, slot)

    def _unload(self, slot: Slot) -> None:
        """Waits for the calls in progress on a model that is UNLOADING, then frees its memory."""
        with self._changed:
            self._changed.wait_for(lambda: slot.leases == 0 or self.closing)
            if self.closing:
                return
            loaded, slot.loaded = slot.loaded, None
        self._tell()
        try:
            if loaded is not None:
                device = let_go(loaded)
                del loaded  # the last reference: what follows gives its memory back
                memory.give_back(device)
        except Exception as error:  # a broken device may refuse; the next load says whether it is
            log.error("model %s: its memory could not be given back: %s", slot.spec.name, describe(error))
        with self._changed:
            slot.state, slot.message = State.UNLOADED, ""
            slot.failures, slot.retry_at, slot.dead, slot.unload_asked = 0, 0.0, False, False
            if slot.waiting:  # they came while it was leaving
                self.want(slot)
            self._changed.notify_all()
        self._tell()

    def _tell(self) -> None:
        """Tells of a change, without the lock; a failure there must not end this thread."""
        try:
            self._on_change()
        except Exception as error:
            log.error("a change of a model could not be told: %s", describe(error))
