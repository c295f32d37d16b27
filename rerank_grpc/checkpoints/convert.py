"""Converts, offline, pickled weights to safetensors and an older tokenizer to tokenizer.json."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rerank_grpc.checkpoints import disk
from rerank_grpc.checkpoints.checkpoint import read_config, weight_names
from rerank_grpc.errors import ModelLoadError

SINGLE = "pytorch_model.bin"


def convert(directory: Path, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Adds model.safetensors and tokenizer.json where missing; returns them. Raises ModelLoadError."""
    read_config(directory)
    made = []
    if not any(directory.glob("model*.safetensors")):
        made += _convert_weights(directory, say)
    if not (directory / "tokenizer.json").is_file():
        say("writing tokenizer.json")
        made.append(_convert_tokenizer(directory))
    return made


def _convert_weights(directory: Path, say: Callable[[str], None]) -> list[Path]:
    pickles = _pickles(directory)
    needed = sum(path.stat().st_size for path in pickles)
    if (free := disk.free_if_short(directory, needed)) is not None:
        text = f"{needed:,} bytes are to be written and {free:,} are free: free some"
        raise ModelLoadError(f"{directory}: {text}")
    made, file_of = [], {}
    for path in pickles:
        name = path.with_suffix(".safetensors").name.replace("pytorch_model", "model")
        say(f"reading {path.name}, writing {name}")
        tensors = _read_pickle(path)
        with _written(directory / name) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
            _compare(temporary, tensors)
        file_of.update(dict.fromkeys(tensors, name))
        made.append(directory / name)
    if made != [directory / "model.safetensors"]:
        index = directory / "model.safetensors.index.json"
        with _written(index) as temporary:
            temporary.write_text(json.dumps({"metadata": {}, "weight_map": file_of}, indent=1))
        made.append(index)
    return made


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Reads pickled weights with a reader that builds nothing but tensors; raises ModelLoadError."""
    try:
        # The plain reader of pickles would run code that the file names.
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises half a dozen classes, some with pages of advice
        raise ModelLoadError(
            f"{path}: holds more than weights, or is damaged ({type(error).__name__}): "
            "it is not read; copy it again, or use another checkpoint"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise ModelLoadError(f"{path}: holds no list of weights")
    # Tensors that share memory, as tied weights do, are written out one by one.
    return {str(name): tensor.detach().contiguous().clone() for name, tensor in found.items()}


def _pickles(directory: Path) -> list[Path]:
    names = weight_names(directory, SINGLE)
    if not names:
        raise ModelLoadError(f"{directory}: neither safetensors nor {SINGLE}: copy the whole checkpoint")
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            text = f"names {name!r}, which is no file of this directory: copy it again"
            raise ModelLoadError(f"{directory / SINGLE}.index.json: {text}")
    return [directory / name for name in names]


def _compare(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ModelLoadError unless the file holds the same weights."""
    with safe_open(path, "pt") as file:
        for name, tensor in tensors.items():
            if not torch.equal(file.get_tensor(name), tensor) and not torch.isnan(tensor).any():
                raise ModelLoadError(f"{path}: {name} was written wrongly: is the disk in order?")


def _convert_tokenizer(directory: Path) -> Path:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            options = {"local_files_only": True, "trust_remote_code": False}
            AutoTokenizer.from_pretrained(directory, **options).save_pretrained(folder)
            content = (Path(folder) / "tokenizer.json").read_bytes()
        except Exception as error:
            raise ModelLoadError(
                f"{directory}: transformers makes no tokenizer.json of what is there "
                f"({type(error).__name__}): copy it from where the model came from"
            ) from error
    with _written(directory / "tokenizer.json") as temporary:
        temporary.write_bytes(content)
    return directory / "tokenizer.json"


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Yields a temporary name like `disk.written`; raises ModelLoadError if the disk refuses."""
    try:
        with disk.written(path) as temporary:
            yield temporary
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be written: {error.strerror or error}") from error
