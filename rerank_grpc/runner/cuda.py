"""Runs a model on a GPU: the next batch is packed and copied while the last one computes."""

from __future__ import annotations

import traceback
from functools import partial

import torch

from rerank_grpc.kernels.attention import kernel_for
from rerank_grpc.models.base import Model
from rerank_grpc.runner.accelerator import Accelerator, Cuda, Mark
from rerank_grpc.runner.graphs import Graphs
from rerank_grpc.runner.packing import GraphShape, PackedBatch, pack, tensors
from rerank_grpc.runner.prefixes import PrefixCache
from rerank_grpc.runner.runner import CpuRunner, Landing, OutOfMemory, Runner, is_out_of_memory, outputs_of
from rerank_grpc.sequence import Output, Sequence

DEPTH = 2


def runner_for(model: Model) -> Runner:
    """The runner of a model's device, ready to run at full speed."""
    device = torch.device(model.card.device)
    if device.type != "cuda":
        return CpuRunner(model)
    runner = CudaRunner(model, Cuda(device))
    runner.capture()
    return runner


class Buffers:
    """The memory through which one batch at a time goes to the device and back; it grows as it has to."""

    def __init__(self, device: Accelerator) -> None:
        self._device = device
        self._source = device.host((0,), torch.int32)
        self._target = device.buffer(0)
        self._rows = device.host((0, 0), torch.float32)

    def send(self, packed: PackedBatch) -> tuple[torch.Tensor, Mark]:
        """Starts the copy of a batch's integers; returns the copy, and the mark when it is there."""
        count = len(packed.ints)
        if len(self._source) < count:
            capacity = _power_of_two(count)
            self._source = self._device.host((capacity,), torch.int32)
            self._target = self._device.buffer(capacity)
        self._source.numpy()[:count] = packed.ints
        target = self._target[:count]
        return target, self._device.copy(self._source[:count], target)

    def copy_back(self, rows: torch.Tensor) -> None:
        """Starts the copy of a pass's outputs to the host; part of the pass's work."""
        if self._rows.shape[0] < len(rows) or self._rows.shape[1] != rows.shape[1]:
            self._rows = self._device.host((_power_of_two(len(rows)), rows.shape[1]), torch.float32)
        self._rows[: len(rows)].copy_(rows, non_blocking=True)

    def rows(self, count: int) -> torch.Tensor:
        """The outputs of the pass that is done, as a copy  # [count, width]."""
        return self._rows[:count].clone()


class CudaRunner:
    """Runs one model on a GPU; the host waits once for a batch, for its outputs.

    Buffers are used again only after their batch has landed.
    """

    depth = DEPTH

    def __init__(self, model: Model, device: Accelerator) -> None:
        self._model = model
        self._device = device
        self._prefixes = PrefixCache()
        self._free: list[Buffers] = []
        self._gathers = model.card.prompt is not None and kernel_for(model.card.attention) is not None
        self._graphs = Graphs(model, device)

    def capture(self) -> None:
        """Captures the passes of small batches, if the model's can be captured."""
        if self._model.card.capturable:
            self._graphs.capture_all()

    @torch.inference_mode()
    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        prefixes = self._prefixes.take(sequences)
        shape = self._graphs.shape_for(sequences)
        order = longest_first(sequences)
        ordered = tuple([sequences[index] for index in order])
        packed = pack(ordered, prefixes, shape, gathers=self._gathers)
        buffers = self._free.pop() if self._free else Buffers(self._device)
        try:
            ints, copied = buffers.send(packed)
            done = self._device.compute(partial(self._pass, packed, shape, buffers, ints, len(order)), copied)
        except Exception as error:
            self._recover(buffers, error)
            if is_out_of_memory(error):
                raise OutOfMemory(f"{packed.num_tokens} tokens exceed the device's memory") from None
            raise
        self._prefixes.keep(prefixes.used)
        return partial(self._land, buffers, order, done)

    def _land(self, buffers: Buffers, order: list[int], done: Mark) -> list[Output | None]:
        try:
            self._device.wait(done)
        except Exception as error:
            self._recover(buffers, error)
            if is_out_of_memory(error):
                raise OutOfMemory("the batch exceeds the device's memory") from None
            raise
        found = outputs_of(buffers.rows(len(order)))
        self._free.append(buffers)
        outputs: list[Output | None] = [None] * len(order)
        for index, output in zip(order, found, strict=True):
            outputs[index] = output
        return outputs

    def _pass(
        self, packed: PackedBatch, shape: GraphShape | None, buffers: Buffers, ints: torch.Tensor, count: int
    ) -> None:
        """The work of one batch on the device; the last rows are those of its sequences."""
        if shape is not None:
            rows = self._graphs.replay(shape, ints)
        else:
            rows = self._model.forward(tensors(packed, ints))
        buffers.copy_back(rows[-count:])

    def _recover(self, buffers: Buffers, error: Exception) -> None:
        """Frees the buffers, and what a failed pass and its frames hold."""
        self._device.synchronize()
        self._free.append(buffers)
        traceback.clear_frames(error.__traceback__)
        self._prefixes.clear()
        if is_out_of_memory(error):
            self._device.give_back()


def longest_first(sequences: tuple[Sequence, ...]) -> list[int]:
    """The order in which a GPU gets sequences.

    The device ends with many small pieces of work instead of a large one, and
    equal lengths lie side by side.
    """
    sizes = [len(sequence.ids) for sequence in sequences]
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)


def _power_of_two(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()
