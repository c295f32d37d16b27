"""Models in containers: by a mounted folder, by its bare name, by download, and each family's own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import hub as hubs
from tests import random_models
from tests.image.containers import HARDENED, once, running
from tests.image.test_service import QUERY

BASE = "BAAI/bge-reranker-base"


def readable(path: Path) -> Path:
    """Lets every user read a folder, as the image's own has to."""
    for each in (path, *path.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, with an XLM-RoBERTa that stands for bge-reranker-base."""
    folder = tmp_path_factory.mktemp("models")
    random_models.xlm_roberta(folder / "bge-reranker-base")
    return readable(folder)


@pytest.mark.parametrize("name", [BASE, "bge-reranker-base"])
def test_a_mounted_folder_is_served_by_its_hub_id_and_by_its_name(image: str, base: Path, name: str):
    mount = f"--volume={base / 'bge-reranker-base'}:/models/bge-reranker-base:ro"
    with running(
        image, engine=(*HARDENED, mount), variables={"RERANK_MODELS": name, "RERANK_PRECISION": "fp32"}
    ) as container:
        container.wait()
        for called in (BASE, "bge-reranker-base"):
            status, answer = container.ask("/v1/rerank", {**QUERY, "model": called})
            assert (status, len(answer["results"])) == (200, 2), answer


def test_weights_that_the_user_may_not_read_are_said_to_be_so(image: str, tmp_path: Path):
    random_models.xlm_roberta(tmp_path / "own")
    (tmp_path / "own/model.safetensors").chmod(0o600)
    (tmp_path / "own").chmod(0o755)
    mount = f"--volume={tmp_path / 'own'}:/models/own:ro"
    done = once(image, "serve", engine=(mount,), check=False, variables={"RERANK_MODELS": "/models/own"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "permission denied" in done.stderr
    assert "mode 0600 and belongs to 0:0, and this process runs as 10001:10001" in done.stderr


def test_a_model_is_downloaded_into_the_volume_and_found_there_again(image: str, base: Path, tmp_path: Path):
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    mount = f"--volume={volume}:/models"
    with hubs.running() as hub:
        hub.models[BASE] = base / "bge-reranker-base"
        # The catalogue names a commit that only the real hub has.
        variables = {"RERANK_MODELS": f"{BASE}@main", "HF_ENDPOINT": hub.endpoint}
        with running(image, engine=(*HARDENED, mount), variables=variables) as container:
            container.wait()
            assert container.ask("/v1/rerank", {**QUERY, "model": BASE})[0] == 200
        assert len(hub.transfers("model.safetensors")) == 1
    with running(
        image, engine=(*HARDENED, mount), variables={**variables, "HF_HUB_OFFLINE": "1"}
    ) as container:
        container.wait()
        assert container.ask("/v1/rerank", {**QUERY, "model": BASE})[0] == 200


FAMILIES: tuple[tuple[str, Callable[[Path], Any]], ...] = (
    ("bert", random_models.bert),
    ("roberta", random_models.roberta),
    ("deberta", random_models.deberta),
    ("electra", random_models.electra),
    ("qwen3", random_models.qwen3_reranker),
    ("gemma", random_models.gemma_reranker),
)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_embedded_model_scores_right_in_each_precision(image: str, precision: str):
    done = once(image, "verify", "embedded", "--precision", precision, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_family_scores_as_transformers_own_pass_does(image: str, tmp_path: Path):
    found = [make(tmp_path / name) for name, make in FAMILIES]
    places = [f"/models/{path.relative_to(tmp_path)}" for path in found]
    mount = f"--volume={readable(tmp_path)}:/models:ro"
    done = once(image, "verify", *places, "--precision", "fp32", engine=(mount,), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
