"""Turns a PackedBatch into tensors, runs the model once, and brings the outputs back."""

from __future__ import annotations

from typing import Protocol

import torch

from rerank_grpc.engine.batch import PackedBatch
from rerank_grpc.engine.request import Output
from rerank_grpc.models.base import Model, PackedTokens


class OutOfMemory(Exception):
    """The batch does not fit the device's memory; a smaller one may."""


class Runner(Protocol):
    """What the engine asks of a device."""

    def run(self, batch: PackedBatch) -> list[Output | None]:
        """Scores every sequence; None for one whose output is not finite.

        Raises OutOfMemory, or whatever broke the pass.
        """


class ModelRunner:
    """Runs one model, on the thread that calls."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._device = torch.device(model.card.device)

    @torch.inference_mode()
    def run(self, batch: PackedBatch) -> list[Output | None]:
        """Scores every sequence in one pass: see Runner.run."""
        try:
            rows = self._model.forward(pack(batch, self._device)).cpu()  # [num_sequences, width]
        except Exception as error:
            if _is_out_of_memory(error):
                raise OutOfMemory(f"{batch.num_tokens} tokens exceed the device's memory") from error
            raise
        finite = torch.isfinite(rows).all(dim=1).tolist()
        values = rows[:, 0].tolist() if rows.shape[1] == 1 else list(rows.numpy())
        return [value if ok else None for value, ok in zip(values, finite, strict=True)]


def pack(batch: PackedBatch, device: torch.device) -> PackedTokens:
    """Lays the batch's sequences end to end as tensors on a device."""
    lengths = tuple(map(len, batch.sequences))
    ids = bytearray().join(sequence.ids for sequence in batch.sequences)
    input_ids = torch.frombuffer(ids, dtype=torch.int32).long()  # [num_tokens]
    sizes = torch.tensor(lengths)  # [num_sequences]
    starts = sizes.cumsum(0) - sizes
    position_ids = torch.arange(len(input_ids)) - starts.repeat_interleave(sizes)  # [num_tokens]
    splits = torch.tensor([sequence.split or len(sequence) for sequence in batch.sequences])
    token_type_ids = (position_ids >= splits.repeat_interleave(sizes)).long()  # [num_tokens]
    return PackedTokens(input_ids.to(device), position_ids.to(device), token_type_ids.to(device), lengths)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
