"""Reads a checkpoint's weights into transformers' own networks, or one at a time."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging

from rerank_grpc.checkpoints.checkpoint import FLOATS, Checkpoint, read_header
from rerank_grpc.errors import ModelLoadError

# Reads a weight by its name, in fp32.
Take: TypeAlias = Callable[[str], Tensor]

# Transformers neither asks the hub nor runs a checkpoint's own code.
SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

_output = threading.Lock()


def read_network(auto_class: Any, checkpoint: Checkpoint, *, attention: str | None, **options: Any) -> Any:
    """Loads a checkpoint in its stored precision, on the CPU, in evaluation mode.

    Raises ModelLoadError if transformers cannot build it, or a weight is missing, misshapen or not finite.
    """
    options |= SAFE | {"dtype": checkpoint.dtype, "use_safetensors": True, "output_loading_info": True}
    if attention is not None:
        options["attn_implementation"] = attention
    directory = checkpoint.directory
    with quiet():
        try:
            network, report = auto_class.from_pretrained(directory, **options)
        except Exception as error:  # the operator gets one line, whatever is wrong with the files
            reason = " ".join(str(error).split())[:160]
            raise ModelLoadError(
                f"{directory}: transformers cannot load it ({type(error).__name__}: {reason}): "
                "check that config.json and the weights belong together"
            ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]!r} first: "
            "config.json and the weights do not belong together, or the model was never trained for this"
        )
    for name, weight in network.named_parameters():
        _check_finite(checkpoint, name, weight)
    return network.eval().requires_grad_(False)


def read_outline(auto_class: Any, checkpoint: Checkpoint, **options: Any) -> tuple[Any, Take]:
    """Builds a network without weights, and a function that reads them, each to be taken once.

    One weight at most is then in memory twice. Files that are not plain go to read_network, with its errors.
    """
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(checkpoint.directory, **SAFE)
            network = auto_class.from_config(config, **options)
        take = reader(checkpoint, network)
    except Exception:
        take = None
    if take is not None:
        return network.eval(), take
    network = read_network(auto_class, checkpoint, attention=None, **options)
    parameters = dict(network.named_parameters())
    return network, lambda name: parameters[name].detach().float()


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of a weight in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def reader(checkpoint: Checkpoint, network: torch.nn.Module) -> Take | None:
    """Makes a function that reads a network's weights; None leaves them to transformers.

    The files must hold every parameter, in its shape, under its own name.
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
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            )
            begin = 8 + length + int(entry["data_offsets"][0])
            extents[name] = Extent(path, begin, FLOATS[entry["dtype"]], tuple(entry["shape"]))
    return extents


def read(checkpoint: Checkpoint, name: str, extent: Extent) -> Tensor:
    """Reads one weight in fp32, or raises ModelLoadError if it is not finite."""
    weight = torch.empty(extent.shape, dtype=extent.dtype)
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        bytes_: Any = weight.view(-1).view(torch.uint8).numpy()
        if file.readinto(bytes_) != weight.nbytes:
            raise ModelLoadError(f"{extent.path}: ends before {name!r}: copy it again")
    _check_finite(checkpoint, name, weight)
    return weight.float()


def _check_finite(checkpoint: Checkpoint, name: str, weight: Tensor) -> None:
    # The least and the largest are not finite if any value is not; a sum in float64 would copy.
    if weight.numel() and not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
        raise ModelLoadError(f"{checkpoint.directory}: weight {name!r} is not finite: copy the weights again")


def load_parameters(module: Any, take: Take, name: str) -> Any:
    """Gives a network's part its weights, in fp32, on the CPU."""
    state = {key: take(f"{name}.{key}") for key, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars and from warnings about files that are checked here."""
    with _output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
