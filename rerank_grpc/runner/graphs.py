"""Captured passes: a small batch costs one launch instead of one for each of its hundreds of kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rerank_grpc.errors import describe
from rerank_grpc.models.base import Model
from rerank_grpc.runner.accelerator import Accelerator, Captured
from rerank_grpc.runner.packing import (
    LONGEST_CAPTURED,
    GraphShape,
    Plan,
    all_shapes,
    plan_captured,
    unpack,
)
from rerank_grpc.runner.runner import is_out_of_memory
from rerank_grpc.sequence import PackedBatch, Sequence

log = logging.getLogger(__name__)


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
        """Captures every shape; what cannot be captured runs as larger batches do."""
        try:
            for shape in all_shapes():
                batch = largest_batch(shape, self._model.card.max_tokens)
                if len(batch.sequences) < shape.sequences:  # else the model's own are too short for it
                    self._graphs[shape] = self._capture(shape, batch)
        except Exception as error:
            self._device.settle()
            if is_out_of_memory(error):
                self._device.release()
            log.warning("small batches are not captured (%s): they run slower", describe(error))

    def __contains__(self, shape: object) -> bool:
        return shape in self._graphs

    def replay(self, shape: GraphShape, ints: torch.Tensor) -> torch.Tensor:
        """Runs a pass over a plan's integers  # [num_parts, width]; the next one overwrites the result."""
        graph = self._graphs[shape]
        # A buffer of its own: the copy behind may already write the next batch over `ints`.
        graph.ints.copy_(ints)
        graph.captured.replay()
        return graph.captured.rows

    def _capture(self, shape: GraphShape, batch: PackedBatch) -> _Graph:
        plan = plan_captured(batch, shape)
        ints = self._device.buffer(len(plan.ints))
        source = self._device.host((len(plan.ints),), torch.int32)
        source.numpy()[:] = plan.ints
        self._device.wait(self._device.copy(source, ints))
        return _Graph(ints, self._device.capture(self._pass(plan, ints)))

    def _pass(self, plan: Plan, ints: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: self._model.forward(unpack(plan, ints))


def largest_batch(shape: GraphShape, max_tokens: int) -> PackedBatch:
    """Sequences as long as a captured pass takes them, that fill a shape."""
    longest = min(LONGEST_CAPTURED, max_tokens)
    full, rest = divmod(shape.tokens, longest)
    lengths = [longest] * full + [rest] * bool(rest)
    return PackedBatch(tuple(Sequence.of([0] * length) for length in lengths))
