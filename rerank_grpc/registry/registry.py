"""Names, leases, loading and unloading of the configured models."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Sequence
from time import monotonic

import torch

from rerank_grpc import __version__
from rerank_grpc.config.settings import ANY_NAME, ModelSpec
from rerank_grpc.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    ModelLoadError,
    ShuttingDown,
    UnknownModel,
)
from rerank_grpc.registry import eviction, memory
from rerank_grpc.registry.keeper import Keeper
from rerank_grpc.registry.loading import Loader
from rerank_grpc.registry.memory import UNBOUNDED, ModelBudget
from rerank_grpc.registry.slot import LoadedModel, Slot, Ticket
from rerank_grpc.telemetry.records import BatchSink
from rerank_grpc.telemetry.snapshots import BuildSnapshot, DeviceSnapshot, ModelSnapshot
from rerank_grpc.types import Call, Health, ModelInfo, State

END_SECONDS = 10.0  # for which a command waits, before it ends, for a load that has failed or is cut off
# infinity-client sends it where its caller names no model.
NOT_SPECIFIED = "default/not-specified"


class ModelNames:
    """The models' indices by name; "" is the first.

    A source is a name too, with and without its @REVISION, and so is the hub id, unless another
    model has that name already; a whole source wins over a part. A name that two models would have in
    this way is no name of either. Hub ids are listed among `aliases`, paths and ANY_NAME never.
    Raises ConfigurationError if two models are configured with one name.
    """

    def __init__(self, specs: Sequence[ModelSpec], hub_ids: Sequence[str]) -> None:
        self._specs = specs
        self._found = {"": 0}
        self._shared: dict[str, list[int]] = {}
        for index, spec in enumerate(specs):
            for name in (spec.name, *spec.aliases):
                if self._found.setdefault(name, index) != index:
                    raise ConfigurationError(f"two models are named {name!r}: rename one")
        self._any = self._found.pop(ANY_NAME, None)
        configured = frozenset(self._found)
        sources = list(zip(specs, hub_ids, strict=True))
        self._add([_whole_names(spec, id_) for spec, id_ in sources])
        self._add([{_unpinned(spec), id_} for spec, id_ in sources])
        self._found.setdefault(NOT_SPECIFIED, 0)
        listed = [id_ if self._found.get(id_) == index else "" for index, id_ in enumerate(hub_ids)]
        self.aliases = [
            (*(alias for alias in spec.aliases if alias != ANY_NAME), *({id_} - configured))
            for spec, id_ in zip(specs, listed, strict=True)
        ]
        names = zip(specs, self.aliases, strict=True)
        self._known = ", ".join(name for spec, aliases in names for name in (spec.name, *aliases))

    def _add(self, names: Sequence[Collection[str]]) -> None:
        """Adds names of each model; those that several would have are kept apart."""
        for name in set().union(*names) - self._found.keys() - self._shared.keys():
            owners = [index for index, own in enumerate(names) if name in own]
            if len(owners) == 1:
                self._found[name] = owners[0]
            else:
                self._shared[name] = owners

    def configured(self, name: str, *, exact: bool = False) -> str:
        """Returns a model's configured name, "" for an unknown one. If `exact`, ANY_NAME takes no name."""
        index = self._found.get(name, None if exact else self._any)
        return "" if index is None else self._specs[index].name

    def find(self, name: str, *, exact: bool = False) -> int:
        """Returns a model's index; raises UnknownModel. If `exact`, ANY_NAME takes no name."""
        index = self._found.get(name, None if exact else self._any)
        if index is None:
            # The unknown name is the caller's text: it goes back to the caller, cut, and into no log.
            raise UnknownModel(
                self._why_unknown(name), metadata={"model": name[:100], "known_models": self._known}
            )
        return index

    def _why_unknown(self, name: str) -> str:
        if name in self._shared:
            owners = " or ".join(self._specs[index].name for index in self._shared[name])
            return f"{name[:100]!r} is the source of several models: name {owners}"
        return f"no model is named {name[:100]!r}; known: {self._known}"


