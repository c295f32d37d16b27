"""Brings a configured model into memory: its files, weights, tokenizer and engine, warm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.calibration.file import read_calibration
from rerank_grpc.checkpoints.catalogue import KnownModel, read_catalogue
from rerank_grpc.checkpoints.checkpoint import Checkpoint, find_weights, open_checkpoint, read_config
from rerank_grpc.checkpoints.disk import files_told
from rerank_grpc.checkpoints.lookup import EMBEDDED, Source
from rerank_grpc.config.allowance import memory_limit
from rerank_grpc.config.reading import mask_kernels
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.engine.meter import DeviceClock
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.evidence import read_evidence
from rerank_grpc.kept import Kept
from rerank_grpc.kernels.device import choose_device, choose_precision, fast_int8
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.loader import asks_transformers, card_of, load_model
from rerank_grpc.registry import memory
from rerank_grpc.registry.needs import (
    NeedWithin,
    batch_token_bytes,
    check_free,
    check_need,
    held_bytes,
    models_budget,
    need_of,
)
from rerank_grpc.registry.probes import check_tokenizer, checked_tokenizer, tokenizer_kept
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
        self._calibrations = {
            spec.name: read_calibration(spec.calibration) for spec in settings.models if spec.calibration
        }
        if settings.kernels != "auto":
            mask_kernels(settings.kernels)
        self._clock = DeviceClock()  # all models of a server run on one device

    def is_local(self, spec: ModelSpec) -> bool:
        try:
            return Source.of(spec.source, self.catalogue).find(self._settings.models_dir) is not None
        except ModelLoadError:  # a refused model
            return False

    def hub_id(self, spec: ModelSpec) -> str:
        return Source.read(spec.source, self.catalogue).public_id(self._settings.models_dir)

    @files_told()
    def prepare(self, spec: ModelSpec) -> int:
        """Finds damage before another model is evicted, and a model beyond the budget before its download."""
        device, precision = self._device(spec.source)
        source = Source.of(spec.source, self.catalogue)
        expected = memory.known_bytes(source.known, precision)
        memory.check_budget(spec.name, expected, models_budget(self._settings), about="about ")
        directory, _ = source.locate(self._settings.models_dir)
        weights, config = find_weights(directory), read_config(directory)
        if device.type == "cpu":
            within = self._need_within(weights, config, precision, source.known)
            check_need(spec.name, within, memory_limit(), precision)
        return held_bytes(weights, config, precision)

    @files_told()
    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        device, precision = self._device(spec.source)
        memory.give_back(device)
        before = memory.used_bytes(device)
        checkpoint = self._open(spec.source)
        evidence = read_evidence(checkpoint)
        card = card_of(checkpoint, evidence, device, precision)
        calibration = self._calibration(spec, card)
        batch_bytes = 0
        if device.type == "cpu":
            limit = memory_limit()
            need = self._need_within(checkpoint.weights, checkpoint.config, precision, checkpoint.known)(
                limit
            )
            first = not tokenizer_kept(card) or asks_transformers(checkpoint, evidence, card)
            wanted = (need.load if first else need.later_load) - need.process
            check_free(spec.name, wanted, limit, precision)
            batch_bytes = need.batch
        # By another process, which has ended before the weights are in memory.
        token_types = check_tokenizer(card)
        model = self.read_model(spec.source, checkpoint)
        tokenizer = checked_tokenizer(model.card, token_types)
        engine = Engine(
            runner_for(model), self._settings.engine, name=spec.name, on_death=on_death, clock=self._clock
        )
        engine.start()
        try:
            with finite_scores(engine, model.card):
                token_bytes = batch_token_bytes(checkpoint.config, precision)
                warm_up(engine, tokenizer, model.card, Kept("budgets"), token_bytes)
        except BaseException:
            engine.close()
            raise
        self._caution(spec)
        memory.give_back(device)
        grown = max(0, memory.used_bytes(device) - before)
        kept = MAX_KEPT_TOKENS * model.card.prefix_token_bytes
        return LoadedModel(spec.name, model.card, tokenizer, engine, grown + kept, batch_bytes, calibration)

    @files_told()
    def read_model(self, name: str, checkpoint: Checkpoint | None = None) -> Model:
        """Reads "embedded", a directory, a hub id or a short name of the catalogue, without an engine.

        Its checkpoint may be open already.
        """
        device, precision = self._device(name)
        checkpoint = checkpoint or self._open(name)
        if device.type == "cuda":
            needed = held_bytes(checkpoint.weights, checkpoint.config, precision)
            memory.check_memory(name, needed, precision, device, self.catalogue)
        model = load_model(checkpoint, device, precision)
        memory.give_back(memory.HOST)  # reading the weights frees as much as they take
        return model

    def _calibration(self, spec: ModelSpec, card: ModelCard) -> Calibration | None:
        """Finds a model's calibration; raises ModelLoadError where it holds for other weights."""
        found = self._calibrations.get(spec.name)
        if found is None:
            return None
        why = found.mismatch(revision=card.revision, scoring=card.scoring, precision=card.precision)
        if why:
            raise ModelLoadError(f"{spec.calibration}: {why}")
        return found

    def _open(self, name: str) -> Checkpoint:
        found = Source.of(name, self.catalogue).locate(self._settings.models_dir)
        return open_checkpoint(name, *found)

    def _need_within(
        self, weights: Sequence[Path], config: Mapping[str, Any], precision: str, known: KnownModel | None
    ) -> NeedWithin:
        longest = known.max_tokens if known else 0
        return partial(need_of, weights, config, precision, self._settings.engine.max_batch_tokens, longest)

    def _caution(self, spec: ModelSpec) -> None:
        known = Source.of(spec.source, self.catalogue).known
        if known is not None and known.caution:
            log.warning("model %s is %s: %s", spec.name, known.id, known.caution)

    def _device(self, name: str) -> tuple[torch.device, str]:
        return chosen_device(name, self._settings)


def chosen_device(
    name: str, settings: ServerSettings, *, has_int8: Callable[[], bool] = fast_int8
) -> tuple[torch.device, str]:
    """Chooses the device and the precision of a model by its source; raises ModelLoadError.

    `has_int8` tells whether int8 is fast here.
    """
    device, chosen = choose_device(settings.device), settings.precision
    if name == EMBEDDED and chosen == "auto":
        chosen = "fp32"  # fast enough for a model this small, and its known scores are of fp32
    return device, choose_precision(chosen, device, has_int8=has_int8)
