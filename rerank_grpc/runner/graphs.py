"""Captured passes: a small batch costs one launch instead of one for each of its hundreds of kernels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rerank_grpc.errors import describe
from rerank_grpc.models.base import Model
from rerank_grpc.runner.accelerator import Accelerator, Replay
from rerank_grpc.runner.packing import PackedBatch, pack, tensors
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.runner.runner import is_out_of_memory
from rerank_grpc.sequence import Prefix, Sequence

log = logging.getLogger(__name__)

# The cost of a captured pass goes by the length and the number of sequences that it has room for, used or
# not. Each size is captured twice: for few sequences, such as passages, and for many, such as titles.
TOKENS_A_SEQUENCE = (96, 16)
LEAST_CAPTURED, MOST_CAPTURED = 8, 4_096
LONGEST_CAPTURED = 512  # tokens of one sequence: the pass costs as much for any length up to this


class GraphShape(NamedTuple):
    """The shape of a captured pass: its tokens and its sequences, empty ones included."""

    tokens: int
    sequences: int


def filled(packed: PackedBatch, shape: GraphShape) -> PackedBatch:
    """Fills a batch without prefixes; filler comes first, so every sequence begins at a row that exists."""
    count, empty = packed.num_tokens, shape.sequences - packed.num_parts
    extra = shape.tokens - count
    rows = np.zeros((3, shape.tokens), np.int32)
    rows[:, extra:] = packed.ints[: 3 * count].reshape(3, count)
    ints = np.concatenate([rows.ravel(), np.zeros(empty, np.int32), packed.ints[3 * count :] + extra])
    return PackedBatch(ints, shape.tokens, shape.sequences, (), LONGEST_CAPTURED)


def bucket(tokens: int) -> int:
    """Rounds up by less than an eighth, to one of eight sizes between a power of two and the next."""
    step = 1 << max(0, tokens.bit_length() - 4)
    return -(-tokens // step) * step


def shape_for(sequences: tuple[Sequence, ...]) -> GraphShape | None:
    """The captured pass that a batch fits, with its prefixes, if any; one of its sequences is for filler."""
    if len(sequences) > MOST_CAPTURED or any(sequence.unseen for sequence in sequences):
        return None  # tokens that are not seen ask for rows of keys, which no graph has
    lengths = [len(sequence) + _prefix_tokens(sequence.prefix) for sequence in sequences]
    tokens, longest = sum(lengths), max(lengths, default=0)
    if not LEAST_CAPTURED <= tokens <= MOST_CAPTURED or longest > LONGEST_CAPTURED:
        return None
    return next((shape for shape in _shapes(bucket(tokens)) if len(sequences) < shape.sequences), None)


def _prefix_tokens(prefix: Prefix | None) -> int:
    return 0 if prefix is None else sum(map(len, prefix.chain()))


def all_shapes() -> list[GraphShape]:
    """Every shape that shape_for can give, the largest first, so that the smaller ones reuse its memory."""
    sizes = {bucket(tokens) for tokens in range(LEAST_CAPTURED, MOST_CAPTURED + 1)}
    return [shape for tokens in sorted(sizes, reverse=True) for shape in reversed(_shapes(tokens))]


def _shapes(tokens: int) -> list[GraphShape]:
    counts = {max(1, tokens // each) + 1 for each in TOKENS_A_SEQUENCE}
    return [GraphShape(tokens, count) for count in sorted(counts)]


@dataclass(frozen=True, slots=True)
class Graph:
    """A captured pass; a copy may write the next batch's integers, so it reads some of its own."""

    shape: GraphShape
    ints: torch.Tensor
    replay: Replay

    def run(self, ints: torch.Tensor) -> torch.Tensor:
        """Runs the pass over a batch's integers  # [num_parts, width]; the next run overwrites the result."""
        self.ints.copy_(ints)
        return self.replay()


@torch.inference_mode()
def capture_all(model: Model, device: Accelerator) -> dict[GraphShape, Graph]:
    """Captures every shape if the model can be captured; without a graph, batches run as larger ones do."""
    graphs: dict[GraphShape, Graph] = {}
    try:
        for shape in all_shapes() if model.card.capturable else ():
            sequences = _largest_batch(shape, model.card.max_tokens)
            if len(sequences) < shape.sequences:  # else the model's own are too short for it
                graphs[shape] = _capture(model, device, sequences, shape)
    except Exception as error:
        device.synchronize()
        if is_out_of_memory(error):
            device.give_back()
        log.warning("small batches are not captured (%s): they run slower", describe(error))
    return graphs


def _largest_batch(shape: GraphShape, max_tokens: int) -> list[Sequence]:
    """Sequences as long as a captured pass takes them, that fill a shape."""
    longest = min(LONGEST_CAPTURED, max_tokens)
    full, rest = divmod(shape.tokens, longest)
    lengths = [longest] * full + [rest] * bool(rest)
    return [Sequence.of([0] * length) for length in lengths]


def _capture(model: Model, device: Accelerator, sequences: list[Sequence], shape: GraphShape) -> Graph:
    packed = filled(pack(sequences, Prefixes({}, [])), shape)
    ints = device.buffer(len(packed.ints))
    source = device.host((len(packed.ints),), torch.int32)
    source.numpy()[:] = packed.ints
    device.wait(device.copy(source, ints))
    return Graph(shape, ints, device.capture(lambda: model.forward(tensors(packed, ints))))
