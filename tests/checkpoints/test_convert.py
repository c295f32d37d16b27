"""Old clones become safetensors, offline, and nothing that a pickle says is ever run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rerank_grpc.checkpoints.convert import convert
from rerank_grpc.errors import ModelLoadError
from tests.command import run
from tests.conftest import load
from tests.models.test_parity import documents, score


@pytest.fixture
def old(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A clone from before safetensors."""
    path = Path(shutil.copytree(directories["bert"], tmp_path / "old"))
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def test_the_command_that_the_refusal_names_does_it(old: Path, directories: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError) as refused:
        load(old)
    command = str(refused.value).partition("'")[2].partition("'")[0]
    done = run(*command.split()[1:], HF_HUB_OFFLINE="1")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "can be served" in done.stdout
    assert (old / "pytorch_model.bin").is_file(), "the old file stays"
    assert torch.equal(score(load(old), documents()), score(load(directories["bert"]), documents()))
    assert "nothing to convert" in run("convert", str(old)).stdout


def test_shards_and_weights_that_share_memory_are_converted(old: Path, directories: dict[str, Path]) -> None:
    weights = load_file(directories["bert"] / "model.safetensors")
    (old / "pytorch_model.bin").unlink()
    shared = torch.zeros(4)
    halves: list[dict[str, Any]] = [{"tied.a": shared, "tied.b": shared[:]}, {}]
    for place, (name, weight) in enumerate(sorted(weights.items())):
        halves[place % 2][name] = weight
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, old / name)
    mapping = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": mapping}))
    made = [path.name for path in convert(old)]
    assert made == [*(f"model-0000{n}-of-00002.safetensors" for n in (1, 2)), "model.safetensors.index.json"]
    assert torch.equal(score(load(old), documents()), score(load(directories["bert"]), documents()))


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00001.bin", "weights.pt"])
def test_a_single_shard_of_any_name_is_kept_and_what_is_made_of_it_can_be_served(
    old: Path, directories: dict[str, Path], name: str
) -> None:
    (old / "pytorch_model.bin").rename(old / name)
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    pickled = (old / name).read_bytes()
    convert(old)
    assert (old / name).read_bytes() == pickled
    assert torch.equal(score(load(old), documents()), score(load(directories["bert"]), documents()))


def test_a_tokenizer_json_is_made_of_an_older_tokenizer(old: Path) -> None:
    vocabulary = json.loads((old / "tokenizer.json").read_text())["model"]["vocab"]
    (old / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    (old / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "model_max_length": 128}'
    )
    (old / "tokenizer.json").unlink()
    convert(old)
    assert json.loads((old / "tokenizer.json").read_text())["model"]["vocab"] == vocabulary
    load(old)


class Evil:
    """What a hostile pickle holds: a command to run."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_r27_a_pickle_that_would_run_code_is_refused_and_does_not(old: Path, tmp_path: Path, by: str) -> None:
    marker = tmp_path / "ran"
    if by == "torch":
        torch.save({"weight": Evil(marker)}, old / "pytorch_model.bin")
    else:
        (old / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker)))
    done = run("convert", str(old))
    assert done.returncode == 1
    assert "holds more than weights" in done.stderr.splitlines()[-1]
    assert not marker.exists()
    assert not (old / "model.safetensors").exists()


@pytest.mark.parametrize("length", [0, 10, 5_000])
def test_a_damaged_pickle_leaves_nothing_behind(old: Path, length: int) -> None:
    path = old / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:length])
    before = set(old.iterdir())
    with pytest.raises(ModelLoadError):
        convert(old)
    assert set(old.iterdir()) == before


def test_an_index_that_leads_out_of_the_directory_is_refused(old: Path) -> None:
    (old / "pytorch_model.bin").rename(old.parent / "outside.bin")
    (old / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../outside.bin"}}')
    with pytest.raises(ModelLoadError, match="no file of this directory"):
        convert(old)


def test_a_config_that_asks_for_code_is_refused(old: Path) -> None:
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelLoadError, match="runs code"):
        convert(old)
