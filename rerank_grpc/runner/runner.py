"""Turns a PackedBatch into tensors, runs the model once, and brings the outputs back."""

from __future__ import annotations

import traceback
from typing import Protocol, runtime_checkable

import torch

from rerank_grpc.models.base import Model, PackedTokens
from rerank_grpc.runner.kept import KeptPrefixes
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.sequence import Output, PackedBatch, Prefix, Sequence

# How the CPU's allocator, pinned memory, cuBLAS and Triton say it; torch's own GPU allocator has a class.
NO_MEMORY = (
    "allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "[CUDA]: out of memory",
)


class OutOfMemory(Exception):
    """The batch does not fit the device's memory; a smaller one may."""


class DeviceLost(Exception):
    """The device answers no more, and will not until the process is started again."""


class Runner(Protocol):
    """What the engine asks of a device."""

    def run(self, batch: PackedBatch) -> list[Output | None]:
        """Scores every sequence; None for one whose output is not finite.

        Raises OutOfMemory, DeviceLost, or whatever broke the pass.
        """


class Pending(Protocol):
    """A batch on its way."""

    def result(self) -> list[Output | None]:
        """Waits for the batch; asked for once. See Runner.run."""


@runtime_checkable
class Overlapping(Runner, Protocol):
    """A runner whose device computes while the thread that calls goes on.

    Attributes:
        depth: how many batches may be launched and not waited for.
    """

    depth: int

    def launch(self, batch: PackedBatch) -> Pending:
        """Sends a batch on its way; raises as Runner.run does, or leaves that to the result."""


class ModelRunner:
    """Runs one model on the CPU, on the thread that calls."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kept = KeptPrefixes()

    @torch.inference_mode()
    def run(self, batch: PackedBatch) -> list[Output | None]:
        """Scores every sequence in one pass: see Runner.run."""
        prefixes = Prefixes(batch, self._kept)
        try:
            rows = self._model.forward(pack(batch, prefixes))  # [num_sequences, width]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._kept.clear()
            traceback.clear_frames(error.__traceback__)  # they hold what the pass had made so far
            raise OutOfMemory(f"{batch.num_tokens} tokens exceed the device's memory") from None
        self._kept.keep(prefixes.used)
        return outputs_of(rows)


def outputs_of(rows: torch.Tensor) -> list[Output | None]:
    """A number or a vector for each row on the host; None for one that is not finite."""
    finite = torch.isfinite(rows).all(dim=1).tolist()
    values = rows[:, 0].tolist() if rows.shape[1] == 1 else list(rows.numpy())
    return [value if ok else None for value, ok in zip(values, finite, strict=True)]


def pack(batch: PackedBatch, prefixes: Prefixes | None = None) -> PackedTokens:
    """Lays the missing prefixes and the batch's sequences end to end."""
    prefixes = prefixes or Prefixes(batch)
    used, missing = prefixes.used, prefixes.missing
    parts: list[Prefix | Sequence] = [*missing, *batch.sequences]
    before = [prefix.before for prefix in missing] + [sequence.prefix for sequence in batch.sequences]
    contexts = tuple(None if prefix is None else used[prefix] for prefix in before) if used else ()
    lengths = tuple(map(len, parts))
    ids = bytearray().join(part.ids for part in parts)
    input_ids = torch.frombuffer(ids, dtype=torch.int32).long()  # [num_tokens]
    sizes = torch.tensor(lengths)  # [num_parts]
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(len(input_ids)) - starts.repeat_interleave(sizes)  # [num_tokens]
    splits = torch.tensor(
        [len(prefix) for prefix in missing] + [each.split or len(each) for each in batch.sequences]
    )
    token_type_ids = (places >= splits.repeat_interleave(sizes)).long()  # [num_tokens]
    if contexts:
        places += torch.tensor([context.tokens if context else 0 for context in contexts]).repeat_interleave(
            sizes
        )
    return PackedTokens(
        input_ids,
        places,
        token_type_ids,
        lengths,
        contexts,
        tuple(used[prefix] for prefix in missing),
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might not have failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
