"""Packs sequences into one row of integers, which one copy brings to a device, and reads that row there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rerank_grpc.kernels.base import KeysValues, Layout
from rerank_grpc.kernels.causal import Contexts, key_ranges
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, Sequence

Ints: TypeAlias = npt.NDArray[np.int32]
Lengths: TypeAlias = tuple[int, ...]
Part: TypeAlias = Prefix | Sequence  # a run of tokens in a pass


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The integers of one pass, and the sizes by which they are read; its parts are prefixes and sequences.

    `ints` are token ids, positions and segments  # [3 · num_tokens], where the parts
    begin  # [num_parts + 1], and with `key_lengths` the rows of their keys and where
    those begin  # [num_keys + num_parts + 1]
    """

    ints: Ints
    num_tokens: int
    num_parts: int
    lengths: Lengths  # of the parts; () for a captured pass
    longest: int
    contexts: Contexts = ()  # the prefix which each part continues; () if none does
    prefixes: tuple[KeysValues, ...] = ()  # those which the first parts leave
    key_lengths: Lengths = ()  # the number of keys of each part; () if a part sees its own tokens


def pack(sequences: Iterable[Sequence], prefixes: Prefixes, *, gathers: bool = False) -> PackedBatch:
    """Lays out the missing prefixes and behind them the sequences; `gathers` adds the rows of their keys.

    The rows of keys are there too where a sequence has tokens that none sees.
    """
    parts: list[Part] = [*prefixes.missing, *sequences]
    lengths = tuple([len(part.ids) // TOKEN_BYTES for part in parts])
    contexts, made = _contexts(parts, prefixes) if prefixes.used else ((), ())
    starts, seen = _starts(lengths), Lengths()
    columns = [*_rows(parts, starts, contexts), starts]
    if ranges := key_ranges(contexts, made, lengths) if gathers and contexts else _seen_of(parts, starts):
        keys, seen = _keys(ranges)
        columns += keys
    ints, count = np.concatenate(columns), len(columns[0])
    return PackedBatch(ints, count, len(parts), lengths, max(lengths), contexts, made, seen)


def tensors(packed: PackedBatch, ints: torch.Tensor) -> PackedTokens:
    """Reads a batch from its integers on the model's device  # [len(packed.ints)] int32."""
    count, places = packed.num_tokens, packed.num_parts + 1
    sizes = [count, count, count, places]
    if packed.key_lengths:
        sizes += [sum(packed.key_lengths), places]
    ids, positions, segments, starts, *seen = ints.split(sizes)
    key_rows, keys = None, None
    if seen:
        key_rows, keys = seen[0], Layout(seen[1], max(packed.key_lengths), packed.key_lengths)
    layout = Layout(starts, packed.longest, packed.lengths, keys, key_rows)
    return PackedTokens(ids, positions, segments, layout, packed.contexts, packed.prefixes)


def _rows(parts: list[Part], starts: Ints, contexts: Contexts) -> tuple[Ints, Ints, Ints]:
    """Ids, positions and segments of all tokens  # [num_tokens] each."""
    lengths = np.diff(starts)
    ids = np.frombuffer(b"".join([part.ids for part in parts]), np.int32)
    positions = np.arange(len(ids), dtype=np.int32) - np.repeat(starts[:-1], lengths)
    second = [part.segment_start if isinstance(part, Sequence) else 0 for part in parts]
    begins = np.repeat(np.array(second, np.int32), lengths)
    segments = ((begins > 0) & (positions >= begins)).astype(np.int32)
    if contexts:
        before = [context.tokens if context else 0 for context in contexts]
        positions += np.repeat(np.array(before, np.int32), lengths)
    return ids, positions, segments


def _contexts(parts: list[Part], prefixes: Prefixes) -> tuple[Contexts, tuple[KeysValues, ...]]:
    """The prefix which each part continues, and those that the first parts leave."""
    used, missing = prefixes
    before = [part.before if isinstance(part, Prefix) else part.prefix for part in parts]
    contexts = tuple([None if prefix is None else used[prefix] for prefix in before])
    return contexts, tuple([used[prefix] for prefix in missing])


def _seen_of(parts: list[Part], starts: Ints) -> list[list[range]]:
    """The rows that the tokens of each part see; [] if all see all of their part."""
    unseen = [part.unseen if isinstance(part, Sequence) else 0 for part in parts]
    if not any(unseen):
        return []
    ends = (starts[1:] - unseen).tolist()
    return [[range(start, end)] for start, end in zip(starts.tolist(), ends, strict=False)]


def _keys(ranges: list[list[range]]) -> tuple[list[Ints], Lengths]:
    """The rows of each part's keys and where those begin, and their number for each part."""
    key_lengths = tuple(sum(map(len, each)) for each in ranges)
    rows = [np.arange(part.start, part.stop, dtype=np.int32) for each in ranges for part in each]
    return [np.concatenate(rows), _starts(key_lengths)], key_lengths


def _starts(lengths: Lengths) -> Ints:
    return np.array([0, *accumulate(lengths)], np.int32)
