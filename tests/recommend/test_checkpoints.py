"""Random checkpoints: of the shape that the catalogue states, and servable as any other."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.cli.verify import serving
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.recommend.checkpoints import ITEM, WEIGHTS, layers_work, weights_bytes, write_checkpoint
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.types import Document, RerankRequest
from tests.recommend.shapes import candidate, settings_with, write_catalogue

SHAPED = {known.id: known for known in builtin() if known.shape}


@pytest.mark.parametrize("name", SHAPED)
def test_each_shape_of_the_catalogue_has_as_many_parameters_as_its_entry_says(name: str) -> None:
    known = SHAPED[name]
    # Entries round: 7.6 to 8 billions, 4.4 to 4 millions.
    assert weights_bytes(known) / ITEM / 1e6 == pytest.approx(known.parameters, rel=0.11)
    assert layers_work(known) > 0


@pytest.mark.parametrize(
    "name",
    [
        "tiny-bert",
        "tiny-modern",
        "tiny-deberta",
        "tiny-electra",
        "tiny-gte",
        "tiny-mpnet",
        "tiny-qwen",
        "tiny-vectors",
        "tiny-late",
    ],
)
def test_a_model_of_each_kind_is_loaded_and_scores(tmp_path: Path, name: str) -> None:
    known = candidate(write_catalogue(tmp_path), name).known
    directory = write_checkpoint(known, tmp_path)
    assert (directory / WEIGHTS).stat().st_size == pytest.approx(weights_bytes(known), rel=0.05)
    loader = ModelLoader(settings_with(tmp_path / "catalogue.toml"))
    with serving(str(directory), loader) as (reranker, card):
        response = reranker.rerank(RerankRequest("a query", (Document("one"), Document("two words"))))
    assert (card.kind.value, card.family) == (known.kind, known.family)
    assert len(response.results) == 2


def test_a_sparse_one_takes_no_room_and_has_the_size_of_the_weights(tmp_path: Path) -> None:
    known = SHAPED["Qwen/Qwen3-Reranker-8B"]
    found = (write_checkpoint(known, tmp_path, sparse=True) / WEIGHTS).stat()
    assert found.st_size > 15e9
    assert found.st_blocks * 512 < 1e6


@pytest.mark.parametrize("name", ["tiny-broken", "tiny-text"])
def test_a_shape_that_makes_no_network_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"its shape in the catalogue makes no bert: \S"):
        write_checkpoint(candidate(write_catalogue(tmp_path), name).known, tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(ConfigurationError, match=r"random weights need \d+.* where 1 B are free: set TMPDIR"):
        write_checkpoint(candidate(write_catalogue(tmp_path), "tiny-bert").known, own)
    assert os.listdir(own) == []


def test_the_work_of_layers_is_counted_by_the_shape() -> None:
    base, large = (SHAPED[f"BAAI/bge-reranker-{size}"] for size in ("base", "large"))
    assert layers_work(base) == 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    assert layers_work(large) / layers_work(base) == pytest.approx(32 / 9)
    assert layers_work(builtin().find("ctxl-rerank-v2-instruct-multilingual-1b")) == 0  # type: ignore[arg-type]
