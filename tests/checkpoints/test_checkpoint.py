"""The header of a safetensors file is believed only where each tensor has the bytes of its shape."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rerank_grpc.checkpoints.checkpoint import open_checkpoint, read_header
from rerank_grpc.errors import ModelLoadError

TENSORS: dict[str, dict[str, Any]] = {
    "first": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "middle": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
    "last": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [16, 24]},
}


def write(path: Path, tensors: Any, size: int = 24) -> Path:
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


def test_headers_are_read_in_any_order_with_empty_tensors_and_types_that_are_not_known(
    tmp_path: Path,
) -> None:
    further = {
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [8, 8]},
        "scale": {"dtype": "F4", "shape": [3], "data_offsets": [24, 26]},
        "number": {"dtype": "F64", "shape": [], "data_offsets": [26, 34]},
    }
    tensors = dict(reversed([*TENSORS.items(), *further.items()]))
    path = write(tmp_path / "model.safetensors", {"__metadata__": {"format": "pt"}} | tensors, 34)
    assert read_header(path) == tensors
    save_file({"b": torch.ones(3), "a": torch.ones(2, dtype=torch.bool)}, path)
    assert set(read_header(path)) == {"a", "b"}


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [4, 12]},  # the bytes of its neighbour
        {"data_offsets": [-8, 0]},
        {"data_offsets": ["x", 16]},
        {"data_offsets": [8.0, 16.0]},
        {"data_offsets": [16]},
        {"data_offsets": 16},
        {"shape": 5},
        {"shape": [2]},
        {"shape": [-1, -1]},
        {"shape": [True]},
        {"shape": ["1"]},
        {"dtype": ["I64"]},
        {"dtype": "U32"},
    ],
)
def test_a_tensor_without_the_bytes_of_its_shape_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "model.safetensors", TENSORS | {"middle": TENSORS["middle"] | changes})
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: not a safetensors file, or a damaged one"):
        read_header(path)


@pytest.mark.parametrize("tensors", [{"first": 5}, {"first": {}}, [], 5, {"middle": TENSORS["middle"]}])
def test_a_header_of_another_form_is_refused(tmp_path: Path, tensors: Any) -> None:
    with pytest.raises(ModelLoadError, match="damaged one"):
        read_header(write(tmp_path / "model.safetensors", tensors, 16))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["dangling", "folder"])
def test_what_stands_in_a_files_place_is_told_and_not_called_damaged(
    directories: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(directories["bert"], folder)
    (folder / name).unlink()
    if kind == "dangling":
        (folder / name).symlink_to("../blobs/gone")
        says = "is a link to ../blobs/gone, which is not there"
    else:
        (folder / name).mkdir()
        says = "is a directory where a file is expected"
    with pytest.raises(ModelLoadError, match=re.escape(f"{folder / name}: cannot be read: {says}")):
        open_checkpoint("model", folder)
