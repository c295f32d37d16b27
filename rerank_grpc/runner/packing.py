"""Packs sequences into one row of integers, which one copy brings to a device, and reads that row there."""

from __future__ import annotations

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
Rows: TypeAlias = tuple[Ints, Ints, Ints]
# A run of tokens in a pass.
Part: TypeAlias = Prefix | Sequence

# The longest sequence that a captured pass takes: the pass costs as much for any length up to this.
LONGEST_CAPTURED = 512


@dataclass(frozen=True, slots=True)
class GraphShape:
    """The shape of a captured pass: its tokens and its sequences, empty ones included."""

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The integers of one pass, and the sizes by which they are read.

    Attributes:
        ints: token ids, positions and segments  # [3 · num_tokens], where the
            parts begin  # [num_parts + 1], and with `key_lengths` the rows of
            their keys and where those begin  # [num_keys + num_parts + 1]
        num_tokens: the tokens of the pass, filler included.
        num_parts: the missing prefixes and the sequences, filler included.
        lengths: those of the parts; () for a captured pass.
        longest: no part has more tokens.
        contexts: the prefix which each part continues; () if none does.
        prefixes: the keys and values that the first parts leave.
        key_lengths: the number of keys of each part; () if a part sees its own tokens.
    """

    ints: Ints
    num_tokens: int
    num_parts: int
    lengths: tuple[int, ...]
    longest: int
    contexts: tuple[KeysValues | None, ...] = ()
    prefixes: tuple[KeysValues, ...] = ()
    key_lengths: tuple[int, ...] = ()


def pack(
    sequences: tuple[Sequence, ...],
    prefixes: Prefixes,
    shape: GraphShape | None = None,
    *,
    gathers: bool = False,
) -> PackedBatch:
    """Lays out the missing prefixes and behind them the sequences.

    With `gathers` the batch holds the rows of each part's keys. With `shape` it
    holds the filler of a captured pass, which takes no prefixes.
    """
    parts: list[Part] = [*prefixes.missing, *sequences]
    lengths = tuple([len(part.ids) // TOKEN_BYTES for part in parts])
    contexts, made = _contexts(parts, prefixes) if prefixes.used else ((), ())
    starts, key_lengths = _starts(lengths), tuple[int, ...]()
    rows = _rows(parts, starts, contexts)
    if shape is not None:
        return _captured(rows, starts, shape)
    columns = [*rows, starts]
    if gathers and contexts:
        keys, key_lengths = _keys(contexts, made, lengths)
        columns += keys
    return PackedBatch(
        np.concatenate(columns),
        *(len(rows[0]), len(parts), lengths, max(lengths)),
        *(contexts, made, key_lengths),
    )


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
    return PackedTokens(ids, positions, segments, packed.lengths, packed.contexts, packed.prefixes, layout)


def _captured(rows: Rows, starts: Ints, shape: GraphShape) -> PackedBatch:
    """Fills a batch up to a shape; filler comes first, so that every sequence begins at a row that exists."""
    extra, empty = shape.tokens - len(rows[0]), shape.sequences + 1 - len(starts)
    filler, columns = np.zeros(extra, np.int32), list[Ints]()
    for row in rows:
        columns += [filler, row]
    ints = np.concatenate([*columns, np.zeros(empty, np.int32), starts + extra], dtype=np.int32)
    return PackedBatch(ints, shape.tokens, shape.sequences, (), LONGEST_CAPTURED)


def _rows(parts: list[Part], starts: Ints, contexts: Contexts) -> Rows:
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


def _keys(
    contexts: Contexts, made: tuple[KeysValues, ...], lengths: tuple[int, ...]
) -> tuple[list[Ints], tuple[int, ...]]:
    """The rows of each part's keys and where those begin, and their number for each part."""
    ranges = key_ranges(contexts, made, lengths)
    key_lengths = tuple(sum(map(len, each)) for each in ranges)
    rows = [np.arange(part.start, part.stop, dtype=np.int32) for each in ranges for part in each]
    return [np.concatenate(rows), _starts(key_lengths)], key_lengths


def _starts(lengths: tuple[int, ...]) -> Ints:
    return np.array([0, *accumulate(lengths)], np.int32)
