"""Runs a model on a GPU: the next batch is laid out and sent while the last one computes.

The host waits once for a batch, for its outputs. Token ids and lengths are
written into pinned memory and copied by a stream of their own; a stage with
its buffers is used again only after its batch was waited for.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import partial

import torch

from rerank_grpc.kernels.attention import kernel_for
from rerank_grpc.models.base import Model
from rerank_grpc.runner.accelerator import Accelerator, Cuda, Mark
from rerank_grpc.runner.graphs import Graphs
from rerank_grpc.runner.kept import KeptPrefixes
from rerank_grpc.runner.packing import GraphShape, Plan, plan_batch, plan_captured, shape_for, unpack
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.runner.runner import (
    ModelRunner,
    OutOfMemory,
    Pending,
    Runner,
    is_out_of_memory,
    outputs_of,
)
from rerank_grpc.sequence import Output, PackedBatch

DEPTH = 2


def runner_for(model: Model) -> Runner:
    """The runner of a model's device, ready to run at full speed."""
    device = torch.device(model.card.device)
    if device.type != "cuda":
        return ModelRunner(model)
    runner = StagedRunner(model, Cuda(device))
    runner.prepare()
    return runner


class Stage:
    """The buffers of one batch at a time, which grow as they have to."""

    def __init__(self, device: Accelerator) -> None:
        self._device = device
        self._source = device.host((0,), torch.int32)
        self._target = device.buffer(0)
        self._rows = device.host((0, 0), torch.float32)

    def send(self, plan: Plan) -> tuple[torch.Tensor, Mark]:
        """Starts the copy of a plan's integers; returns where they will be, and when."""
        count = len(plan.ints)
        if len(self._source) < count:
            room = 1 << (count - 1).bit_length()
            self._source = self._device.host((room,), torch.int32)
            self._target = self._device.buffer(room)
        self._source.numpy()[:count] = plan.ints
        target = self._target[:count]
        return target, self._device.copy(self._source[:count], target)

    def fetch(self, rows: torch.Tensor) -> None:
        """Starts the copy of a pass's outputs to the host; part of the pass's work."""
        if self._rows.shape[0] < len(rows) or self._rows.shape[1] != rows.shape[1]:
            room = 1 << (len(rows) - 1).bit_length()
            self._rows = self._device.host((room, rows.shape[1]), torch.float32)
        self._rows[: len(rows)].copy_(rows, non_blocking=True)

    def rows(self, count: int) -> torch.Tensor:
        """What was fetched, once the pass is done, as a copy  # [count, width]."""
        return self._rows[:count].clone()


@dataclass(slots=True)
class Flight:
    """A batch that was launched; see Pending."""

    runner: StagedRunner
    stage: Stage
    order: tuple[int, ...]
    done: Mark

    def result(self) -> list[Output | None]:
        """Waits for the batch, which is the one wait for it, and frees its stage."""
        return self.runner.land(self)


class StagedRunner:
    """See Overlapping; called by one thread at a time."""

    depth = DEPTH

    def __init__(self, model: Model, device: Accelerator) -> None:
        self._model = model
        self._device = device
        self._kept = KeptPrefixes()
        self._stages: list[Stage] = []
        self._gathers = model.card.prompt is not None and kernel_for(model.card.attention) is not None
        self._graphs = Graphs(model, device)

    def prepare(self) -> None:
        """Captures the passes of small batches, if the model's can be captured."""
        if self._model.card.capturable:
            self._graphs.capture_all()

    def run(self, batch: PackedBatch) -> list[Output | None]:
        """See Runner."""
        return self.launch(batch).result()

    @torch.inference_mode()
    def launch(self, batch: PackedBatch) -> Pending:
        """See Overlapping."""
        prefixes = Prefixes(batch, self._kept)
        shape = shape_for(batch)
        if shape is None or shape not in self._graphs:
            shape, plan = None, plan_batch(batch, prefixes, gathers=self._gathers)
        else:
            plan = plan_captured(batch, shape)
        stage = self._stages.pop() if self._stages else Stage(self._device)
        try:
            ints, copied = stage.send(plan)
            done = self._device.compute(partial(self._pass, plan, shape, stage, ints), copied)
        except Exception as error:
            self._recover(stage, error)
            if is_out_of_memory(error):
                raise OutOfMemory(f"{batch.num_tokens} tokens exceed the device's memory") from None
            raise
        self._kept.keep(prefixes.used)
        return Flight(self, stage, plan.order, done)

    def land(self, flight: Flight) -> list[Output | None]:
        """Waits for a flight: see Flight.result."""
        try:
            self._device.wait(flight.done)
        except Exception as error:
            self._recover(flight.stage, error)
            if is_out_of_memory(error):
                raise OutOfMemory("the batch exceeds the device's memory") from None
            raise
        found = outputs_of(flight.stage.rows(len(flight.order)))
        self._stages.append(flight.stage)
        outputs: list[Output | None] = [None] * len(found)
        for place, output in zip(flight.order, found, strict=True):
            outputs[place] = output
        return outputs

    def _pass(self, plan: Plan, shape: GraphShape | None, stage: Stage, ints: torch.Tensor) -> None:
        """The work of one batch on the device; the batch's own rows are the last."""
        if shape is not None:
            rows = self._graphs.replay(shape, ints)
        else:
            rows = self._model.forward(unpack(plan, ints))
        stage.fetch(rows[-len(plan.order) :])

    def _recover(self, stage: Stage, error: Exception) -> None:
        """Makes a stage usable again, and lets go of what a failed pass holds, its frames' tensors too."""
        self._device.settle()
        self._stages.append(stage)
        traceback.clear_frames(error.__traceback__)
        self._kept.clear()
        if is_out_of_memory(error):
            self._device.release()
