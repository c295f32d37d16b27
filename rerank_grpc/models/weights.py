"""Reads a checkpoint's weights into transformers' own networks, or one at a time."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
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

# Makes another weight of a parameter and its name in the network; None leaves it as it is.
Swap: TypeAlias = Callable[[Tensor, str], Tensor | None]

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


def convert_weights(body: Any, dtype: torch.dtype) -> Any:
    """Converts the weights of a body, one at a time, where it stands, and gives it back."""
    # Not .to(dtype), which would round the frequencies of the rotary embedding as well.
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
    return body


def mapper(extents: Mapping[str, Extent]) -> Take:
    """Makes a function that maps weights from their files: a page is read when a value of it is.

    Weights that are stored in fp32 are copied nowhere.
    """
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
        return bytes_.view(extent.dtype).view(extent.shape).float()

    return take


@contextmanager
def swapped_weights(network: Any, swap: Swap) -> Iterator[None]:
    """Gives each module other weights while it runs; `swap` makes them of a parameter and its name.

    Only those of the module that runs are in memory; the modules inside it have their own turns.
    """
    handles = []
    for path, module in network.named_modules():
        if module._parameters:
            handles += _swap_while_running(module, f"{path}." if path else "", swap)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _swap_while_running(module: Any, path: str, swap: Swap) -> list[Any]:
    own = dict(module._parameters)

    def enter(module: Any, _: object) -> None:
        for name, parameter in own.items():
            other = None if parameter is None else swap(parameter, path + name)
            if other is not None:
                module._parameters[name] = torch.nn.Parameter(other, requires_grad=False)

    def leave(module: Any, *_: object) -> None:
        module._parameters.update(own)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


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
