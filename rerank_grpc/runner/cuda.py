"""Runs a model on a GPU: the next batch is packed and copied while the last one computes."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from functools import partial

import torch

from rerank_grpc.kernels.attention import kernel_for
from rerank_grpc.models.base import Model
from rerank_grpc.runner.accelerator import Accelerator, Cuda, Mark
from rerank_grpc.runner.graphs import Graph, GraphShape, capture_all, filled, shape_for
from rerank_grpc.runner.outputs import count_rows, outputs_of
from rerank_grpc.runner.packing import PackedBatch, pack, tensors
from rerank_grpc.runner.prefixes import PrefixCache
from rerank_grpc.runner.runner import CpuRunner, Landing, OutOfMemory, Runner, is_out_of_memory
from rerank_grpc.sequence import Output, Sequence


def runner_for(model: Model) -> Runner:
    """The runner of a model's device, ready to run at full speed."""
    device = torch.device(model.card.device)
    if device.type != "cuda":
        return CpuRunner(model)
    accelerator = Cuda(device)
    return CudaRunner(model, accelerator, capture_all(model, accelerator))


class Buffers:
    """The memory through which one batch at a time goes to the device and back; it grows with them."""

    def __init__(self, device: Accelerator) -> None:
        self._device = device
        self._source = device.host((0,), torch.int32)
        self._target = device.buffer(0)
        self._rows = device.host((0, 0), torch.float32)

    def send(self, packed: PackedBatch) -> tuple[torch.Tensor, Mark]:
        """Starts the copy of a batch's integers; returns the copy and its mark."""
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
    """Runs one model on a GPU; the host waits once for a batch, for its outputs."""

    depth = 2

    def __init__(self, model: Model, device: Accelerator, graphs: Mapping[GraphShape, Graph]) -> None:
        self._model = model
        self._device = device
        self._graphs = graphs
        self._prefixes = PrefixCache()
        self._free: list[Buffers] = []  # those whose batch has landed
        self._gathers = model.card.shares_prefixes and kernel_for(model.card.attention) is not None

    @torch.inference_mode()
    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        graph = self._graph_for(sequences)
        if graph:
            # A captured pass has no room for prefixes: to compute them again costs less than to launch the
            # kernels of a pass one by one.
            sequences = tuple([sequence.whole() for sequence in sequences])
        prefixes = self._prefixes.take(sequences)
        order = longest_first(sequences)
        ordered = [sequences[index] for index in order]
        packed = pack(ordered, prefixes, gathers=self._gathers)
        if graph:
            packed = filled(packed, graph.shape)
        buffers = self._free.pop() if self._free else Buffers(self._device)
        count = count_rows(ordered, self._model.card)
        try:
            ints, copied = buffers.send(packed)
            done = self._device.compute(partial(self._pass, packed, graph, buffers, ints, count), copied)
        except Exception as error:
            self._recover(buffers, error)
            raise
        self._prefixes.keep(prefixes.used)
        return partial(self._land, buffers, ordered, order, done)

    def _graph_for(self, sequences: tuple[Sequence, ...]) -> Graph | None:
        shape = shape_for(sequences) if self._graphs else None
        return self._graphs.get(shape) if shape else None

    def _land(
        self, buffers: Buffers, ordered: list[Sequence], order: list[int], done: Mark
    ) -> list[Output | None]:
        try:
            self._device.wait(done)
        except Exception as error:
            self._recover(buffers, error)
            raise
        card = self._model.card
        found = outputs_of(buffers.rows(count_rows(ordered, card)), ordered, card)
        self._free.append(buffers)
        outputs = dict(zip(order, found, strict=True))
        return [outputs[index] for index in range(len(order))]

    def _pass(
        self, packed: PackedBatch, graph: Graph | None, buffers: Buffers, ints: torch.Tensor, count: int
    ) -> None:
        """The work of one batch on the device; the last rows are those of its sequences."""
        rows = graph.run(ints) if graph else self._model.forward(tensors(packed, ints))
        buffers.copy_back(rows[-count:])

    def _recover(self, buffers: Buffers, error: Exception) -> None:
        """Frees the memory that a failed pass and its frames hold; raises OutOfMemory if it lacked some."""
        self._device.synchronize()
        self._free.append(buffers)
        traceback.clear_frames(error.__traceback__)
        self._prefixes.clear()
        if is_out_of_memory(error):
            self._device.give_back()
            raise OutOfMemory("the batch exceeds the device's memory") from None


def longest_first(sequences: tuple[Sequence, ...]) -> list[int]:
    """The order in which a GPU gets sequences: it ends with small pieces of work, equal ones together."""
    sizes = [len(sequence.ids) for sequence in sequences]
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
