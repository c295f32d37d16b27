"""Whether a model, and then a batch, fits the memory that a GPU has free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.units import size

# For the passes, their captured graphs, and the libraries' own buffers.
RESERVE = 1 << 30
# How much of what is free a batch may be expected to take: the next one differs a little.
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a GPU: `free` for this process, `used` by its tensors now, and at most since last asked."""

    free: int
    used: int
    peak: int


def memory_of(device: torch.device) -> Memory | None:
    """Asks a GPU, and begins a new count of the peak; None for the CPU."""
    if device.type != "cuda":
        return None
    used, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - used
    torch.cuda.reset_peak_memory_stats(device)
    return Memory(torch.cuda.mem_get_info(device)[0] + unused, used, peak)


def check_room(
    source: str, needed: int, precision: str, device: torch.device, known: Iterable[KnownModel]
) -> None:
    """Raises ModelLoadError if a model that needs so many bytes does not fit, and says what would.

    `known` are models of which one may be named instead.
    """
    memory = memory_of(device)
    if memory is None or needed + RESERVE <= memory.free:
        return
    room = memory.free - RESERVE
    ways = [*_smaller_precision(needed, precision, room, device), *_smaller_model(precision, room, known)]
    raise ModelLoadError(
        f"{source} takes about {size(needed)} in {precision} and {size(RESERVE)} to work in, "
        f"and {size(memory.free)} are free on {device}: use {', or '.join([*ways, 'cpu'])}"
    )


def _smaller_precision(needed: int, precision: str, room: int, device: torch.device) -> Iterable[str]:
    half = needed // 2
    if DTYPES[precision] is torch.float32 and half <= room:
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        yield f"precision {name} ({size(half)})"


def _smaller_model(precision: str, room: int, known: Iterable[KnownModel]) -> Iterable[str]:
    name = "bf16" if precision == "fp16" else precision
    sizes = [(entry.memory_mib.get(name, 0) << 20, entry.id) for entry in known if not entry.unsupported]
    fitting = [pair for pair in sizes if 0 < pair[0] <= room]
    if fitting:
        taken, largest = max(fitting)
        yield f"{largest} ({size(taken)})"


class BatchRoom:
    """Tells from what batches took whether a larger one would fit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bytes_per_token = 0.0

    def measured(self, tokens: int) -> None:
        """Takes note that a batch of so many tokens has just run."""
        memory = memory_of(self._device)
        if memory is not None:
            self._bytes_per_token = max(0, memory.peak - memory.used) / tokens

    def fits(self, tokens: int) -> bool:
        """Whether a batch of so many tokens is expected to fit."""
        memory = memory_of(self._device)
        return memory is None or self._bytes_per_token * tokens <= SHARE * memory.free
