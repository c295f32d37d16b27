"""Which models exist, in which state each is, and who uses them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.cpus import OneCpu
from rerank_grpc.errors import (
    Cancelled,
    DeadlineExceeded,
    ModelLoadError,
    RerankError,
    ShuttingDown,
)
from rerank_grpc.registry import residency
from rerank_grpc.registry.entry import Entry, LoadedModel, OnCancel, Ticket, failed, never, still_loading
from rerank_grpc.registry.keeper import Keeper
from rerank_grpc.registry.loading import Finder, Loader, Preparer, here, ready_at_once
from rerank_grpc.registry.names import Names
from rerank_grpc.types import ModelInfo, State

# A call that waits for a model is answered a tenth of its time before its deadline, within these bounds.
LEAST_MARGIN_SECONDS = 0.05
MOST_MARGIN_SECONDS = 1.0


class Lease:
    """Keeps a model in memory while a `with` statement runs, and gives it to that."""

    __slots__ = ("_entry", "_loaded", "_registry")

    def __init__(self, registry: Registry, entry: Entry, loaded: LoadedModel) -> None:
        self._registry = registry
        self._entry = entry
        self._loaded: LoadedModel | None = loaded

    def __enter__(self) -> LoadedModel:
        assert self._loaded is not None
        return self._loaded

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Lets the model leave memory; for a lease that no `with` statement has been given."""
        self._loaded = None  # an unload frees nothing that this still holds
        self._registry.release(self._entry)


