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

OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))

_output = threading.Lock()


def read_network(auto_class: Any, checkpoint: Checkpoint, *, attention: str | None, **options: Any) -> Any:
    """Loads a checkpoint in its stored precision, on the CPU, in evaluation mode.

    Raises ModelLoadError if transformers cannot build it, or unless all weights
    are there, of the right shape and finite.
    """
    if attention is not None:
        options["attn_implementation"] = attention
    directory = checkpoint.directory
    with quiet():
        try:
            network, report = auto_class.from_pretrained(
                directory,
                dtype=checkpoint.dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # the operator gets one line, whatever is wrong with the files
            raise ModelLoadError(
                f"{directory}: transformers cannot load it ({_one_line(error)}): "
                "check that config.json and the weights belong together"
            ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]!r} first: "
            "config.json and the weights do not belong together, or the model was never trained for this"
        )
    _check_finite(network, checkpoint)
    return network.eval().requires_grad_(False)


def read_outline(auto_class: Any, checkpoint: Checkpoint, **options: Any) -> tuple[Any, Take]:
    """Builds a network without weights, and a function that reads them, each to be taken once.

    One weight at most is then in memory twice. Files that are not plain are left
    to read_network, with its errors.
    """
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                checkpoint.directory, local_files_only=True, trust_remote_code=False
            )
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
    """Makes a function that reads the weights of a network.

    None unless the files hold every parameter, in its shape, under its own name:
    transformers knows how to read other files, or the error to raise.
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


def read(checkpoint: Checkpoint, name: str, extent: Extent) -> Tensor:
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


def load_parameters(module: Any, take: Take, name: str) -> Any:
    """Gives a network's part its weights, in fp32, on the CPU."""
    state = {key: take(f"{name}.{key}") for key, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False)


def _check_finite(network: torch.nn.Module, checkpoint: Checkpoint) -> None:
    for name, weight in network.named_parameters():
        # A sum is not finite if any value is not, and costs no second copy.
        if not torch.isfinite(weight.sum(dtype=torch.float64)):
            raise ModelLoadError(
                f"{checkpoint.directory}: weight {name!r} is not finite: copy the weights again"
            )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


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
