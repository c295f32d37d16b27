"""Writes safetensors of pickled weights, of which nothing but tensors is ever read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rerank_grpc.checkpoints import disk
from rerank_grpc.checkpoints.checkpoint import weight_names
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.files.obstacles import obstacle

SINGLE = "pytorch_model.bin"
SAFE = "model.safetensors"
Say = Callable[[str], None]


def convert_weights(directory: Path, say: Say) -> list[Path]:
    """Writes a checkpoint's safetensors beside its pickles; returns them. Raises ModelLoadError."""
    pickles = _pickles(directory)
    check_space(directory, pickles)
    made, file_of = [], {}
    for path in pickles:
        safe = path.with_name(path.with_suffix(".safetensors").name.replace("pytorch_model", "model"))
        file_of.update(dict.fromkeys(_convert(path, safe, say), safe.name))
        made.append(safe)
    if made != [directory / SAFE]:
        index = directory / f"{SAFE}.index.json"
        with written(index) as temporary:
            temporary.write_text(index_text(file_of))
        made.append(index)
    return made


def module_pickles(directory: Path) -> list[Path]:
    """Lists the pickles of sentence-transformers' modules that have no safetensors beside them."""
    found = sorted(directory.glob(f"[0-9]*_*/{SINGLE}"))
    return [path for path in found if not path.with_name(SAFE).is_file()]


def convert_modules(directory: Path, say: Say) -> list[Path]:
    """Writes safetensors of the modules' pickles; returns them. Raises ModelLoadError."""
    pickles = module_pickles(directory)
    check_space(directory, pickles)
    for path in pickles:
        _convert(path, path.with_name(SAFE), say)
    return [path.with_name(SAFE) for path in pickles]


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file and reads it again; raises ModelLoadError unless it holds the same."""
    save_file(tensors, path, metadata={"format": "pt"})
    with safe_open(path, "pt") as file:
        for name, tensor in tensors.items():
            if not torch.equal(file.get_tensor(name), tensor) and not torch.isnan(tensor).any():
                raise ModelLoadError(f"{path}: {name} was written wrongly: is the disk in order?")


def index_text(file_of: dict[str, str]) -> str:
    """The index of a checkpoint in several files, as JSON."""
    return json.dumps({"metadata": {}, "weight_map": file_of}, indent=1)


def check_space(directory: Path, files: list[Path]) -> None:
    """Raises ModelLoadError if a copy of the files does not fit on the disk of a directory."""
    needed = sum(path.stat().st_size for path in files)
    if (free := disk.free_if_short(directory, needed)) is not None:
        text = f"{needed:,} bytes are to be written and {free:,} are free: free some"
        raise ModelLoadError(f"{directory}: {text}")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields a temporary name like `disk.written`; raises ModelLoadError if the disk refuses."""
    try:
        with disk.written(path) as temporary:
            yield temporary
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be written: {obstacle(path, error, writing=True)}") from error


def _convert(pickle: Path, safe: Path, say: Say) -> list[str]:
    """Converts one file; returns the names of its weights."""
    say(f"reading {pickle.name}, writing {safe.name}")
    tensors = _read_pickle(pickle)
    with written(safe) as temporary:
        write_weights(temporary, tensors)
    return list(tensors)


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
