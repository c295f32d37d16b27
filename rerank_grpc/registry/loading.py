"""Brings a configured model into memory: its files, weights, tokenizer and engine, warm."""

from __future__ import annotations

import logging
from typing import Protocol

import torch

from rerank_grpc.checkpoints.catalogue import read_catalogue
from rerank_grpc.checkpoints.checkpoint import find_weights, open_checkpoint, read_config
from rerank_grpc.checkpoints.lookup import EMBEDDED, Source
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.engine.meter import DeviceClock
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kept import Kept
from rerank_grpc.kernels.device import DTYPES, choose_device, choose_precision
from rerank_grpc.models.base import Model
from rerank_grpc.models.loader import load_model
from rerank_grpc.registry import memory
from rerank_grpc.registry.probes import checked_tokenizer
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.registry.warmup import finite_scores, warm_up
from rerank_grpc.runner.cuda import runner_for
from rerank_grpc.runner.prefixes import MAX_KEPT_TOKENS

log = logging.getLogger("rerank_grpc.registry")


class Loader(Protocol):
    """The seam between the registry and the making of models."""

    def is_local(self, spec: ModelSpec) -> bool:
        """Whether a model's files are on this machine; never raises."""

    def hub_id(self, spec: ModelSpec) -> str:
        """Returns the hub's id of a model, "" without one; never raises."""

    def prepare(self, spec: ModelSpec) -> int:
        """Brings a model's files here, checks them, and returns the bytes that it will take."""

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        """Makes a model that is warm; `on_death` is called when its device dies."""


class ModelLoader:
    """Loads models as the settings say; their errors are ModelLoadErrors, in one line with the remedy."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.catalogue = read_catalogue(settings.catalogue)
        self._clock = DeviceClock()  # all models of a server run on one device

    def is_local(self, spec: ModelSpec) -> bool:
        try:
            return Source.of(spec.source, self.catalogue).find(self._settings.models_dir) is not None
        except ModelLoadError:  # a refused model
            return False

    def hub_id(self, spec: ModelSpec) -> str:
        return Source.read(spec.source, self.catalogue).public_id(self._settings.models_dir)

    def prepare(self, spec: ModelSpec) -> int:
        """Finds damage before another model is evicted, and a model beyond the budget before its download."""
        _, precision = self._device(spec.source)
        source = Source.of(spec.source, self.catalogue)
        expected = memory.known_bytes(source.known, precision)
        memory.check_budget(spec.name, expected, self._settings.model_memory, about="about ")
        directory, _ = source.locate(self._settings.models_dir)
        return memory.estimate(find_weights(directory), read_config(directory), DTYPES[precision])

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        device, _ = self._device(spec.source)
        memory.give_back(device)
        before = memory.used_bytes(device)
        model = self.read_model(spec.source)
        tokenizer = checked_tokenizer(model.card)
        engine = Engine(
            runner_for(model), self._settings.engine, name=spec.name, on_death=on_death, clock=self._clock
        )
        engine.start()
        try:
            with finite_scores(engine, model.card):
                warm_up(engine, tokenizer, model.card, Kept("budgets"))
        except BaseException:
            engine.close()
            raise
        self._caution(spec)
        memory.give_back(device)
        grown = max(0, memory.used_bytes(device) - before)
        kept = MAX_KEPT_TOKENS * model.card.prefix_token_bytes
        return LoadedModel(spec.name, model.card, tokenizer, engine, grown + kept)

    def read_model(self, name: str) -> Model:
        """Reads "embedded", a directory, a hub id or a short name of the catalogue, without an engine."""
        device, precision = self._device(name)
        found = Source.of(name, self.catalogue).locate(self._settings.models_dir)
        checkpoint = open_checkpoint(name, *found)
        if device.type == "cuda":
            needed = memory.estimate(checkpoint.weights, checkpoint.config, DTYPES[precision])
            memory.check_memory(name, needed, precision, device, self.catalogue)
        model = load_model(checkpoint, device, precision)
        memory.give_back(memory.HOST)  # reading the weights frees as much as they take
        return model

    def _caution(self, spec: ModelSpec) -> None:
        known = Source.of(spec.source, self.catalogue).known
        if known is not None and known.caution:
            log.warning("model %s is %s: %s", spec.name, known.id, known.caution)

    def _device(self, name: str) -> tuple[torch.device, str]:
        device, chosen = choose_device(self._settings.device), self._settings.precision
        if name == EMBEDDED and chosen == "auto":
            chosen = "fp32"  # fast enough for a model this small, and its known scores are of fp32
        return device, choose_precision(chosen, device)
