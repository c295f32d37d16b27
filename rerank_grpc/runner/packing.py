"""A batch as one row of integers, so that one copy brings it to a GPU: pure, and tested without one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from rerank_grpc.kernels.base import KeyRows, KeysValues, Layout
from rerank_grpc.kernels.causal import key_ranges
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.sequence import PackedBatch, Prefix, Sequence

Ints = npt.NDArray[np.int32]

# A captured pass costs what its longest sequence and its many sequences may cost, used or not: each
# size is captured for few sequences, as passages are, and for many, as titles are.
LONGEST_CAPTURED = 512
TOKENS_A_SEQUENCE = (96, 16)
LEAST_CAPTURED, MOST_CAPTURED = 8, 4_096


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What a captured pass is made for: so many tokens in so many sequences, empty ones included."""

    tokens: int
    sequences: int


def bucket(tokens: int) -> int:
    """Rounds up by less than an eighth, to one of eight sizes between a power of two and the next."""
    step = 1 << max(0, tokens.bit_length() - 4)
    return -(-tokens // step) * step


def shape_for(batch: PackedBatch) -> GraphShape | None:
    """The captured pass that a batch fits; None if it is too large, too long or of too many sequences.

    One sequence is left for the tokens that fill up.
    """
    tokens, longest = batch.num_tokens, max(map(len, batch.sequences), default=0)
    if not LEAST_CAPTURED <= tokens <= MOST_CAPTURED or longest > LONGEST_CAPTURED:
        return None
    shapes = _shapes(bucket(tokens))
    return next((shape for shape in shapes if len(batch.sequences) < shape.sequences), None)


def all_shapes() -> list[GraphShape]:
    """Every shape that shape_for can give, the largest first, so that the smaller ones reuse its memory."""
    sizes = {bucket(tokens) for tokens in range(LEAST_CAPTURED, MOST_CAPTURED + 1)}
    return [shape for tokens in sorted(sizes, reverse=True) for shape in reversed(_shapes(tokens))]


def _shapes(tokens: int) -> list[GraphShape]:
    """Those of one size, the one for the fewest sequences first."""
    counts = {max(1, tokens // each) + 1 for each in TOKENS_A_SEQUENCE}
    return [GraphShape(tokens, count) for count in sorted(counts)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes to the device for one pass.

    Attributes:
        ints: token ids, places and segments  # [3 · num_tokens], where the
            parts begin  # [num_parts + 1], and with `key_lengths` which keys
            they see and where those begin  # [num_keys + num_parts + 1]
        num_tokens: with those that fill a captured pass up.
        num_parts: likewise.
        lengths: of the parts; () for a captured pass.
        longest: no part is longer.
        order: whose output each of the last rows is, by place in the batch.
        contexts, prefixes: see PackedTokens.
        key_lengths: how many keys each part sees; () if it is its own tokens.
    """

    ints: Ints
    num_tokens: int
    num_parts: int
    lengths: tuple[int, ...]
    longest: int
    order: tuple[int, ...]
    contexts: tuple[KeysValues | None, ...] = ()
    prefixes: tuple[KeysValues, ...] = ()
    key_lengths: tuple[int, ...] = ()


def plan_batch(batch: PackedBatch, prefixes: Prefixes, *, gathers: bool = False) -> Plan:
    """Lays out the missing prefixes and behind them the sequences, the longest first.

    So the device ends with many small pieces of work instead of a large one,
    and equal lengths lie side by side. With `gathers` the plan says which keys
    each part sees.
    """
    used, missing = prefixes.used, prefixes.missing
    order = tuple(sorted(range(len(batch.sequences)), key=lambda at: -len(batch.sequences[at])))
    parts: list[Prefix | Sequence] = [*missing, *(batch.sequences[at] for at in order)]
    before = [part.before if isinstance(part, Prefix) else part.prefix for part in parts]
    contexts = tuple(None if prefix is None else used[prefix] for prefix in before) if used else ()
    lengths = tuple(map(len, parts))
    made = tuple(used[prefix] for prefix in missing)
    columns = [*_tokens(parts, contexts), _starts(lengths)]
    key_lengths: tuple[int, ...] = ()
    if gathers and contexts:
        ranges = key_ranges(contexts, made, lengths)
        key_lengths = tuple(sum(map(len, each)) for each in ranges)
        columns += [np.concatenate([_places(part) for each in ranges for part in each]), _starts(key_lengths)]
    return Plan(
        np.concatenate(columns),
        *(sum(lengths), len(parts), lengths, max(lengths), order),
        *(contexts, made, key_lengths),
    )


def plan_captured(batch: PackedBatch, shape: GraphShape) -> Plan:
    """Lays a batch out for a captured pass: what fills up comes first, so that no part begins at the end."""
    exact = plan_batch(batch, Prefixes(batch))
    extra, empty = shape.tokens - exact.num_tokens, shape.sequences - exact.num_parts
    tokens = exact.ints[: 3 * exact.num_tokens].reshape(3, -1)
    starts = exact.ints[3 * exact.num_tokens :] + extra
    filled = np.pad(tokens, ((0, 0), (extra, 0))).reshape(-1)
    ints = np.concatenate([filled, np.zeros(empty, np.int32), starts], dtype=np.int32)
    return Plan(ints, shape.tokens, shape.sequences, (), LONGEST_CAPTURED, exact.order)


def unpack(plan: Plan, ints: torch.Tensor) -> PackedTokens:
    """Finds a plan's parts in its copy on the device  # [len(plan.ints)] int32."""
    count, places = plan.num_tokens, plan.num_parts + 1
    sizes = [count, count, count, places]
    if plan.key_lengths:
        sizes += [sum(plan.key_lengths), places]
    ids, positions, types, starts, *seen = ints.split(sizes)
    keys = KeyRows(seen[0], seen[1], plan.key_lengths) if seen else None
    layout = Layout(starts, plan.longest, plan.lengths, keys)
    return PackedTokens(ids, positions, types, plan.lengths, plan.contexts, plan.prefixes, layout)


def _tokens(
    parts: list[Prefix | Sequence], contexts: tuple[KeysValues | None, ...]
) -> tuple[Ints, Ints, Ints]:
    """Ids, places and segments of all tokens."""
    lengths = np.array([len(part) for part in parts], np.int32)
    ids = np.frombuffer(b"".join(part.ids for part in parts), np.int32)
    own = np.arange(len(ids), dtype=np.int32) - np.repeat(lengths.cumsum(dtype=np.int32) - lengths, lengths)
    splits = [part.split or len(part) if isinstance(part, Sequence) else len(part) for part in parts]
    types = (own >= np.repeat(np.array(splits, np.int32), lengths)).astype(np.int32)
    if contexts:
        behind = np.array([each.tokens if each else 0 for each in contexts], np.int32)
        own = own + np.repeat(behind, lengths)
    return ids, own, types


def _starts(lengths: Iterable[int]) -> Ints:
    return np.array([0, *accumulate(lengths)], np.int32)


def _places(part: range) -> Ints:
    return np.arange(part.start, part.stop, dtype=np.int32)