def _whole_names(spec: ModelSpec, hub_id: str) -> Collection[str]:
    return {spec.source} if "@" in spec.source else {spec.source, hub_id}


def _unpinned(spec: ModelSpec) -> str:
    return spec.source.partition("@")[0]


class Lease:
    """Keeps a model in memory while a `with` statement runs, or until `leave`."""

    def __init__(self, registry: Registry, slot: Slot, loaded: LoadedModel) -> None:
        self._registry, self._slot = registry, slot
        self._loaded: LoadedModel | None = loaded

    def __enter__(self) -> LoadedModel:
        assert self._loaded is not None
        return self._loaded

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Lets the model leave memory."""
        self._loaded = None  # an unload frees nothing that this still refers to
        self._registry.release(self._slot)


class Registry:
    """The configured models; the first is the default.

    `budget` bounds the bytes of all models in memory, `max_waiting` the calls that wait for models at once.
    `on_change` is called when a model has become READY, FAILED or UNLOADED, on the thread that made it so;
    `on_hang` when a device hangs, after all calls that waited for it have failed; `on_batch` with each batch
    of a READY model.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        loader: Loader,
        *,
        budget: ModelBudget = UNBOUNDED,
        idle_seconds: float | None = None,
        max_waiting: int = 48,
        on_change: Callable[[], None] = lambda: None,
        on_hang: Callable[[], None] = lambda: None,
        on_batch: BatchSink | None = None,
    ) -> None:
        self._changed = threading.Condition()
        self._started = monotonic()
        hub_ids = [loader.hub_id(spec) for spec in specs]
        self._names = ModelNames(specs, hub_ids)
        self.configured_name = self._names.configured  # of a model, by any of its names
        self._slots = [
            Slot(spec, aliases, is_default=spec is specs[0], local=loader.is_local(spec), hub_id=hub_id)
            for spec, aliases, hub_id in zip(specs, self._names.aliases, hub_ids, strict=True)
        ]
        self._max_waiting = max_waiting
        self._keeper = Keeper(
            *(self._slots, self._changed, loader, on_change, on_hang),
            budget=budget,
            idle_seconds=idle_seconds,
            on_batch=on_batch,
        )

    @property
    def serving(self) -> bool:
        """Whether a call of the default model is answered, like ModelInfo.serving."""
        with self._changed:
            return self._slots[0].serving

    def start(self) -> None:
        """Starts to load the models that are not lazy, in the background."""
        self._keeper.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Waits until every model that is not lazy has been READY or FAILED; False after `timeout` seconds.

        Raises ModelLoadError if the default model is FAILED.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: all(slot.settled for slot in self._slots), timeout)
            if self._slots[0].state is State.FAILED:
                raise ModelLoadError(self._slots[0].message)
        return done

    def models(self) -> list[ModelInfo]:
        """Describes every model, the default first."""
        with self._changed:
            return [slot.describe() for slot in self._slots]

    def info(self, name: str) -> ModelInfo:
        """Describes one model by name or alias ("" is the default); raises UnknownModel."""
        with self._changed:
            return self._find(name).describe()

    def health(self, name: str) -> Health:
        """Tells whether a model can be called now, and how full its queue is; raises UnknownModel."""
        with self._changed:
            slot = self._find(name)
            info, engine = slot.describe(), slot.loaded and slot.loaded.engine
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

    def snapshots(self) -> list[ModelSnapshot]:
        """Describes every model and its queue for a scrape, the default first."""
        now = monotonic()
        with self._changed:
            return [slot.snapshot(now) for slot in self._slots]

    def devices(self) -> list[DeviceSnapshot]:
        """Tells the memory of the devices that models have been loaded on."""
        names = dict.fromkeys(slot.device for slot in self._slots if slot.device)
        memories = ((name, memory.device_bytes(torch.device(name))) for name in names)
        return [DeviceSnapshot(name, *found) for name, found in memories if found]

    def build(self) -> BuildSnapshot:
        """Tells the release, and what the default model was last loaded on."""
        default = self._slots[0]
        return BuildSnapshot(__version__, torch.__version__, default.device, default.precision)

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
        """Leases a model, and has it loaded if it is not in memory; `force` tries a FAILED one at once.

        Raises UnknownModel, ModelLoading if the deadline leaves no time to wait
        for it, ModelFailed, Cancelled or ShuttingDown.
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
            slot.leases -= 1
            slot.last_used = monotonic()
            if not slot.leases and slot.state is State.UNLOADING:
                self._changed.notify_all()

    def load(self, name: str, call: Call) -> ModelInfo:
        """Brings a model into memory, despite earlier failures; raises like `lease`.

        Neither here nor in `unload` does a name mean a model by ANY_NAME: a slip would move another one.
        """
        self._names.find(name, exact=True)
        with self.lease(name, call, force=True):
            return self.info(name)

    def unload(self, name: str, *, deadline: float) -> ModelInfo:
        """Frees a model's memory after its calls, once it has stayed for as long as its loading took.

        Raises UnknownModel, DeadlineExceeded (it is unloaded nevertheless) or ShuttingDown.
        """
        with self._changed:
            slot = self._slots[self._names.find(name, exact=True)]
            if slot.state is not State.UNLOADED:
                slot.unload_asked = True
                self._changed.notify_all()
            seconds = seconds_to_wait(deadline - monotonic())
            done = self._changed.wait_for(lambda: not slot.unload_asked or self._keeper.closing, seconds)
            self._check_open()
            if not done:
                raise DeadlineExceeded(eviction.why_still_loaded(slot, monotonic()))
            return slot.describe()

    def close(self, *, wait_seconds: float = 0.0) -> None:
        """Refuses further leases and ends every engine; waits so long at most for a load in progress.

        A process that ends by Python's own exit has to wait: the exit would stop a thread within torch, which
        aborts the process.
        """
        self._keeper.close(wait_seconds)
        with self._changed:
            loaded = [slot.loaded for slot in self._slots if slot.loaded]
        for model in loaded:
            model.engine.close()

    def _find(self, name: str) -> Slot:
        return self._slots[self._names.find(name)]

    def _check_open(self) -> None:
        if self._keeper.closing:
            raise ShuttingDown("the server is stopping", retry_after=1.0)

    def _enter(self, slot: Slot, deadline: float, *, force: bool) -> Ticket:
        now = monotonic()
        if slot.state is State.FAILED and (slot.dead or (now < slot.retry_at and not force)):
            raise slot.failed()
        self._keeper.want(slot)
        unstarted = slot.state is State.FAILED
        waiting = sum(len(each.waiting) for each in self._slots)
        if unstarted or now + slot.load_seconds >= deadline or waiting >= self._max_waiting:
            raise slot.still_loading()
        ticket = Ticket()
        slot.waiting.append(ticket)
        return ticket

    def _await(self, slot: Slot, ticket: Ticket, call: Call) -> LoadedModel:
        call.on_cancel(ticket.cancel)
        ticket.wait(seconds_to_wait(call.deadline - monotonic()))
        with self._changed:
            if ticket in slot.waiting:
                slot.waiting.remove(ticket)
            # The call refers to the ticket until its end; the ticket must not refer to the model as long.
            answer, ticket.answer = ticket.answer, None
            if isinstance(answer, LoadedModel) and not ticket.cancelled:
                return answer
            if isinstance(answer, LoadedModel):
                self.release(slot)  # the caller left at the very moment it was let in
            elif answer is not None:
                raise answer
            raise Cancelled("the caller cancelled") if ticket.cancelled else slot.still_loading()


def seconds_to_wait(left: float) -> float | None:
    """Returns the seconds a call may wait: 10% (50 ms to 1 s) go to its answer; None without a deadline."""
    return None if left == math.inf else max(0.0, left - min(1.0, max(0.05, left / 10), left / 2))
