"""Checkpoints and loaded models, made once for all tests of the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rerank_grpc import kept
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.models.base import Model
from rerank_grpc.registry.loading import ModelLoader
from tests import random_models as checkpoints

WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": checkpoints.bert,
    "roberta": checkpoints.roberta,
    "xlm_roberta": checkpoints.xlm_roberta,
    "deberta": checkpoints.deberta,
    "electra": checkpoints.electra,
}


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets tests find nothing that another run has kept."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write(root / family) for family, write in WRITERS.items()}


@pytest.fixture(scope="session")
def loaded(directories: dict[str, Path]) -> dict[str, Model]:
    return {family: load(path) for family, path in directories.items()}


@pytest.fixture(scope="session")
def embedded() -> Model:
    return load("embedded")


def load(
    source: Path | str, *, precision: str = "fp32", device: str = "cpu", models_dir: Path = Path("models")
) -> Model:
    settings = ServerSettings(device=device, precision=precision, models_dir=models_dir)
    return ModelLoader(settings).read_model(str(source))
