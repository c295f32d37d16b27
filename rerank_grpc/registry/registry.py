"""Which models exist, in which state each is, and who uses them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.errors import (
    Cancelled,
    DeadlineExceeded,
    ModelLoadError,
    RerankError,
    ShuttingDown,
)
from rerank_grpc.registry import eviction
from rerank_grpc.registry.keeper import Keeper
from rerank_grpc.registry.loading import Finder, Loader, Preparer, here, ready_at_once
from rerank_grpc.registry.names import Names
from rerank_grpc.registry.slot import LoadedModel, OnCancel, Slot, Ticket, failed, never, still_loading
from rerank_grpc.types import ModelInfo, State

# A call that waits for a model is answered a tenth of its time before its deadline, within these bounds.
LEAST_MARGIN_SECONDS = 0.05
MOST_MARGIN_SECONDS = 1.0


class Lease:
    """Keeps a model in memory while a `with` statement runs, and gives it to that."""

    __slots__ = ("_loaded", "_registry", "_slot")

    def __init__(self, registry: Registry, slot: Slot, loaded: LoadedModel) -> None:
        self._registry = registry
        self._slot = slot
        self._loaded: LoadedModel | None = loaded

    def __enter__(self) -> LoadedModel:
        assert self._loaded is not None
        return self._loaded

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Lets the model leave memory; for a lease that no `with` statement has been given."""
        self._loaded = None  # an unload frees nothing that this still holds
        self._registry.release(self._slot)


class Registry:
    """The configured models; the first is the default.

    `load` makes a LoadedModel of a spec, `prepare` brings its files here before
    that, and `find` tells whether they are here. `budget` bounds the bytes of
    all models in memory, `idle_seconds` how long an unused one stays there,
    `max_waiting` how many calls may wait for models at once. `on_change` is
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
        on_change: Callable[[], None] = lambda: None,
        on_hang: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = threading.Condition()
        self._names = Names(specs)
        self._slots = [
            Slot(spec, self._names.aliases(index), local=find(spec)) for index, spec in enumerate(specs)
        ]
        self._max_waiting = max_waiting
        self._keeper = Keeper(
            self._slots,
            self._changed,
            load,
            prepare,
            budget=budget,
            idle_seconds=idle_seconds,
            on_change=on_change,
            on_hang=on_hang,
        )

    @property
    def default(self) -> str:
        """The name of the default model."""
        return self._slots[0].spec.name

    @property
    def serving(self) -> bool:
        """Whether a call of the default model is answered, as ModelInfo.serving says it of each."""
        with self._changed:
            return self._slots[0].serving

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
                lambda: all(slot.settled or slot.lazy for slot in self._slots), timeout
            )
            if self._slots[0].state is State.FAILED:
                raise ModelLoadError(self._slots[0].message)
        return settled

    def models(self) -> list[ModelInfo]:
        """Describes every model, the default first."""
        with self._changed:
            return [slot.describe(is_default=slot is self._slots[0]) for slot in self._slots]

    def info(self, name: str) -> ModelInfo:
        """Describes one model by name or alias ("" is the default); raises UnknownModel."""
        with self._changed:
            slot = self._find(name)
            return slot.describe(is_default=slot is self._slots[0])

    def loaded(self, name: str) -> LoadedModel | None:
        """Returns a model if it is in memory, without leasing it; raises UnknownModel."""
        with self._changed:
            return self._find(name).loaded

    def lease_now(self, name: str) -> Lease | None:
        """Leases a model that is READY; None for one that is broken, or that `lease` would wait for."""
        with self._changed:
            slot = self._find(name)
            self._check_open()
            if slot.state is not State.READY or slot.loaded is None:
                return None
            slot.leases += 1
            slot.last_used = monotonic()
            return Lease(self, slot, slot.loaded)

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
            slot = self._find(name)
            ticket = self._enter(slot, deadline, force=force)
            loaded = slot.loaded
        if ticket is not None:
            loaded = self._await(slot, ticket, deadline, on_cancel)
        assert loaded is not None
        return Lease(self, slot, loaded)

    def release(self, slot: Slot) -> None:
        """Ends one lease of a model."""
        with self._changed:
            self._leave(slot)

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
            slot = self._find(name)
            if slot.state is not State.UNLOADED:
                slot.unload_asked = True
                self._changed.notify_all()
            left = deadline - monotonic()
            patience = None if left == math.inf else left - margin(left)
            done = self._changed.wait_for(lambda: not slot.unload_asked or self._keeper.closing, patience)
            self._check_open()
            if not done:
                raise DeadlineExceeded(eviction.why_still_loaded(slot, monotonic()))
            return slot.describe(is_default=slot is self._slots[0])

    def close(self) -> None:
        """Refuses further leases and ends every engine."""
        self._keeper.close()
        with self._changed:
            loaded = [slot.loaded for slot in self._slots if slot.loaded]
        for model in loaded:
            model.engine.close()

    def _find(self, name: str) -> Slot:
        return self._slots[self._names.find(name)]

    def _check_open(self) -> None:
        if self._keeper.closing:
            raise ShuttingDown("the server is stopping", retry_after=1.0)

    def _enter(self, slot: Slot, deadline: float, *, force: bool) -> Ticket | None:
        """Leases a model that is READY, or returns a ticket to wait with; under the lock."""
        self._check_open()
        now = monotonic()
        if slot.state is State.READY:
            slot.leases += 1
            slot.last_used = now
            return None
        if slot.state is State.FAILED and (slot.dead or (now < slot.retry_at and not force)):
            raise failed(slot.spec.name)
        self._keeper.want(slot)
        if slot.state is State.FAILED:  # nothing could be started
            raise still_loading(slot)
        waiting = sum(len(each.waiting) for each in self._slots)
        if now + slot.load_seconds >= deadline or waiting >= self._max_waiting:
            raise still_loading(slot)
        ticket = Ticket()
        slot.waiting.append(ticket)
        return ticket

    def _await(self, slot: Slot, ticket: Ticket, deadline: float, on_cancel: OnCancel) -> LoadedModel:
        on_cancel(lambda: ticket.settle(Cancelled("the caller cancelled")))
        left = deadline - monotonic()
        answer = ticket.wait(left - margin(left))
        with self._changed:
            if isinstance(answer, LoadedModel):
                return answer
            if ticket in slot.waiting:
                slot.waiting.remove(ticket)
            while (granted := ticket.wait(0)) is not None:  # a cancellation may be told twice
                if isinstance(granted, LoadedModel) and answer is None:
                    return granted
                if isinstance(granted, LoadedModel):
                    self._leave(slot)  # the caller left at the very moment it was let in
            raise answer if isinstance(answer, RerankError) else still_loading(slot)

    def _leave(self, slot: Slot) -> None:
        slot.leases -= 1
        slot.last_used = monotonic()
        if not slot.leases and slot.state is State.UNLOADING:
            self._changed.notify_all()


def margin(left: float) -> float:
    """How long before its deadline a call that waits for a model is answered: the answer has to travel."""
    return min(MOST_MARGIN_SECONDS, max(LEAST_MARGIN_SECONDS, left / 10), left / 2)
