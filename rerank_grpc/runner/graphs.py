"""Captured passes: a small batch costs one launch instead of one for each of its hundreds of kernels."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from rerank_grpc.errors import describe
from rerank_grpc.models.base import Model
from rerank_grpc.runner.accelerator import Accelerator, Captured
from rerank_grpc.runner.packing import LONGEST_CAPTURED, GraphShape, PackedBatch, pack, tensors
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.runner.runner import is_out_of_memory
from rerank_grpc.sequence import TOKEN_BYTES, Sequence

log = logging.getLogger(__name__)

# A captured pass costs what its longest sequence and its number of sequences may cost, used or not:
# each size is captured for few sequences, as passages are, and for many, as titles are.
TOKENS_A_SEQUENCE = (96, 16)
LEAST_CAPTURED, MOST_CAPTURED = 8, 4_096


def bucket(tokens: int) -> int:
    """Rounds up by less than an eighth, to one of eight sizes between a power of two and the next."""
    step = 1 << max(0, tokens.bit_length() - 4)
    return -(-tokens // step) * step


def shape_for(sequences: tuple[Sequence, ...]) -> GraphShape | None:
    """The captured pass that a batch fits; None if it is too large, too long or of too many sequences.

    One sequence of the shape is left for filler.
    """
    lengths = [len(sequence.ids) // TOKEN_BYTES for sequence in sequences]
    tokens, longest = sum(lengths), max(lengths, default=0)
    if not LEAST_CAPTURED <= tokens <= MOST_CAPTURED or longest > LONGEST_CAPTURED:
        return None
    return next((shape for shape in _shapes(bucket(tokens)) if len(sequences) < shape.sequences), None)


def all_shapes() -> list[GraphShape]:
    """Every shape that shape_for can give, the largest first, so that the smaller ones reuse its memory."""
    sizes = {bucket(tokens) for tokens in range(LEAST_CAPTURED, MOST_CAPTURED + 1)}
    return [shape for tokens in sorted(sizes, reverse=True) for shape in reversed(_shapes(tokens))]


def _shapes(tokens: int) -> list[GraphShape]:
    """Those of one size, the one for the fewest sequences first."""
    counts = {max(1, tokens // each) + 1 for each in TOKENS_A_SEQUENCE}
    return [GraphShape(tokens, count) for count in sorted(counts)]


@dataclass(frozen=True, slots=True)
class _Graph:
    ints: torch.Tensor
    captured: Captured


class Graphs:
    """The captured passes of one model, by their shape."""

    def __init__(self, model: Model, device: Accelerator) -> None:
        self._model = model
        self._device = device
        self._graphs: dict[GraphShape, _Graph] = {}

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Captures every shape; a shape that cannot be captured runs as larger batches do."""
        try:
            for shape in all_shapes():
                sequences = largest_batch(shape, self._model.card.max_tokens)
                if len(sequences) < shape.sequences:  # else the model's own are too short for it
                    self._graphs[shape] = self._capture(pack(sequences, Prefixes({}, []), shape))
        except Exception as error:
            self._device.synchronize()
            if is_out_of_memory(error):
                self._device.give_back()
            log.warning("small batches are not captured (%s): they run slower", describe(error))

    def __len__(self) -> int:
        return len(self._graphs)

    def shape_for(self, sequences: tuple[Sequence, ...]) -> GraphShape | None:
        """The captured pass that a batch fits, if there is one."""
        shape = shape_for(sequences) if self._graphs else None
        return shape if shape in self._graphs else None

    def replay(self, shape: GraphShape, ints: torch.Tensor) -> torch.Tensor:
        """Runs a pass over a batch's integers  # [num_parts, width]; the next one overwrites the result."""
        graph = self._graphs[shape]
        # A buffer of its own: the copy behind may already write the next batch over `ints`.
        graph.ints.copy_(ints)
        graph.captured.replay()
        return graph.captured.rows

    def _capture(self, packed: PackedBatch) -> _Graph:
        ints = self._device.buffer(len(packed.ints))
        source = self._device.host((len(packed.ints),), torch.int32)
        source.numpy()[:] = packed.ints
        self._device.wait(self._device.copy(source, ints))
        return _Graph(ints, self._device.capture(lambda: self._model.forward(tensors(packed, ints))))


def largest_batch(shape: GraphShape, max_tokens: int) -> tuple[Sequence, ...]:
    """Sequences as long as a captured pass takes them, that fill a shape."""
    longest = min(LONGEST_CAPTURED, max_tokens)
    full, rest = divmod(shape.tokens, longest)
    lengths = [longest] * full + [rest] * bool(rest)
    return tuple(Sequence.of([0] * length) for length in lengths)
