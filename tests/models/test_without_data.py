"""Whole passes as a GPU runs them, on tensors without data: whatever asked for a value would raise.

So nothing within a pass lets the host wait for the device, and torch's own
operator for variable lengths takes what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models import loader
from rerank_grpc.models.base import Model
from rerank_grpc.models.borrowed import network as borrowed
from rerank_grpc.models.reference import Agreement
from rerank_grpc.runner.graphs import filled, shape_for
from rerank_grpc.runner.packing import PackedBatch, pack, tensors
from rerank_grpc.runner.prefixes import PrefixCache, Prefixes
from rerank_grpc.sequence import Prefix, Sequence
from tests import random_models as checkpoints
from tests.models import test_bi_encoder, test_modernbert

META = torch.device("meta")
BATCH = tuple(Sequence.of(range(5, 5 + length)) for length in (7, 40, 40, 1, 23))
NO_PREFIXES = Prefixes({}, [])


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], Path]], Model]:
    """Loads a checkpoint as on a card, but without its values, which no check can compare."""
    monkeypatch.setattr(loader, "choose_attention", lambda *_: Attention.VARLEN)
    monkeypatch.setattr(loader, "check_own", lambda *_: Agreement(0.0))
    monkeypatch.setattr(borrowed, "check_against_reference", lambda *_, **options: Agreement(0.0))
    monkeypatch.setattr(borrowed, "check_reads_both_ways", lambda *_: None)

    def make(write: Callable[[Path], Path]) -> Model:
        directory = write(tmp_path / "checkpoint")
        checkpoint = open_checkpoint("test", directory, builtin().find(directory.name))
        return loader.load_model(checkpoint, META, "bf16")

    return make


def run(model: Model, packed: PackedBatch) -> torch.Tensor:
    return model.forward(tensors(packed, torch.from_numpy(packed.ints).to(META)))


@pytest.mark.parametrize("write", [checkpoints.bert, checkpoints.roberta, checkpoints.xlm_roberta])
def test_the_encoder_asks_for_no_value(load: Any, write: Callable[[Path], Path]) -> None:
    model = load(write)
    assert model.card.attention is Attention.VARLEN
    assert model.card.capturable
    assert run(model, pack(BATCH, NO_PREFIXES)).shape == (5, 1)


def test_a_captured_pass_asks_for_no_length_either(load: Any) -> None:
    shape = shape_for(BATCH)
    assert shape is not None
    packed = filled(pack(BATCH, NO_PREFIXES), shape)
    assert packed.lengths == ()
    assert run(load(checkpoints.xlm_roberta), packed).shape == (shape.sequences, 1)


def test_a_captured_pass_of_a_language_model_asks_for_no_length(load: Any) -> None:
    shape = shape_for(BATCH)
    assert shape is not None
    packed = filled(pack(BATCH, NO_PREFIXES), shape)
    model = load(checkpoints.qwen3_reranker)
    assert model.card.capturable
    assert run(model, packed).shape == (shape.sequences, 1)


def test_transformers_own_modules_ask_for_no_value(load: Any) -> None:
    model = load(partial(test_modernbert.write, pooling="cls"))
    assert model.card.attention is Attention.VARLEN
    assert not model.card.capturable
    assert run(model, pack(BATCH, NO_PREFIXES)).shape == (5, 1)


def test_a_bi_encoder_asks_for_no_value(load: Any) -> None:
    model = load(partial(test_bi_encoder.write, family="bert", pooling="mean"))
    assert run(model, pack(BATCH, NO_PREFIXES)).shape == (5, 64)


def test_a_language_model_asks_for_no_value_with_prefixes_kept_and_new(load: Any) -> None:
    model, kept = load(checkpoints.qwen3_reranker), PrefixCache()
    system = Prefix(Sequence.of(range(20)).ids)
    first, second = (Prefix(Sequence.of([token] * 9).ids, system) for token in (1, 2))
    for prefix, computed in ((first, 2), (second, 1)):
        batch = tuple(Sequence(each.ids, 0, prefix) for each in BATCH)
        prefixes = kept.take(batch)
        assert len(prefixes.missing) == computed
        assert run(model, pack(batch, prefixes, gathers=True)).shape == (5, 1)
        kept.keep(prefixes.used)
    keys, values = kept.take(batch).used[second].layers[0]
    assert keys.shape == values.shape == (1, 2, 29, 16)
