"""A GPU as the runner needs it: buffers, streams, and marks in them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch

from rerank_grpc.runner.runner import DeviceLost

Mark: TypeAlias = Any  # a moment in a device's queue, which only the device that made it can wait for
Replay: TypeAlias = Callable[[], torch.Tensor]  # of a captured pass; the next one overwrites the result


class Accelerator(Protocol):
    """A device with two queues, one for copies to it and one for work, and marks by which they meet.

    Only `wait`, `synchronize` and `capture` let the host wait.
    """

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Makes a buffer on the host, from and to which the device copies on its own."""

    def buffer(self, count: int) -> torch.Tensor:
        """Makes a buffer on the device  # [count] int32."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Mark:
        """Queues a copy to the device; the mark is when `source` may be written again."""

    def compute(self, work: Callable[[], None], after: Mark) -> Mark:
        """Queues work behind all earlier work and a copy; the mark is when it is done."""

    def wait(self, mark: Mark) -> None:
        """Lets the host wait for a mark; raises the error of the device until then."""

    def synchronize(self) -> None:
        """Waits for all work after a failure; raises DeviceLost if the device is gone."""

    def give_back(self) -> None:
        """Gives free memory back to the device."""

    def capture(self, work: Callable[[], torch.Tensor]) -> Replay:
        """Runs work once, then again to record it; raises the work's error."""


class Cuda:
    """One GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._work = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._work.wait_stream(torch.cuda.current_stream(device))  # which may still copy the weights

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def buffer(self, count: int) -> torch.Tensor:
        # Memory that another stream gave back may still be read there, which the copies would not wait for.
        with torch.cuda.stream(self._copies):
            return torch.empty(count, dtype=torch.int32, device=self._device)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Mark:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
            return self._mark(self._copies)

    def compute(self, work: Callable[[], None], after: Mark) -> Mark:
        with torch.cuda.stream(self._work):
            self._work.wait_event(after)
            work()
            return self._mark(self._work)

    def wait(self, mark: Mark) -> None:
        mark.synchronize()

    def synchronize(self) -> None:
        for stream in (self._copies, self._work):
            try:
                stream.synchronize()
            except RuntimeError as error:
                raise DeviceLost(f"{self._device} fails whatever is asked of it") from error

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def capture(self, work: Callable[[], torch.Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._work):
            work()  # kernels and workspaces made on first use must not be made while recording
            self._work.synchronize()
            # Only this thread's work is recorded: other threads may run models of their own meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                rows = work()
            except BaseException:
                with suppress(RuntimeError):  # of the broken capture, which would hide what broke it
                    graph.capture_end()
                raise
            graph.capture_end()
        return partial(_replay, graph, rows)

    def _mark(self, stream: torch.cuda.Stream) -> Mark:
        event = torch.cuda.Event(blocking=True)  # the thread that waits sleeps, instead of spinning
        event.record(stream)
        return event


def _replay(graph: torch.cuda.CUDAGraph, rows: torch.Tensor) -> torch.Tensor:
    graph.replay()
    return rows
