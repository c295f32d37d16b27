"""The seam between engine and device, and the runner of the CPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

import torch

from rerank_grpc.models.base import Model
from rerank_grpc.runner.outputs import outputs_of
from rerank_grpc.runner.packing import pack, tensors
from rerank_grpc.runner.prefixes import PrefixCache
from rerank_grpc.sequence import Output, Sequence

# How the CPU's allocator, pinned memory, Inductor, cuBLAS and Triton say it; torch's GPU one has a class.
NO_MEMORY = (
    "allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "[CUDA]: out of memory",
)


class OutOfMemory(Exception):
    """The batch does not fit the device's memory; a smaller one may."""


class DeviceLost(Exception):
    """The device answers no more, and will not until the process is started again."""


Landing: TypeAlias = Callable[[], list[Output | None]]  # waits for a batch, once; None is not finite


class Runner(Protocol):
    """Runs batches on one device, up to `depth` of them launched and not landed; one thread calls it."""

    depth: int

    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        """Starts a batch; this or the landing raises OutOfMemory, DeviceLost, or what broke the pass."""


class CpuRunner:
    """Runs one model on the CPU: a batch runs on the thread that lands it."""

    depth = 1

    def __init__(self, model: Model) -> None:
        self._model = model
        self._prefixes = PrefixCache()

    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        return partial(self._run, sequences)

    @torch.inference_mode()
    def _run(self, sequences: tuple[Sequence, ...]) -> list[Output | None]:
        prefixes = self._prefixes.take(sequences)
        packed = pack(sequences, prefixes)
        try:
            rows = self._model.forward(tensors(packed, torch.from_numpy(packed.ints)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()
            traceback.clear_frames(error.__traceback__)  # they hold what the pass had made until then
            raise OutOfMemory(f"{packed.num_tokens} tokens exceed the device's memory") from None
        if prefixes.used:
            self._prefixes.keep(prefixes.used)
        return outputs_of(rows, sequences, self._model.card)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might not have failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
