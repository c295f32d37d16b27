"""From a configured model to one that can score: files, weights, encoder, engine, warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from rerank_grpc.checkpoints.catalogue import Catalogue, read_catalogue
from rerank_grpc.checkpoints.sources import is_local
from rerank_grpc.config import ModelSpec, Settings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.engine.meter import DeviceClock
from rerank_grpc.errors import ConfigurationError, describe
from rerank_grpc.kernels.causal import MAX_KEPT_TOKENS
from rerank_grpc.kernels.device import choose_device, choose_precision
from rerank_grpc.models.loader import estimate_bytes, load_model
from rerank_grpc.registry import memory
from rerank_grpc.registry.eviction import TooLarge
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.registry.warmup import warm_up
from rerank_grpc.runner.cuda import runner_for
from rerank_grpc.tokenizer.tokenizer import encoder_for
from rerank_grpc.units import size

# Makes a LoadedModel of a spec; the callback is for when the model's device dies.
Loader: TypeAlias = Callable[[ModelSpec, OnDeath], LoadedModel]
# Brings a spec's files to this machine, checks them, and says how much memory they will take.
Preparer: TypeAlias = Callable[[ModelSpec], int]
# Tells whether a spec's files are on this machine.
Finder: TypeAlias = Callable[[ModelSpec], bool]


def loader_for(settings: Settings) -> Loader:
    """Makes the function that loads a spec as the settings say, warm and ready to score."""
    catalogue = read_catalogue(settings.catalogue)
    clock = DeviceClock()  # all models of a server run on one device

    def load(spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        device = choose_device(settings.device)
        memory.give_back(device)
        before = memory.used(device)
        model = load_model(
            spec.source,
            models_dir=settings.models_dir,
            device=settings.device,
            precision=settings.precision,
            catalogue=catalogue,
        )
        encoder = encoder_for(model.card)
        engine = Engine(runner_for(model), settings.engine, name=spec.name, on_death=on_death, clock=clock)
        engine.start()
        try:
            warm_up(engine, encoder, model.card)
        except BaseException:
            engine.close()
            raise
        memory.give_back(device)
        kept = MAX_KEPT_TOKENS * model.card.prefix_token_bytes
        taken = max(0, memory.used(device) - before) + kept
        return LoadedModel(spec.name, model.card, encoder, engine, taken)

    return load


def preparer_for(settings: Settings) -> Preparer:
    """Makes the function that fetches a spec's files, so that loading never waits for the network."""
    catalogue = read_catalogue(settings.catalogue)

    def prepare(spec: ModelSpec) -> int:
        check_estimate(spec, settings, catalogue)
        return estimate_bytes(
            spec.source,
            models_dir=settings.models_dir,
            device=settings.device,
            precision=settings.precision,
            catalogue=catalogue,
        )

    return prepare


def check_estimate(spec: ModelSpec, settings: Settings, catalogue: Catalogue) -> None:
    """Raises TooLarge, before anything is fetched, if the catalogue knows that a model cannot fit."""
    slot = catalogue.find(spec.source.partition("@")[0])
    precision = choose_precision(settings.precision, choose_device(settings.device))
    estimate = slot.memory_mib.get(precision, 0) << 20 if slot else 0
    if settings.model_memory is not None and estimate > settings.model_memory:
        raise TooLarge(
            f"model {spec.name} takes about {size(estimate)} where all models together may take "
            f"{size(settings.model_memory)}: raise --model-memory, or hold it in a smaller --precision"
        )


def finder_for(settings: Settings) -> Finder:
    """Makes the function that tells whether loading a spec needs no download."""
    catalogue = read_catalogue(settings.catalogue)

    def is_here(spec: ModelSpec) -> bool:
        if spec.source == "embedded":
            return True
        return is_local(spec.source, models_dir=settings.models_dir, catalogue=catalogue)

    return is_here


def ready_at_once(_spec: ModelSpec) -> int:
    """The Preparer of models that need none."""
    return 0


def here(_spec: ModelSpec) -> bool:
    """The Finder of models that have no files."""
    return True


def let_go(loaded: LoadedModel) -> torch.device:
    """Ends a model's engine; the caller drops its last reference and then gives the memory back."""
    loaded.engine.close()
    return torch.device(loaded.card.device)


def one_line(spec: ModelSpec, error: Exception) -> str:
    """Says why a model could not be loaded, for ListModels and the log."""
    if isinstance(error, ConfigurationError):
        return str(error)
    return f"model {spec.name} could not be loaded from {spec.source}: {describe(error)}"
