"""Which models exist, in which state each is, and who uses them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic

from rerank_grpc.config import ModelSpec, Settings
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.runner import ModelRunner
from rerank_grpc.engine.tokenizer import Encoder, encoder_for
from rerank_grpc.engine.warmup import warm_up
from rerank_grpc.errors import (
    ConfigurationError,
    ModelFailed,
    ModelLoadError,
    ModelLoading,
    ShuttingDown,
    UnknownModel,
    describe,
)
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.loader import load_model
from rerank_grpc.types import ModelInfo, State

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with what turns texts into its scores."""

    name: str
    card: ModelCard
    encoder: Encoder
    engine: Engine


Loader = Callable[[ModelSpec, Callable[[], None]], LoadedModel]


class Registry:
    """The configured models; the first is the default.

    `load` makes a LoadedModel of a spec; it gets a callback for when the
    model's device dies. `on_change` is called after each change of a state,
    on the thread that made it.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        load: Loader,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._on_change = on_change
        self._changed = threading.Condition()
        self._closing = False
        self._entries = [_Entry(spec) for spec in specs]
        self._names: dict[str, _Entry] = {}
        for entry in self._entries:
            for name in (entry.spec.name, *entry.spec.aliases):
                if self._names.setdefault(name, entry) is not entry:
                    raise ConfigurationError(f"two models are named {name!r}: rename one")
        self._thread = threading.Thread(target=self._load_all, name="load-models", daemon=True)

    @property
    def default(self) -> str:
        """The name of the default model."""
        return self._entries[0].spec.name

    def start(self) -> None:
        """Starts to load all models in the background, in their order."""
        self._thread.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Waits until every model is READY or FAILED; False if `timeout` seconds were not enough.

        Raises ModelLoadError if the default model is FAILED: without it there
        is nothing to serve.
        """
        with self._changed:
            settled = self._changed.wait_for(
                lambda: all(entry.state in (State.READY, State.FAILED) for entry in self._entries), timeout
            )
            if self._entries[0].state is State.FAILED:
                raise ModelLoadError(self._entries[0].message)
        return settled

    def models(self) -> list[ModelInfo]:
        """Describes every model, the default first."""
        with self._changed:
            return [entry.info(is_default=entry is self._entries[0]) for entry in self._entries]

    def info(self, name: str) -> ModelInfo:
        """Describes one model by name or alias ("" is the default); raises UnknownModel."""
        with self._changed:
            entry = self._find(name)
            return entry.info(is_default=entry is self._entries[0])

    def loaded(self, name: str) -> LoadedModel | None:
        """Returns a model if it is in memory, without leasing it; raises UnknownModel."""
        with self._changed:
            return self._find(name).loaded

    @contextmanager
    def lease(self, name: str) -> Iterator[LoadedModel]:
        """Keeps a model in memory while it is used.

        Raises UnknownModel, ModelLoading, ModelFailed or ShuttingDown.
        """
        with self._changed:
            entry = self._find(name)
            loaded = self._usable(entry)
            entry.leases += 1
        try:
            yield loaded
        finally:
            with self._changed:
                entry.leases -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Refuses further leases and ends every engine."""
        with self._changed:
            self._closing = True
            loaded = [entry.loaded for entry in self._entries if entry.loaded]
        for model in loaded:
            model.engine.close()

    def _find(self, name: str) -> _Entry:
        if not name:
            return self._entries[0]
        entry = self._names.get(name)
        if entry is None:
            known = ", ".join(self._names)
            # The unknown name is the caller's text: it goes back to the caller, cut, and into no log.
            raise UnknownModel(
                f"no model is named {name[:100]!r}; known: {known}",
                metadata={"model": name[:100], "known_models": known},
            )
        return entry

    def _usable(self, entry: _Entry) -> LoadedModel:
        name = entry.spec.name
        if self._closing:
            raise ShuttingDown("the server is stopping", retry_after=1.0)
        if entry.state is State.FAILED:
            raise ModelFailed(f"model {name} failed: see ListModels or the log", metadata={"model": name})
        if entry.loaded is None or entry.state is not State.READY:
            raise ModelLoading(f"model {name} is still loading", metadata={"model": name}, retry_after=1.0)
        return entry.loaded

    def _load_all(self) -> None:
        for entry in self._entries:
            if self._closing:
                return
            self._set(entry, State.LOADING)
            started = monotonic()
            try:
                loaded = self._load(entry.spec, lambda entry=entry: self._died(entry))  # type: ignore[misc]
            except Exception as error:
                self._set(entry, State.FAILED, message=_one_line(entry.spec, error))
                log.error("model %s failed to load: %s", entry.spec.name, entry.message)
            else:
                self._set(entry, State.READY, loaded=loaded)
                log.info("model %s is ready after %.1f s", entry.spec.name, monotonic() - started)

    def _died(self, entry: _Entry) -> None:
        self._set(entry, State.FAILED, loaded=entry.loaded, message="its device thread died or hangs")

    def _set(
        self, entry: _Entry, state: State, *, loaded: LoadedModel | None = None, message: str = ""
    ) -> None:
        with self._changed:
            entry.state, entry.loaded, entry.message = state, loaded, message
            self._changed.notify_all()
        self._on_change()


class _Entry:
    """One configured model as it is now."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.state = State.UNLOADED
        self.message = ""
        self.loaded: LoadedModel | None = None
        self.leases = 0

    def info(self, *, is_default: bool) -> ModelInfo:
        info = ModelInfo(
            name=self.spec.name,
            aliases=self.spec.aliases,
            state=self.state,
            state_message=self.message,
            is_default=is_default,
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
        attention=card.attention,
        max_tokens=card.max_tokens,
        max_batch_tokens=loaded.engine.max_batch_tokens,
        scoring=card.scoring,
        accepts_instruction=card.accepts_instruction,
    )


def loader_for(settings: Settings) -> Loader:
    """Makes the function that loads a spec as the settings say, warm and ready to score."""

    def load(spec: ModelSpec, on_death: Callable[[], None]) -> LoadedModel:
        model = load_model(
            spec.source,
            models_dir=settings.models_dir,
            device=settings.device,
            precision=settings.precision,
        )
        encoder = encoder_for(model.card)
        engine = Engine(ModelRunner(model), settings.engine, name=spec.name, on_death=on_death)
        engine.start()
        warm_up(engine, encoder, model.card)
        return LoadedModel(spec.name, model.card, encoder, engine)

    return load


def _one_line(spec: ModelSpec, error: Exception) -> str:
    if isinstance(error, ConfigurationError):
        return str(error)
    return f"model {spec.name} could not be loaded from {spec.source}: {describe(error)}"
