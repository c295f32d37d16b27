"""One configured model as it is now, and the calls that wait for it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from queue import Empty, SimpleQueue

from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.engine.engine import Engine
from rerank_grpc.errors import ModelFailed, ModelLoading, RerankError, shortened
from rerank_grpc.models.base import ModelCard
from rerank_grpc.telemetry.snapshots import ModelSnapshot
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import CalibrationInfo, ModelInfo, State

RETRY_SECONDS = 1.0  # the hint when to call again for a model that has never been loaded
# The most of a reason that an error carries, three times over: gRPC drops trailers of more than 8 KiB.
REASON_BYTES = 500


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory; `memory_bytes` is the device's growth by it and the most that its prefixes take.

    On a CPU `batch_bytes` are those of its largest batch, which come on top. `calibration` maps its logits to
    probabilities, where there is one.
    """

    name: str
    card: ModelCard
    tokenizer: Tokenizer
    engine: Engine
    memory_bytes: int = 0
    batch_bytes: int = 0
    calibration: Calibration | None = None


class Ticket:
    """One call's wait for a model.

    A wake-up only wakes. The answer stands on the ticket, under the registry's lock: a model, leased already,
    or an error. `cancel` takes no lock, because gRPC calls it on threads of its own.
    """

    def __init__(self) -> None:
        self.answer: LoadedModel | RerankError | None = None
        self.cancelled = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def cancel(self) -> None:
        """Wakes the call because its caller has left; harmless after the wait."""
        self.cancelled = True
        self.wake()

    def wake(self) -> None:
        self._wakeups.put(None)

    def wait(self, seconds: float | None) -> None:
        with suppress(Empty):
            self._wakeups.get(timeout=seconds)


@dataclass(slots=True, eq=False)
class Slot:
    """One configured model, under the registry's lock; times are time.monotonic's."""

    spec: ModelSpec
    aliases: tuple[str, ...] = ()
    _: KW_ONLY
    is_default: bool = False
    local: bool  # whether its files are on this machine
    hub_id: str = ""
    lazy: bool = field(init=False)  # only a call loads it: as configured, or because it was left for later
    state: State = State.UNLOADED
    message: str = ""  # ModelInfo.state_message
    loaded: LoadedModel | None = None
    leases: int = 0  # calls that use it now
    waiting: list[Ticket] = field(default_factory=list)
    last_used: float = 0.0  # when a call took or returned it
    ready_at: float = 0.0
    load_seconds: float = 0.0
    memory_bytes: int = 0  # before the first load, the expected ones
    batch_bytes: int = 0  # of its largest batch, on a CPU; known once it has been loaded
    failures: int = 0  # failed loads in a row
    retry_at: float = 0.0
    settled: bool = field(init=False)  # it has been READY or FAILED, or only a call loads it
    was_ready: bool = False
    preloading: bool = False  # it is loaded without having been called
    unload_asked: bool = False  # an operator wants it out of memory
    dead: bool = False  # its device broke; only an unload helps
    evictions: int = 0  # times that it left memory without being told to
    past_busy_seconds: float = 0.0  # of the device, for engines that it no longer has
    device: str = ""  # those of the last load, which outlast an unload
    precision: str = ""

    def __post_init__(self) -> None:
        self.lazy = self.settled = self.spec.lazy

    @property
    def serving(self) -> bool:
        """Whether a call is answered: the model is in memory, or the call brings it there.

        A model that is loaded at the start serves after its first warm-up. A
        failed model serves when it is READY again, and not while it is retried.
        """
        return self.state is not State.FAILED and not self.failures and (self.was_ready or self.lazy)

    @property
    def evictable(self) -> bool:
        """Whether the model leaves memory when it is idle or another needs the memory."""
        return self.state is State.READY and not self.spec.pinned

    def describe(self) -> ModelInfo:
        """Describes the model as ListModels does."""
        info = ModelInfo(
            name=self.spec.name,
            aliases=self.aliases,
            state=self.state,
            state_message=self.message,
            is_default=self.is_default,
            local_available=self.local,
            pinned=self.spec.pinned,
            serving=self.serving,
            hub_id=self.hub_id,
        )
        if self.loaded is None:
            return info
        card = self.loaded.card
        return replace(
            info,
            memory_bytes=self.memory_bytes,
            revision=card.revision,
            family=card.family,
            device=card.device,
            precision=card.precision,
            attention=card.attention_label,
            max_tokens=card.max_tokens,
            max_batch_tokens=self.loaded.engine.max_batch_tokens,
            scoring=card.scoring,
            accepts_instruction=card.accepts_instruction,
            activation=card.activation,
            pooling=card.pooling,
            prompt_source=card.reading.prompt.source if card.reading.prompt else "",
            calibration=_info_of(self.loaded.calibration) if self.loaded.calibration else None,
        )

    def snapshot(self, now: float) -> ModelSnapshot:
        """Describes the model and its queue for a scrape; `now` is time.monotonic's."""
        engine = self.loaded.engine if self.loaded else None
        return ModelSnapshot(
            name=self.spec.name,
            state=self.state,
            load_seconds=self.load_seconds,
            memory_bytes=self.memory_bytes if engine else 0,
            last_used=time.time() - (now - self.last_used) if self.last_used else None,
            evictions=self.evictions,
            calls_inside=self.leases,
            queued_tokens=engine.queued_tokens if engine else 0,
            queued_seconds=engine.queued_seconds if engine else 0.0,
            capacity_tokens=engine.settings.max_queue_tokens if engine else 0,
            oldest_seconds=engine.oldest_seconds if engine else 0.0,
            busy_seconds=self.past_busy_seconds + (engine.counts.busy_seconds if engine else 0.0),
        )

    def answer(self, answer: LoadedModel | RerankError) -> None:
        """Answers all calls that wait for the model."""
        for ticket in self.waiting:
            ticket.answer = answer
            ticket.wake()
        self.waiting.clear()

    def failed(self) -> ModelFailed:
        """Makes the error of a model that cannot be loaded or broke, with the reason and the remedy."""
        name, reason = self.spec.name, shortened(self.message, REASON_BYTES)
        return ModelFailed(
            f"model {name} failed: {reason.removeprefix(f'model {name} ')}",
            metadata={"model": name, "state_message": reason},
        )

    def still_loading(self) -> ModelLoading:
        """Makes the error of a call without enough time, with the seconds that loading took last."""
        return ModelLoading(
            f"model {self.spec.name} is still loading",
            metadata={"model": self.spec.name},
            retry_after=max(RETRY_SECONDS, self.load_seconds),
        )


def _info_of(calibration: Calibration) -> CalibrationInfo:
    """Describes a calibration as ListModels does."""
    fitted, options = calibration.fitted_on, calibration.options
    return CalibrationInfo(
        method=calibration.map.method,
        created=calibration.made,
        queries=fitted.queries,
        relevant_pairs=fitted.relevant,
        irrelevant_pairs=fitted.irrelevant,
        instruction=options.instruction,
        max_tokens_per_document=options.max_tokens_per_document,
        truncation=options.truncation,
        max_chunks_per_document=options.max_chunks_per_document,
    )
