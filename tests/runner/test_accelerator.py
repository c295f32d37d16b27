"""The calls to CUDA have the names and arguments that torch knows, in the right order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from rerank_grpc.runner import accelerator
from rerank_grpc.runner.accelerator import Cuda
from rerank_grpc.runner.cuda import CudaRunner
from rerank_grpc.runner.runner import CpuRunner, DeviceLost
from tests import random_models as checkpoints
from tests.conftest import load
from tests.runner.test_cuda import BATCHES, same

CPU = torch.device("cpu")
# Before the tests put others in their place.
STREAM, EVENT, GRAPH = torch.cuda.Stream, torch.cuda.Event, torch.cuda.CUDAGraph


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for torch.cuda: each part has the real one's signature, and says here what it was asked."""
    entries: list[str] = []
    names = iter(("copies", "work"))

    def stream(device: torch.device) -> Any:
        made, name = create_autospec(STREAM, instance=True), next(names)
        made.name = name
        made.wait_event.side_effect = lambda event: entries.append(f"{name} awaits {event.at}")
        made.synchronize.side_effect = lambda: entries.append(f"{name} ends")
        return made

    def event(blocking: bool) -> Any:
        assert blocking
        made = create_autospec(EVENT, instance=True)

        def record(stream: Any) -> None:
            made.at = stream.name

        made.record.side_effect = record
        made.synchronize.side_effect = lambda: entries.append(f"host awaits {made.at}")
        return made

    def graph() -> Any:
        made = create_autospec(GRAPH, instance=True)
        made.capture_begin.side_effect = lambda **_: entries.append("begin")
        made.capture_end.side_effect = lambda: entries.append("end")
        made.replay.side_effect = lambda: entries.append("replay")
        return made

    @contextmanager
    def current(stream: Any) -> Iterator[None]:
        entries.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(accelerator.Cuda, "host", lambda _, shape, dtype: torch.empty(shape, dtype=dtype))
    return entries


def test_a_batch_is_copied_on_one_stream_computed_on_another_and_awaited_once(
    log: list[str], tmp_path: Path
) -> None:
    path = checkpoints.xlm_roberta(tmp_path / "xlm_roberta")
    model = load(path)
    expected = CpuRunner(model).launch(BATCHES[0])()
    flight = CudaRunner(model, Cuda(CPU), {}).launch(BATCHES[0])
    made = ["on copies"] * 2  # the buffer, which is empty at first
    assert log == [*made, "on copies", "on work", "work awaits copies"]
    log.clear()
    assert same(flight(), expected)
    assert log == ["host awaits work"]


def test_a_pass_is_run_before_it_is_recorded(log: list[str]) -> None:
    def work() -> torch.Tensor:
        log.append("work")
        return torch.ones(2)

    replay = Cuda(CPU).capture(work)
    assert log == ["on work", "work", "work ends", "begin", "work", "end"]
    assert replay().tolist() == [1, 1]
    assert log[-1] == "replay"


def test_recording_ends_when_the_work_raises(log: list[str]) -> None:
    turns = iter([torch.ones(1)])
    with pytest.raises(StopIteration):
        Cuda(CPU).capture(lambda: next(turns))
    assert log[-2:] == ["begin", "end"]


def test_synchronizing_tells_that_the_device_is_lost(log: list[str]) -> None:
    device = Cuda(CPU)
    device.synchronize()
    assert log == ["copies ends", "work ends"]
    copies: Any = device._copies
    copies.synchronize.side_effect = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(DeviceLost):
        device.synchronize()
