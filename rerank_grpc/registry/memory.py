"""The memory of models: estimated before a load, checked, measured after it, and given back."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.config.allowance import MemoryLimit, memory_limit
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.registry.budget import LARGEST_ON_CPU, SMALLEST_BATCH_TOKENS
from rerank_grpc.units import size

RESERVE_BYTES = 1 << 30  # of a GPU, for the passes, their captured graphs, and the libraries' own buffers
MOST_BATCH_BYTES = RESERVE_BYTES // 2  # expected of a batch: one that takes more fills no card better
SHARE_FOR_ONE_BATCH = 0.8  # of a GPU's free memory, expected of a batch; the next one differs a little
SHARE_ON_CPU = 0.5  # of what is free; the other half is for the calls that wait
PARTS_OF_LIMIT = 8  # a batch on a CPU takes at most one of so many parts of the memory limit

HOST = torch.device("cpu")
MOST_KEPT_BYTES = 64 << 20  # growth before glibc, which keeps freed memory, is told to give it back
TRIM_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 640.0


class TooLarge(ModelLoadError):
    """A model that cannot fit, however often its load is tried."""


class Shortage(ModelLoadError):
    """A model for which too little is free now; `missing` more bytes would do."""

    def __init__(self, text: str, missing: int) -> None:
        super().__init__(text)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """The bytes that all models in memory may take together; None where nothing bounds them.

    `option` is --model-memory, `left` what the memory limit of `source` leaves. Within the limit each model
    needs room for a batch beside its weights.
    """

    option: int | None = None
    left: int | None = None
    source: str = "this machine"

    def room(self, batches: int = 0) -> int | None:
        """Returns the bytes for models that have batches of so many bytes in all."""
        bounds = [each for each in (self.option, self._beside(batches)) if each is not None]
        return min(bounds, default=None)

    def remedy(self, batches: int = 0) -> str:
        """Names the smaller bound, and how it is raised."""
        beside = self._beside(batches)
        if beside is None or (self.option is not None and self.option <= beside):
            return "raise --model-memory"
        return f"raise the memory limit of {self.source}"

    def _beside(self, batches: int) -> int | None:
        return None if self.left is None else max(0, self.left - batches)


UNBOUNDED = ModelBudget()


def known_bytes(known: KnownModel | None, precision: str) -> int:
    """Returns the catalogue's figure for a model; 0 where it has none."""
    return known.memory_mib.get(precision, 0) << 20 if known else 0


def check_budget(name: str, needed: int, budget: ModelBudget, *, about: str = "") -> None:
    """Raises TooLarge if a model alone exceeds the budget of all models; `about` marks an estimate."""
    room = budget.room()
    if room is not None and needed > room:
        raise TooLarge(
            f"model {name} takes {about}{size(needed)} where all models together may take "
            f"{size(room)}: {budget.remedy()}, or hold it in a smaller --precision"
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


def device_bytes(device: torch.device) -> tuple[int, int] | None:
    """Returns the used and the free bytes of a GPU, or of the machine for the CPU; None where unknown."""
    try:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            return total - free, free
        # In KiB: "MemTotal:       16303372 kB".
        rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        found = {row[0]: int(row[1]) << 10 for row in rows}
        return found["MemTotal:"] - found["MemAvailable:"], found["MemAvailable:"]
    except (OSError, KeyError, ValueError, IndexError, RuntimeError):  # a broken GPU raises the last
        return None


def most_batch_tokens(token_bytes: float, limit: MemoryLimit | None) -> int:
    """Returns the largest batch that is tried on a CPU within a memory limit: a power of two."""
    most = MOST_BATCH_BYTES if limit is None else min(MOST_BATCH_BYTES, limit.most // PARTS_OF_LIMIT)
    tokens = LARGEST_ON_CPU
    while tokens > SMALLEST_BATCH_TOKENS and tokens * token_bytes > most:
        tokens //= 2
    return tokens


class BatchMemory:
    """Tells whether a larger batch would fit: on a GPU from the peak of past ones, on a CPU by arithmetic."""

    def __init__(self, device: torch.device, bytes_per_token: float = 0.0) -> None:
        self._device = device
        self._bytes_per_token = bytes_per_token

    def measured(self, tokens: int) -> None:
        """Takes the peak of a batch of `tokens`, which has just run."""
        memory = memory_of(self._device)
        if memory is not None:
            self._bytes_per_token = max(0, memory.peak - memory.used) / tokens

    def fits(self, tokens: int) -> bool:
        """Whether a batch of `tokens` is expected to fit."""
        expected = self._bytes_per_token * tokens
        if self._device.type == "cpu":
            limit = memory_limit()
            free = limit is None or expected <= SHARE_ON_CPU * limit.free
            return free and tokens <= most_batch_tokens(self._bytes_per_token, limit)
        memory = memory_of(self._device)
        return memory is None or expected <= min(MOST_BATCH_BYTES, SHARE_FOR_ONE_BATCH * memory.free)


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
