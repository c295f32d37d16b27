"""Checkpoints and loaded models, made once for all tests of the models."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch

from rerank_grpc import kept
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.models.base import Model
from rerank_grpc.registry.loading import ModelLoader
from tests import random_models as checkpoints
from tests.kernels.at_level import EXACT_INT8

# What the product says where a processor cannot do what is asked: the test cannot run there either.
_LACKING = []
if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
    _LACKING.append("has neither AVX-512 BF16 nor AMX")
if not EXACT_INT8:
    _LACKING += ["needs AVX-512 VNNI or AMX", "precision 'int8(-all)?' moves outputs by"]


def pytest_collection_finish() -> None:
    """Leaves what was made until here out of Python's collections: a full one of it lasts a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    yield from _skipped_where_the_processor_lacks_what_is_asked()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _skipped_where_the_processor_lacks_what_is_asked()


def _skipped_where_the_processor_lacks_what_is_asked() -> Generator[None, None, None]:
    try:
        return (yield)
    except Exception as error:
        if any(re.search(each, str(error)) for each in _LACKING):
            pytest.skip(f"this processor: {error}")
        raise


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
