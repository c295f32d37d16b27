"""The weights in a checkpoint's files, each to be read by itself."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rerank_grpc.checkpoints.checkpoint import FLOATS, Checkpoint, read_header
from rerank_grpc.errors import ModelLoadError

# Reads a weight by its name, in the type that it is stored in.
Take: TypeAlias = Callable[[str], Tensor]

# The numbers that are converted at once: they stay in the cache, and torch starts no threads for so few,
# which would spin while other processes have the cores.
BLOCK = (1 << 15) - 64


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of a weight in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def find_extents(checkpoint: Checkpoint) -> dict[str, Extent]:
    """Lists the weights of floats in all files of a checkpoint."""
    extents = {}
    for path in checkpoint.weights:
        header: dict[str, Any] = read_header(path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
        for name, entry in header.items():
            if entry["dtype"] not in FLOATS:
                continue
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            )
            begin = 8 + length + int(entry["data_offsets"][0])
            extents[name] = Extent(path, begin, FLOATS[entry["dtype"]], tuple(entry["shape"]))
    return extents


def read(checkpoint: Checkpoint, name: str, extent: Extent, dtype: torch.dtype = torch.float32) -> Tensor:
    """Reads one weight and converts it, block by block; raises ModelLoadError if it is not finite."""
    weight = torch.empty(extent.shape, dtype=dtype)
    left, block = weight.view(-1), torch.empty(min(BLOCK, weight.numel()), dtype=extent.dtype)
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        while len(left):
            part = block[: len(left)]
            bytes_: Any = part.view(torch.uint8).numpy()
            if file.readinto(bytes_) != part.nbytes:
                raise ModelLoadError(f"{extent.path}: ends before {name!r}: copy it again")
            check_finite(checkpoint, name, part)
            left[: len(part)] = part
            left = left[len(part) :]
    return weight


def read_rows(checkpoint: Checkpoint, name: str, extent: Extent, picked: tuple[int, ...]) -> Tensor:
    """Reads some rows of one weight in fp32, likewise  # [len(picked), columns]."""
    width = prod(extent.shape[1:])
    size = width * extent.dtype.itemsize
    rows = [
        read(checkpoint, name, replace(extent, offset=extent.offset + row * size, shape=(width,)))
        for row in picked
    ]
    return torch.stack(rows)


def mapper(extents: Mapping[str, Extent]) -> Take:
    """Makes a function that maps weights from their files: a page is read when a value of it is."""
    files = {
        path: torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        for path in {extent.path for extent in extents.values()}
    }

    def take(name: str) -> Tensor:
        extent = extents[name]
        size = prod(extent.shape) * extent.dtype.itemsize
        bytes_ = files[extent.path][extent.offset : extent.offset + size]
        if extent.offset % extent.dtype.itemsize:
            bytes_ = bytes_.clone()  # a view would not be aligned
        return bytes_.view(extent.dtype).view(extent.shape)

    return take


def check_finite(checkpoint: Checkpoint, name: str, weight: Tensor) -> None:
    """Raises ModelLoadError for a weight that holds NaN or infinity."""
    # The least and the largest are not finite if any value is not; a sum in float64 would copy.
    if weight.numel() and not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
        raise ModelLoadError(f"{checkpoint.directory}: weight {name!r} is not finite: copy the weights again")
