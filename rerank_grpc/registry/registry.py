"""Names, leases, loading and unloading of the configured models."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from rerank_grpc import __version__
from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.errors import Cancelled, DeadlineExceeded, ModelLoadError, ShuttingDown
from rerank_grpc.registry import eviction
from rerank_grpc.registry.keeper import Keeper
from rerank_grpc.registry.loading import Loader
from rerank_grpc.registry.names import Names
from rerank_grpc.registry.slot import LoadedModel, Slot, Ticket
from rerank_grpc.types import Call, Health, ModelInfo, State

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
        """Lets the model leave memory; for a lease without a `with` statement."""
        self._loaded = None  # an unload frees nothing that this still refers to
        self._registry.release(self._slot)


class Registry:
    """The configured models; the first is the default.

    `loader` makes models. `budget` bounds the bytes of all models in memory,
    `idle_seconds` how long an unused one stays there, `max_waiting` the calls
    that wait for models at once. `on_change` is called when a model has become
    READY, FAILED or UNLOADED, on the thread that made it so. `on_hang` is called
    when a device hangs, after all calls that waited for it have failed: nothing
    in this process brings it back.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        loader: Loader,
        *,
        budget: int | None = None,
        idle_seconds: float | None = None,
        max_waiting: int = 48,
        on_change: Callable[[], None] = lambda: None,
        on_hang: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = threading.Condition()
        self._started = monotonic()
        self._names = Names(specs)
        self._slots = [
            Slot(spec, self._names.aliases(index), local=loader.is_local(spec))
            for index, spec in enumerate(specs)
        ]
        self._max_waiting = max_waiting
        self._keeper = Keeper(
            self._slots,
            self._changed,
            loader,
            budget=budget,
            idle_seconds=idle_seconds,
            on_change=on_change,
            on_hang=on_hang,
        )

    @property
    def serving(self) -> bool:
        """Whether a call of the default model is answered, like ModelInfo.serving."""
        with self._changed:
            return self._slots[0].serving

    def start(self) -> None:
        """Starts to load the models that are not lazy in the background, in their order."""
        self._keeper.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Waits until every model that is not lazy has been READY or FAILED, or was left for later.

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
            return [self._describe(slot) for slot in self._slots]

    def info(self, name: str) -> ModelInfo:
        """Describes one model by name or alias ("" is the default); raises UnknownModel."""
        with self._changed:
            return self._describe(self._find(name))

    def health(self, name: str) -> Health:
        """Tells whether a model can be called now, and how full its queue is; raises UnknownModel."""
        with self._changed:
            slot = self._find(name)
            info, loaded = self._describe(slot), slot.loaded
        engine = loaded.engine if loaded else None
        return Health(
            model=info.name,
            state=info.state,
            version=__version__,
            uptime_seconds=monotonic() - self._started,
            queue_tokens=engine.queued_tokens if engine else 0,
            queue_capacity_tokens=engine.settings.max_queue_tokens if engine else 0,
            tokens_per_second=engine.tokens_per_second if engine else 0.0,
            serving=info.serving,
        )

    def lease_now(self, name: str) -> Lease | None:
        """Leases a READY model; None for one that is broken, or that `lease` would wait for."""
        with self._changed:
            slot = self._find(name)
            self._check_open()
            if slot.state is not State.READY or slot.loaded is None:
                return None
            slot.leases += 1
            slot.last_used = monotonic()
            return Lease(self, slot, slot.loaded)

    def lease(self, name: str, call: Call, *, force: bool = False) -> Lease:
        """Keeps a model in memory until the lease is left, and has it loaded if it is not there.

        Waits for the loading as long as the call's deadline leaves time.
        `force` tries a FAILED model again at once.

        Raises UnknownModel, ModelLoading if the time is not enough, ModelFailed,
        Cancelled or ShuttingDown.
        """
        with self._changed:
            if ready := self.lease_now(name):
                return ready
            slot = self._find(name)
            ticket = self._enter(slot, call.deadline, force=force)
        return Lease(self, slot, self._await(slot, ticket, call))

    def release(self, slot: Slot) -> None:
        """Ends one lease of a model."""
        with self._changed:
            self._leave(slot)

    def load(self, name: str, call: Call) -> ModelInfo:
        """Brings a model into memory, despite earlier failures; raises like `lease`."""
        with self.lease(name, call, force=True):
            return self.info(name)

    def unload(self, name: str, *, deadline: float) -> ModelInfo:
        """Waits for the calls in progress on a model, then frees its memory.

        The model stays configured, and its next call loads it again. A model
        that has just been loaded first stays for as long as that took. Raises
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
            return self._describe(slot)

    def close(self) -> None:
        """Refuses further leases and ends every engine."""
        self._keeper.close()
        with self._changed:
            loaded = [slot.loaded for slot in self._slots if slot.loaded]
        for model in loaded:
            model.engine.close()

    def _find(self, name: str) -> Slot:
        return self._slots[self._names.find(name)]

    def _describe(self, slot: Slot) -> ModelInfo:
        return slot.describe(is_default=slot is self._slots[0])

    def _check_open(self) -> None:
        if self._keeper.closing:
            raise ShuttingDown("the server is stopping", retry_after=1.0)

    def _enter(self, slot: Slot, deadline: float, *, force: bool) -> Ticket:
        """Has a model loaded, and adds a ticket to those that wait for it; under the lock."""
        now = monotonic()
        if slot.state is State.FAILED and (slot.dead or (now < slot.retry_at and not force)):
            raise slot.failed()
        self._keeper.want(slot)
        if slot.state is State.FAILED:  # nothing could be started
            raise slot.still_loading()
        waiting = sum(len(each.waiting) for each in self._slots)
        if now + slot.load_seconds >= deadline or waiting >= self._max_waiting:
            raise slot.still_loading()
        ticket = Ticket()
        slot.waiting.append(ticket)
        return ticket

    def _await(self, slot: Slot, ticket: Ticket, call: Call) -> LoadedModel:
        call.on_cancel(ticket.cancel)
        left = call.deadline - monotonic()
        ticket.wait(left - margin(left))
        with self._changed:
            if ticket in slot.waiting:
                slot.waiting.remove(ticket)
            # The call refers to the ticket until its end; the ticket must not refer to the model as long.
            loaded, ticket.loaded = ticket.loaded, None
            if loaded is not None and not ticket.cancelled:
                return loaded
            if loaded is not None:
                self._leave(slot)  # the caller left at the very moment it was let in
            cancelled = Cancelled("the caller cancelled") if ticket.cancelled else None
            raise ticket.error or cancelled or slot.still_loading()

    def _leave(self, slot: Slot) -> None:
        slot.leases -= 1
        slot.last_used = monotonic()
        if not slot.leases and slot.state is State.UNLOADING:
            self._changed.notify_all()


def margin(left: float) -> float:
    """Returns how long before its deadline a waiting call is answered, because the answer has to travel."""
    return min(MOST_MARGIN_SECONDS, max(LEAST_MARGIN_SECONDS, left / 10), left / 2)
