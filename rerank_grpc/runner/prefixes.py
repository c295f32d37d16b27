"""Which prefixes a pass finds computed, and which it computes."""

from __future__ import annotations

from rerank_grpc.kernels.base import KeysValues
from rerank_grpc.runner.kept import KeptPrefixes
from rerank_grpc.sequence import PackedBatch, Prefix


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
