"""Turns a PackedBatch into tensors, runs the model once, and brings the outputs back."""

from __future__ import annotations

from typing import Protocol

import torch

from rerank_grpc.engine.batch import PackedBatch, Prefix, Sequence
from rerank_grpc.engine.kept import KeptPrefixes
from rerank_grpc.engine.request import Output
from rerank_grpc.models.base import Model, PackedTokens
from rerank_grpc.models.causal import KeysValues


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
        self._kept = KeptPrefixes()

    @torch.inference_mode()
    def run(self, batch: PackedBatch) -> list[Output | None]:
        """Scores every sequence in one pass: see Runner.run."""
        prefixes = Prefixes(batch, self._kept)
        try:
            rows = self._model.forward(pack(batch, self._device, prefixes)).cpu()  # [num_sequences, width]
        except Exception as error:
            if _is_out_of_memory(error):
                self._kept.clear()
                raise OutOfMemory(f"{batch.num_tokens} tokens exceed the device's memory") from error
            raise
        self._kept.keep(prefixes.used)
        finite = torch.isfinite(rows).all(dim=1).tolist()
        values = rows[:, 0].tolist() if rows.shape[1] == 1 else list(rows.numpy())
        return [value if ok else None for value, ok in zip(values, finite, strict=True)]


class Prefixes:
    """The prefixes of a batch: those that are kept, and those that this pass has to compute.

    Attributes:
        used: all of them, each after the one which it continues.
        missing: those to compute, in the same order.
    """

    def __init__(self, batch: PackedBatch, kept: KeptPrefixes | None = None) -> None:
        self.used: dict[Prefix, KeysValues] = {}
        self.missing: list[Prefix] = []
        for sequence in batch.sequences:
            if sequence.prefix is not None and sequence.prefix not in self.used:
                self._find(sequence.prefix, kept)

    def _find(self, prefix: Prefix, kept: KeptPrefixes | None) -> KeysValues:
        found = self.used.get(prefix) or (kept.get(prefix) if kept else None)
        if found is None:
            before = 0 if prefix.before is None else self._find(prefix.before, kept).tokens
            found = KeysValues(before + len(prefix))
            self.missing.append(prefix)
        self.used[prefix] = found
        return found


def pack(batch: PackedBatch, device: torch.device, prefixes: Prefixes | None = None) -> PackedTokens:
    """Lays the missing prefixes and the batch's sequences end to end as tensors on a device."""
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
        input_ids.to(device),
        places.to(device),
        token_type_ids.to(device),
        lengths,
        contexts,
        tuple(used[prefix] for prefix in missing),
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
