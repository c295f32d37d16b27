"""One configured model as it is now, and the callers who wait for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from rerank_grpc.config import ModelSpec
from rerank_grpc.engine.engine import Engine
from rerank_grpc.errors import ModelFailed, ModelLoading, RerankError
from rerank_grpc.models.base import ModelCard
from rerank_grpc.tokenizer.tokenizer import Encoder
from rerank_grpc.types import ModelInfo, State

# When a caller may come back for a model that nobody has seen load yet.
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with what turns texts into its scores.

    Attributes:
        name: what the operator called it.
        card: what it is.
        encoder: makes sequences of texts.
        engine: scores them.
        memory_bytes: by how much its loading made the device's memory grow, and what
            its prefixes may take besides.
    """

    name: str
    card: ModelCard
    encoder: Encoder
    engine: Engine
    memory_bytes: int = 0


# Registers a function that the caller's disconnect will call, on any thread.
OnCancel = Callable[[Callable[[], None]], None]


def never(_callback: Callable[[], None]) -> None:
    """The OnCancel of a caller who cannot go away."""


class Ticket:
    """One caller's wait for a model; whoever settles it first is heard, and nothing here takes a lock."""

    def __init__(self) -> None:
        self._answers: SimpleQueue[LoadedModel | RerankError] = SimpleQueue()

    def settle(self, answer: LoadedModel | RerankError) -> None:
        """Ends the wait with the model, leased already, or with an error."""
        self._answers.put(answer)

    def wait(self, seconds: float) -> LoadedModel | RerankError | None:
        """Waits for the answer; None if it did not come in time."""
        try:
            return self._answers.get(timeout=None if seconds == math.inf else max(0.0, seconds))
        except Empty:
            return None


class Slot:
    """One configured model; only read and written under the registry's lock.

    Attributes:
        spec: what was configured.
        aliases: by which other names it is listed.
        lazy: whether only a call loads it: as configured, or because it was left for later.
        state, message: what ListModels says.
        loaded: the model, while it is in memory.
        leases: calls that use it now.
        waiting: calls that wait for it.
        last_used: when a call took or returned it.
        ready_at, load_seconds: when it came into memory, and how long that took.
        memory_bytes: what it takes; what it is expected to take before its first load.
        local: whether its files are on this machine.
        failures, retry_at: how often in a row loading failed, and from when on it is tried again.
        settled: whether it has been READY or FAILED, or was left for later.
        was_ready: whether it has been READY.
        preloading: whether it is loaded without having been called.
        unload_asked: whether an operator wants it out of memory.
        dead: whether its device broke; only an unload helps.
    """

    def __init__(self, spec: ModelSpec, aliases: tuple[str, ...] = (), *, local: bool) -> None:
        self.spec = spec
        self.aliases = aliases
        self.lazy = spec.lazy
        self.state = State.UNLOADED
        self.message = ""
        self.loaded: LoadedModel | None = None
        self.leases = 0
        self.waiting: list[Ticket] = []
        self.last_used = self.ready_at = self.load_seconds = 0.0
        self.memory_bytes = 0
        self.local = local
        self.failures = 0
        self.retry_at = 0.0
        self.settled = self.was_ready = self.preloading = self.unload_asked = self.dead = False

    @property
    def serving(self) -> bool:
        """Whether a call is answered: the model is in memory, or the call brings it there.

        Not before the first warm-up of a model that is loaded at the start, and
        not from a failure until it is READY again, so that it does not flicker
        while loading is tried again.
        """
        return self.state is not State.FAILED and not self.failures and (self.was_ready or self.lazy)

    def describe(self, *, is_default: bool) -> ModelInfo:
        """Says of it what ListModels does."""
        info = ModelInfo(
            name=self.spec.name,
            aliases=self.aliases,
            state=self.state,
            state_message=self.message,
            is_default=is_default,
            local_available=self.local or self.loaded is not None,
            memory_bytes=self.memory_bytes if self.loaded else 0,
            pinned=self.spec.pinned,
            serving=self.serving,
        )
        return info if self.loaded is None else describe_loaded(info, self.loaded)


def describe_loaded(info: ModelInfo, loaded: LoadedModel) -> ModelInfo:
    """Adds to a model's description what is known once it is in memory."""
    card = loaded.card
    return replace(
        info,
        revision=card.revision,
        family=card.family,
        device=card.device,
        precision=card.precision,
        attention=card.attention.label,
        max_tokens=card.max_tokens,
        max_batch_tokens=loaded.engine.max_batch_tokens,
        scoring=card.scoring,
        accepts_instruction=card.accepts_instruction,
    )


def failed(name: str) -> ModelFailed:
    """What a caller of a model that cannot be loaded gets; the reason is for operators."""
    return ModelFailed(f"model {name} failed: see ListModels or the log", metadata={"model": name})


def settle(slot: Slot, answer: LoadedModel | RerankError) -> None:
    """Answers everybody who waits for a model; under the lock."""
    for ticket in slot.waiting:
        ticket.settle(answer)
    slot.waiting.clear()


def still_loading(slot: Slot) -> ModelLoading:
    """What a caller gets whose time is not enough, with the time that loading took last."""
    return ModelLoading(
        f"model {slot.spec.name} is still loading",
        metadata={"model": slot.spec.name},
        retry_after=max(RETRY_SECONDS, slot.load_seconds),
    )