class Registry:
    """The configured models; the first is the default.

    `load` makes a LoadedModel of a spec, `prepare` brings its files here before
    that, and `find` tells whether they are here. `budget` bounds the bytes of
    all models in memory, `idle_seconds` how long an unused one stays there,
    `max_waiting` how many calls may wait for models at once. `callers` is the
    CPU of the threads that call, if they are bound to one. `on_change` is
    called when a model has become READY, FAILED or UNLOADED, on the thread that
    made it so. `on_hang` is called when a device hangs, after all calls that
    waited for it have failed: nothing in this process brings it back.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        load: Loader,
        *,
        prepare: Preparer = ready_at_once,
        find: Finder = here,
        budget: int | None = None,
        idle_seconds: float | None = None,
        max_waiting: int = 48,
        callers: OneCpu | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_hang: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = threading.Condition()
        self._names = Names(specs)
        self._entries = [
            Entry(spec, self._names.aliases(index), local=find(spec)) for index, spec in enumerate(specs)
        ]
        self._max_waiting = max_waiting
        self._keeper = Keeper(
            self._entries,
            self._changed,
            load,
            prepare,
            budget=budget,
            idle_seconds=idle_seconds,
            callers=callers or OneCpu(None),
            on_change=on_change,
            on_hang=on_hang,
        )

    @property
    def default(self) -> str:
        """The name of the default model."""
        return self._entries[0].spec.name

    @property
    def serving(self) -> bool:
        """Whether a call of the default model is answered, as ModelInfo.serving says it of each."""
        with self._changed:
            return self._entries[0].serving

    def start(self) -> None:
        """Starts to load the models that are not lazy in the background, in their order."""
        self._keeper.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Waits until every model that is not lazy has been READY or FAILED, or found no room.

        False if `timeout` seconds were not enough. Raises ModelLoadError if the
        default model is FAILED: without it there is nothing to serve.
        """
        with self._changed:
            settled = self._changed.wait_for(
                lambda: all(entry.settled or entry.lazy for entry in self._entries), timeout
            )
            if self._entries[0].state is State.FAILED:
                raise ModelLoadError(self._entries[0].message)
        return settled

    def models(self) -> list[ModelInfo]:
        """Describes every model, the default first."""
        with self._changed:
            return [entry.describe(is_default=entry is self._entries[0]) for entry in self._entries]

    def info(self, name: str) -> ModelInfo:
        """Describes one model by name or alias ("" is the default); raises UnknownModel."""
        with self._changed:
            entry = self._find(name)
            return entry.describe(is_default=entry is self._entries[0])

    def loaded(self, name: str) -> LoadedModel | None:
        """Returns a model if it is in memory, without leasing it; raises UnknownModel."""
        with self._changed:
            return self._find(name).loaded

    def lease_now(self, name: str) -> Lease | None:
        """Leases a model that is READY; None for one that is broken, or that `lease` would wait for."""
        with self._changed:
            entry = self._find(name)
            self._check_open()
            if entry.state is not State.READY or entry.loaded is None:
                return None
            entry.leases += 1
            entry.last_used = monotonic()
            return Lease(self, entry, entry.loaded)

    def lease(
        self,
        name: str,
        *,
        deadline: float = math.inf,
        on_cancel: OnCancel = never,
        force: bool = False,
    ) -> Lease:
        """Keeps a model in memory until the lease is left, and has it loaded if it is not there.

        Waits for the loading as long as the deadline (in the seconds of
        time.monotonic) leaves time. `force` tries a FAILED model again at once.

        Raises UnknownModel, ModelLoading if the time is not enough, ModelFailed,
        Cancelled or ShuttingDown.
        """
        with self._changed:
            entry = self._find(name)
            ticket = self._enter(entry, deadline, force=force)
            loaded = entry.loaded
        if ticket is not None:
            loaded = self._await(entry, ticket, deadline, on_cancel)
        assert loaded is not None
        return Lease(self, entry, loaded)

    def release(self, entry: Entry) -> None:
        """Ends one lease of a model."""
        with self._changed:
            self._leave(entry)

    def load(self, name: str, *, deadline: float, on_cancel: OnCancel = never) -> ModelInfo:
        """Brings a model into memory, whatever its failures before; raises like `lease`."""
        with self.lease(name, deadline=deadline, on_cancel=on_cancel, force=True):
            return self.info(name)

    def unload(self, name: str, *, deadline: float) -> ModelInfo:
        """Waits for the calls in progress on a model, then frees its memory.

        It stays configured, and is loaded again when it is called. A model that
        has just been loaded first stays for as long as that took. Raises
        UnknownModel, DeadlineExceeded (it is unloaded nevertheless) or ShuttingDown.
        """
        with self._changed:
            entry = self._find(name)
            if entry.state is not State.UNLOADED:
                entry.unload_asked = True
                self._changed.notify_all()
            left = deadline - monotonic()
            patience = None if left == math.inf else left - margin(left)
            done = self._changed.wait_for(lambda: not entry.unload_asked or self._keeper.closing, patience)
            self._check_open()
            if not done:
                raise DeadlineExceeded(residency.why_still_loaded(entry, monotonic()))
            return entry.describe(is_default=entry is self._entries[0])

    def close(self) -> None:
        """Refuses further leases and ends every engine."""
        self._keeper.close()
        with self._changed:
            loaded = [entry.loaded for entry in self._entries if entry.loaded]
        for model in loaded:
            model.engine.close()

    def _find(self, name: str) -> Entry:
        return self._entries[self._names.find(name)]

    def _check_open(self) -> None:
        if self._keeper.closing:
            raise ShuttingDown("the server is stopping", retry_after=1.0)

    def _enter(self, entry: Entry, deadline: float, *, force: bool) -> Ticket | None:
        """Leases a model that is READY, or returns a ticket to wait with; under the lock."""
        self._check_open()
        now = monotonic()
        if entry.state is State.READY:
            entry.leases += 1
            entry.last_used = now
            return None
        if entry.state is State.FAILED and (entry.dead or (now < entry.retry_at and not force)):
            raise failed(entry.spec.name)
        self._keeper.want(entry)
        if entry.state is State.FAILED:  # nothing could be started
            raise still_loading(entry)
        waiting = sum(len(each.waiting) for each in self._entries)
        if now + entry.load_seconds >= deadline or waiting >= self._max_waiting:
            raise still_loading(entry)
        ticket = Ticket()
        entry.waiting.append(ticket)
        return ticket

    def _await(self, entry: Entry, ticket: Ticket, deadline: float, on_cancel: OnCancel) -> LoadedModel:
        on_cancel(lambda: ticket.settle(Cancelled("the caller cancelled")))
        left = deadline - monotonic()
        answer = ticket.wait(left - margin(left))
        with self._changed:
            if isinstance(answer, LoadedModel):
                return answer
            if ticket in entry.waiting:
                entry.waiting.remove(ticket)
            while (granted := ticket.wait(0)) is not None:  # a cancellation may be told twice
                if isinstance(granted, LoadedModel) and answer is None:
                    return granted
                if isinstance(granted, LoadedModel):
                    self._leave(entry)  # the caller left at the very moment it was let in
            raise answer if isinstance(answer, RerankError) else still_loading(entry)

    def _leave(self, entry: Entry) -> None:
        entry.leases -= 1
        entry.last_used = monotonic()
        if not entry.leases and entry.state is State.UNLOADING:
            self._changed.notify_all()


def margin(left: float) -> float:
    """How long before its deadline a call that waits for a model is answered: the answer has to travel."""
    return min(MOST_MARGIN_SECONDS, max(LEAST_MARGIN_SECONDS, left / 10), left / 2)
