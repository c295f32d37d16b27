"""Sequences, and the PackedBatch: the one value between scheduler and runner."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

TOKEN_BYTES = 4  # token ids travel as int32, native byte order


@dataclass(frozen=True, slots=True)
class Sequence:
    """One run of tokens to be scored: a pair for a cross-encoder, a text for a bi-encoder.

    Equal sequences of one model score the same, so this is also the key under
    which identical work is found; bytes hash once and compare fast.

    Attributes:
        ids: token ids, packed as int32.
        split: where segment B begins (token_type_ids 1); 0 means nowhere.
    """

    ids: bytes
    split: int = 0

    @classmethod
    def of(cls, ids: Iterable[int], split: int = 0) -> Sequence:
        """Packs token ids."""
        return cls(array("i", ids).tobytes(), split)

    def __len__(self) -> int:
        return len(self.ids) // TOKEN_BYTES

    def token_ids(self) -> list[int]:
        """Unpacks the token ids."""
        return array("i", self.ids).tolist()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences that go through the model together, in this order, unpadded."""

    sequences: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all sequences."""
        return sum(len(sequence) for sequence in self.sequences)
