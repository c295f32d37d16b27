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

from rerank_grpc.cpus import OneCpu, use_those_of
from rerank_grpc.errors import ModelLoadError, ShuttingDown, describe
from rerank_grpc.registry import memory, residency
from rerank_grpc.registry.entry import RETRY_SECONDS, Entry, LoadedModel, failed, settle, still_loading
from rerank_grpc.registry.loading import Loader, Preparer, let_go, one_line
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
        entries: Sequence[Entry],
        changed: threading.Condition,
        load: Loader,
        prepare: Preparer,
        *,
        budget: int | None = None,
        idle_seconds: float | None = None,
        callers: OneCpu,
        on_change: Callable[[], None],
        on_hang: Callable[[], None],
    ) -> None:
        self._entries = entries
        self._changed = changed
        self._load_model = load
        self._prepare_model = prepare
        self._budget = budget
        self._idle_seconds = idle_seconds
        self._callers = callers
        self._on_change = on_change
        self._on_hang = on_hang
        self._queue: deque[Entry] = deque()
        self._trimmer = memory.Trimmer()
        self.closing = False
        self._thread = threading.Thread(target=self._run, name="keep-models", daemon=True)

    def start(self) -> None:
        """Starts to load what is not lazy, in its order, and to keep the rest in order."""
        preloaded = [entry for entry in self._entries if not entry.lazy]
        for entry in preloaded:
            entry.preloading = True
        threading.Thread(target=self._preload, args=[preloaded], name="preload-models", daemon=True).start()
        self._thread.start()

    def want(self, entry: Entry) -> None:
        """Has a model loaded unless it is on its way; under the lock."""
        if entry.state in (State.UNLOADED, State.FAILED) and not entry.dead:
            name = f"prepare-{entry.spec.name}"
            thread = threading.Thread(target=self._prepare, args=[entry], name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process may have no further thread
                entry.state, entry.message = State.FAILED, "no thread can be started to load it"
                entry.retry_at = monotonic() + RETRY_SECONDS
                settle(entry, still_loading(entry))
                return
            entry.state, entry.message = State.LOADING, ""

    def close(self) -> None:
        """Ends the thread; whoever waits for a model gets ShuttingDown."""
        with self._changed:
            self.closing = True
            for entry in self._entries:
                settle(entry, ShuttingDown("the server is stopping", retry_after=1.0))
            self._changed.notify_all()

    def died(self, entry: Entry, hung: bool) -> None:
        """Marks a model whose device is gone: it stays FAILED until an operator unloads it.

        A hang is told even of a model that is being loaded or has left: nothing but
        the process's end frees its thread and memory.
        """
        with self._changed:
            loaded = entry.loaded
            # An earlier engine of this model may have broken, or it is leaving anyway.
            if loaded is not None and not loaded.engine.alive and entry.state is State.READY:
                entry.state, entry.message, entry.dead = State.FAILED, "its device thread died or hangs", True
                entry.retry_at = math.inf
                self._changed.notify_all()
        if hung:  # first: it waits for nothing that a probe could hold up
            self._on_hang()
        self._tell()

    # Before the thread: files

    def _preload(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            with self._changed:
                if self.closing:
                    return
                if entry.state is not State.UNLOADED:
                    continue
                entry.state = State.LOADING
            self._prepare(entry)

    def _prepare(self, entry: Entry) -> None:
        use_those_of(self._thread)  # a caller's thread may have started this one
        try:
            expected = self._prepare_model(entry.spec)
        except Exception as error:
            self._fail(entry, error)
            return
        with self._changed:
            entry.local = True
            entry.memory_bytes = entry.memory_bytes or expected
            if entry is self._entries[0]:  # the default waits for no other
                self._queue.appendleft(entry)
            else:
                self._queue.append(entry)
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
                if asked := residency.unloadable(self._entries, now):
                    return self._leaving(asked)
                if self._queue:
                    return partial(self._load, self._queue.popleft())
                if stale := residency.idle(self._entries, now, self._idle_seconds):
                    log.info("model %s was not used for %g s", stale.spec.name, self._idle_seconds)
                    return self._leaving(stale)
                for entry in self._entries:
                    if entry.state is State.FAILED and entry.retry_at <= now and not entry.lazy:
                        entry.preloading = True  # no call waits for it: it must evict nothing
                        self.want(entry)
                if self._trimmer.due(now):
                    return self._trimmer.trim
                patience = residency.patience(self._entries, now, self._idle_seconds)
                self._changed.wait(
                    memory.TRIM_SECONDS if patience is None else min(patience, memory.TRIM_SECONDS)
                )
        return None

    def _load(self, entry: Entry) -> None:
        try:
            if not self._make_room(entry):
                return
            started = monotonic()
            loaded = self._load_model(entry.spec, partial(self.died, entry))
            seconds = monotonic() - started
            loaded.engine.callers = self._callers
            try:
                entry.memory_bytes = loaded.memory_bytes or entry.memory_bytes
                if self._make_room(entry):  # it may have turned out larger than expected
                    self._ready(entry, loaded, seconds)
                    return
                let_go(loaded)
            except BaseException:
                let_go(loaded)
                raise
        except Exception as error:
            self._fail(entry, error)

    def _make_room(self, entry: Entry) -> bool:
        """Evicts others until a model fits; False if it is only wanted where it disturbs nobody.

        Raises ModelLoadError if it can never fit.
        """
        while self._budget is not None:
            with self._changed:
                if self.closing:
                    raise ModelLoadError("the server is stopping")
                residency.check_size(entry, self._entries, self._budget)
                if residency.used_bytes(self._entries) + entry.memory_bytes <= self._budget:
                    break
                if entry.preloading and not entry.waiting and entry is not self._entries[0]:
                    self._leave_for_later(entry)
                    return False
                other, seconds = residency.victim(self._entries, monotonic())
                if other is None:
                    self._changed.wait(seconds)
                    continue
                unload = self._leaving(other)
            log.info("model %s makes room for %s", other.spec.name, entry.spec.name)
            unload()
        return True

    def _leave_for_later(self, entry: Entry) -> None:
        entry.state, entry.settled, entry.lazy = State.UNLOADED, True, True
        entry.preloading, entry.failures = False, 0
        self._changed.notify_all()
        log.warning(
            "model %s takes %s, for which --model-memory leaves no room: it is loaded when it is called",
            entry.spec.name,
            size(entry.memory_bytes),
        )

    def _ready(self, entry: Entry, loaded: LoadedModel, seconds: float) -> None:
        with self._changed:
            if self.closing or not loaded.engine.alive:
                raise ModelLoadError(f"model {entry.spec.name}: its device broke while it was loaded")
            entry.state, entry.message, entry.loaded = State.READY, "", loaded
            entry.failures, entry.retry_at, entry.preloading = 0, 0.0, False
            entry.ready_at = entry.last_used = monotonic()
            entry.load_seconds = seconds
            entry.settled = entry.was_ready = True
            # Leased before anybody else can evict it: who waited for it is served by it.
            entry.leases += len(entry.waiting)
            settle(entry, loaded)
            self._changed.notify_all()
        log.info("model %s is ready after %.1f s, %s", entry.spec.name, seconds, size(entry.memory_bytes))
        self._tell()

    def _fail(self, entry: Entry, error: Exception) -> None:
        text, name = one_line(entry.spec, error), entry.spec.name
        with self._changed:
            if self.closing:
                return
            entry.failures += 1
            hopeless = isinstance(error, residency.TooLarge)
            wait = math.inf if hopeless else residency.retry_seconds(entry.failures)
            entry.retry_at = monotonic() + wait
            entry.state, entry.message = State.FAILED, text
            entry.settled, entry.preloading = True, False
            settle(entry, failed(name))
            self._changed.notify_all()
        log.error("model %s failed to load, attempt %d: %s", name, entry.failures, text)
        self._tell()

    def _leaving(self, entry: Entry) -> Callable[[], None]:
        """Closes a model to new calls; under the lock that chose it, so that no call comes in between."""
        entry.state = State.UNLOADING
        return partial(self._unload, entry)

    def _unload(self, entry: Entry) -> None:
        """Waits for the calls in progress on a model that is UNLOADING, then frees its memory."""
        with self._changed:
            self._changed.wait_for(lambda: entry.leases == 0 or self.closing)
            if self.closing:
                return
            loaded, entry.loaded = entry.loaded, None
        self._tell()
        try:
            if loaded is not None:
                device = let_go(loaded)
                del loaded  # the last reference: what follows gives its memory back
                memory.give_back(device)
        except Exception as error:  # a broken device may refuse; the next load says whether it is
            log.error("model %s: its memory could not be given back: %s", entry.spec.name, describe(error))
        with self._changed:
            entry.state, entry.message = State.UNLOADED, ""
            entry.failures, entry.retry_at, entry.dead, entry.unload_asked = 0, 0.0, False, False
            if entry.waiting:  # they came while it was leaving
                self.want(entry)
            self._changed.notify_all()
        self._tell()

    def _tell(self) -> None:
        """Tells of a change, without the lock; a failure there must not end this thread."""
        try:
            self._on_change()
        except Exception as error:
            log.error("a change of a model could not be told: %s", describe(error))
