"""Reads a checkpoint's weights one at a time, so that no more than one is in memory twice."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rerank_grpc.checkpoints.checkpoint import FLOATS, Checkpoint, read_header
from rerank_grpc.errors import ModelLoadError

OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of a weight in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def reader(checkpoint: Checkpoint, network: torch.nn.Module) -> Callable[[str], torch.Tensor] | None:
    """A function that reads a weight by its name, in fp32.

    None unless the files hold every parameter of `network`, in its shape, under
    its own name: then transformers knows what to do or what to say.
    """
    extents = find_extents(checkpoint)
    for name, parameter in network.named_parameters():
        if name not in extents or extents[name].shape != tuple(parameter.shape):
            return None
    return lambda name: read(checkpoint, name, extents[name])


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
            for old, new in OLD_NAMES:
                name = name.replace(old, new)
            begin = 8 + length + int(entry["data_offsets"][0])
            extents[name] = Extent(path, begin, FLOATS[entry["dtype"]], tuple(entry["shape"]))
    return extents


def read(checkpoint: Checkpoint, name: str, extent: Extent) -> torch.Tensor:
    """Reads one weight in fp32, or raises ModelLoadError if it is not finite."""
    weight = torch.empty(extent.shape, dtype=extent.dtype)
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        bytes_: Any = weight.view(-1).view(torch.uint8).numpy()
        if file.readinto(bytes_) != weight.nbytes:
            raise ModelLoadError(f"{extent.path}: ends before {name!r}: copy it again")
    # The least and the largest are not finite if any value is not; a sum in float64 would copy.
    if not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
        raise ModelLoadError(f"{checkpoint.directory}: weight {name!r} is not finite: copy the weights again")
    return weight.float()
