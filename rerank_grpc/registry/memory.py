"""The memory of models: estimated before a load, checked, measured after it, and given back."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.checkpoints.checkpoint import read_header
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.models.limits import kept_token_bytes
from rerank_grpc.runner.prefixes import MAX_KEPT_TOKENS
from rerank_grpc.units import size

RESERVE_BYTES = 1 << 30  # of a GPU, for the passes, their captured graphs, and the libraries' own buffers
SHARE_FOR_ONE_BATCH = 0.8  # of the free memory, expected of a batch; the next one differs a little

HOST = torch.device("cpu")
MOST_KEPT_BYTES = 64 << 20  # growth before glibc, which keeps freed memory, is told to give it back
TRIM_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 640.0


class TooLarge(ModelLoadError):
    """A model that cannot fit, however often its load is tried."""


def estimate(weights: Iterable[Path], config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Returns the bytes of a checkpoint's weights in `dtype`, and of the prefixes that it may keep."""
    count: int = sum(math.prod(entry["shape"]) for path in weights for entry in read_header(path).values())
    return count * dtype.itemsize + MAX_KEPT_TOKENS * kept_token_bytes(config, dtype)


def known_bytes(known: KnownModel | None, precision: str) -> int:
    """Returns the catalogue's figure for a model; 0 where it has none."""
    return known.memory_mib.get(precision, 0) << 20 if known else 0


def check_budget(name: str, needed: int, budget: int | None, *, about: str = "") -> None:
    """Raises TooLarge if a model alone exceeds the budget of all models; `about` marks an estimate."""
    if budget is not None and needed > budget:
        raise TooLarge(
            f"model {name} takes {about}{size(needed)} where all models together may take "
            f"{size(budget)}: raise --model-memory, or hold it in a smaller --precision"
        )


def check_memory(
    source: str, needed: int, precision: str, device: torch.device, known: Iterable[KnownModel]
) -> None:
    """Raises ModelLoadError if a GPU has too little free memory, and names smaller choices out of `known`."""
    memory = memory_of(device)
    if memory is None or needed + RESERVE_BYTES <= memory.free:
        return
    left = memory.free - RESERVE_BYTES
    choices = [*_smaller_precision(needed, precision, left, device), *_smaller_model(precision, left, known)]
    raise ModelLoadError(
        f"{source} takes about {size(needed)} in {precision} and {size(RESERVE_BYTES)} to work in, "
        f"and {size(memory.free)} are free on {device}: use {', or '.join([*choices, 'cpu'])}"
    )


def _smaller_precision(needed: int, precision: str, left: int, device: torch.device) -> Iterable[str]:
    half = needed // 2
    if DTYPES[precision] is torch.float32 and half <= left:
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        yield f"precision {name} ({size(half)})"


def _smaller_model(precision: str, left: int, known: Iterable[KnownModel]) -> Iterable[str]:
    name = "bf16" if precision == "fp16" else precision
    sizes = [(known_bytes(each, name), each.id) for each in known if not each.unsupported]
    fitting = [pair for pair in sizes if 0 < pair[0] <= left]
    if fitting:
        taken, largest = max(fitting)
        yield f"{largest} ({size(taken)})"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a GPU: `free` for this process, `used` by its tensors now, and their last `peak`."""

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


def used_bytes(device: torch.device) -> int:
    """Returns this process's bytes: torch's on a GPU, else the resident set (0 where unknown)."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        resident_pages = Path("/proc/self/statm").read_text().split()[1]
        return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class BatchMemory:
    """Tells from the peak of past batches whether a larger one would fit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bytes_per_token = 0.0

    def measured(self, tokens: int) -> None:
        """Takes the peak of a batch of `tokens`, which has just run."""
        memory = memory_of(self._device)
        if memory is not None:
            self._bytes_per_token = max(0, memory.peak - memory.used) / tokens

    def fits(self, tokens: int) -> bool:
        """Whether a batch of `tokens` is expected to fit."""
        memory = memory_of(self._device)
        return memory is None or self._bytes_per_token * tokens <= SHARE_FOR_ONE_BATCH * memory.free


def give_back(device: torch.device) -> None:
    """Returns freed memory to the system, for other processes and for the next measurement.

    No garbage is collected: a model is in no cycle, and with torch loaded a
    collection stops every thread for half a second.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # other C libraries return large blocks by themselves
        ctypes.CDLL(None).malloc_trim(0)


class Trimmer:
    """Tells when this process should give memory back.

    Growth counts from the least use after any trim. A trim that frees little
    shows that the memory is needed, and doubles the pause before the next one.
    """

    def __init__(self) -> None:
        self._least = used_bytes(HOST)
        self._pause, self._next = TRIM_SECONDS, 0.0

    def due(self, now: float) -> bool:
        """Whether the process has grown by MOST_KEPT_BYTES; looks once in each pause."""
        if now < self._next:
            return False
        self._next = now + self._pause
        return used_bytes(HOST) > self._least + MOST_KEPT_BYTES

    def trim(self) -> None:
        before = used_bytes(HOST)
        give_back(HOST)
        after = used_bytes(HOST)
        self._least = min(self._least, after)
        freed_much = before - after > MOST_KEPT_BYTES
        self._pause = TRIM_SECONDS if freed_much else min(2 * self._pause, LONGEST_PAUSE_SECONDS)
