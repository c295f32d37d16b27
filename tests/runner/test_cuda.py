"""Two batches in flight, packing and captured passes, on a device whose queues the test works off."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_grpc.kernels import cuda as operations
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.cuda import TorchOperations
from rerank_grpc.models import loader
from rerank_grpc.models.base import Model
from rerank_grpc.models.bodies import model as bodies
from rerank_grpc.models.borrowed import hooked
from rerank_grpc.runner import cuda, graphs
from rerank_grpc.runner.accelerator import Mark, Replay
from rerank_grpc.runner.cuda import CudaRunner, longest_first, runner_for
from rerank_grpc.runner.graphs import GraphShape, all_shapes, bucket, capture_all, filled, shape_for
from rerank_grpc.runner.packing import pack, tensors
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.runner.runner import CpuRunner, OutOfMemory
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.tokenizer.tokenizer import tokenizer_for
from tests import random_models as checkpoints
from tests.conftest import load
from tests.kernels.test_attention import part_by_part
from tests.support import token_ids, tokens_of
from tests.texts import tokenize


class FakeDevice:
    """Does nothing before the host waits; with `eager_copies` the copies run ahead of all work.

    What is written into a buffer too early, or read too late, gives other
    scores then. `log` tells what was asked, in order.
    """

    def __init__(self, *, eager_copies: bool = False, eager_work: bool = False) -> None:
        self.log: list[str] = []
        self.given_back = self.buffers = 0
        self._eager = {"copy": eager_copies or eager_work, "compute": eager_work}
        self._queue: list[tuple[Mark, Callable[[], object]]] = []

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def buffer(self, count: int) -> torch.Tensor:
        self.buffers += 1
        return torch.empty(count, dtype=torch.int32)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Mark:
        return self._put("copy", lambda: target.copy_(source))

    def compute(self, work: Callable[[], None], after: Mark) -> Mark:
        return self._put("compute", work)

    def wait(self, mark: Mark) -> None:
        self.log.append("wait")
        while any(each is mark for each, _ in self._queue):
            _, work = self._queue.pop(0)
            with torch.inference_mode():
                work()

    def synchronize(self) -> None:
        self.log.append("synchronize")
        while self._queue:
            self._queue.pop(0)[1]()

    def give_back(self) -> None:
        self.given_back += 1

    def capture(self, work: Callable[[], torch.Tensor]) -> Replay:
        self.log.append("capture")
        rows = work().clone()
        return lambda: rows.copy_(work())

    def _put(self, kind: str, work: Callable[[], object]) -> Mark:
        self.log.append(kind)
        mark = object()
        if self._eager[kind]:
            work()
        else:
            self._queue.append((mark, work))
        return mark


class OneBuffer(FakeDevice):
    """Gives the same memory to all batches."""

    def __init__(self, *, eager_copies: bool = False) -> None:
        super().__init__(eager_copies=eager_copies)
        self._host, self._buffer = torch.empty(65_536, dtype=torch.int32), super().buffer(65_536)
        self._rows = torch.empty(1_024)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        memory = self._host if dtype is torch.int32 else self._rows
        return memory[: math.prod(shape)].reshape(shape)

    def buffer(self, count: int) -> torch.Tensor:
        return self._buffer[:count]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.xlm_roberta(tmp_path_factory.mktemp("staged") / "xlm_roberta")


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return load(directory)


def batch_of(*lengths: int, seed: int = 0) -> tuple[Sequence, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        Sequence.of(torch.randint(5, 1_900, (length,), generator=generator).tolist()) for length in lengths
    )


BATCHES = [
    batch_of(*lengths, seed=seed) for seed, lengths in enumerate([(9, 40, 9, 3), (128,), (1, 1), (70,) * 9])
]


@pytest.fixture(scope="module")
def expected(model: Model) -> list[list[Output | None]]:
    return [CpuRunner(model).launch(batch)() for batch in BATCHES]


def same(found: list[Output | None], wanted: list[Output | None]) -> bool:
    return found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 15, 16, 17, 31, 33, 100, 129, 1_000, 1_025, 4_095, 4_096])
def test_a_size_is_rounded_up_by_less_than_an_eighth(tokens: int) -> None:
    rounded = bucket(tokens)
    assert tokens <= rounded
    assert (rounded - tokens) * 8 <= tokens
    assert bucket(rounded) == rounded


def test_there_are_few_sizes_and_each_is_one_that_is_captured() -> None:
    shapes = all_shapes()
    assert len(shapes) == len(set(shapes)) <= 150
    assert [shape.tokens for shape in shapes] == sorted((shape.tokens for shape in shapes), reverse=True)
    for tokens in range(8, 4_097, 61):
        lengths = [500] * (tokens // 500) + [tokens % 500] * bool(tokens % 500)
        shape = shape_for(batch_of(*lengths))
        assert shape in shapes
        assert shape.tokens == bucket(tokens)


def test_a_few_sequences_do_not_pay_for_many() -> None:
    few, many = shape_for(batch_of(*[150] * 8)), shape_for(batch_of(*[24] * 50))
    assert few is not None
    assert many is not None
    assert few.tokens == many.tokens == 1_280
    assert (few.sequences, many.sequences) == (14, 81)
    assert shape_for(batch_of(150)) == GraphShape(160, 2)


def test_what_a_captured_pass_would_be_slow_for_is_not_captured() -> None:
    assert shape_for(batch_of(4_000, 97)) is None  # too many tokens
    assert shape_for(batch_of(513)) is None  # a long sequence
    assert shape_for(batch_of(*[3] * 40)) is None  # many short ones
    assert shape_for(batch_of(*[16] * 40)) is not None
    assert shape_for(batch_of(7)) is None


NO_PREFIXES = Prefixes({}, [])


def test_a_gpu_gets_the_longest_sequences_first_and_equal_ones_in_their_order() -> None:
    assert longest_first(batch_of(2, 3, 1, 3)) == [1, 3, 0, 2]


def test_a_batch_is_packed_into_one_row() -> None:
    found = pack((Sequence.of([3, 4, 5], 2), Sequence.of([1, 2], 1), Sequence.of([6])), NO_PREFIXES)
    packed = tensors(found, torch.from_numpy(found.ints))
    assert packed.input_ids.tolist() == [3, 4, 5, 1, 2, 6]
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 1, 0]
    assert packed.token_type_ids.tolist() == [0, 0, 1, 0, 1, 0]
    assert packed.layout.lengths == (3, 2, 1)
    assert packed.layout.starts.tolist() == [0, 3, 5, 6]
    assert packed.layout.longest == 3


def test_a_captured_batch_begins_with_filler_in_a_sequence_of_its_own() -> None:
    batch = batch_of(13, 5)
    found = filled(pack(batch, NO_PREFIXES), GraphShape(20, 5))
    packed = tensors(found, torch.from_numpy(found.ints))
    assert packed.layout.starts.tolist() == [0, 0, 0, 2, 15, 20]
    assert packed.layout.firsts.max() < 20
    assert packed.input_ids[:2].tolist() == [0, 0]
    assert packed.input_ids[2:].tolist() == [*token_ids(batch[0]), *token_ids(batch[1])]
    assert packed.position_ids[:4].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("eager", [False, True])
def test_every_sequence_gets_its_own_output_however_batches_overlap(
    model: Model, expected: list[list[Output | None]], eager: bool
) -> None:
    device = FakeDevice(eager_copies=eager)
    runner = CudaRunner(model, device, {})
    for _ in range(2):
        flights = [runner.launch(batch) for batch in BATCHES]
        for flight, wanted in zip(flights, expected, strict=True):
            assert same(flight(), wanted)
    ahead = runner.launch(BATCHES[0])
    for batch, before in zip(BATCHES[1:], expected[:-1], strict=True):
        following = runner.launch(batch)
        assert same(ahead(), before)
        ahead = following
    assert same(ahead(), expected[-1])


def test_the_host_waits_once_for_a_batch_and_not_before_the_next_is_launched(model: Model) -> None:
    device = FakeDevice()
    runner = CudaRunner(model, device, {})
    first = runner.launch(BATCHES[0])
    second = runner.launch(BATCHES[1])
    assert device.log == ["copy", "compute"] * 2
    first()
    third = runner.launch(BATCHES[2])
    second()
    third()
    assert device.log == ["copy", "compute"] * 2 + ["wait", "copy", "compute", "wait", "wait"]


@pytest.mark.parametrize("eager", [False, True])
def test_overlapping_would_notice_a_buffer_that_is_used_again_too_soon(
    model: Model, expected: list[list[Output | None]], eager: bool
) -> None:
    runner = CudaRunner(model, OneBuffer(eager_copies=eager), {})
    first = runner.launch(BATCHES[3])
    runner.launch(BATCHES[0])
    assert not same(first(), expected[3])


def test_the_buffers_of_two_batches_serve_any_number(model: Model) -> None:
    device = FakeDevice()
    runner = CudaRunner(model, device, {})
    ahead = runner.launch(BATCHES[0])
    made = 0
    for turn in range(20):
        following = runner.launch(BATCHES[turn % 4])
        ahead()
        ahead = following
        made = device.buffers if turn == 7 else made
    ahead()
    assert device.buffers == made, "after some turns they are large enough"


@pytest.mark.parametrize("eager", [False, True], ids=["at the result", "at the launch"])
@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("broken"),
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_fails_reaches_its_own_batch_only(
    directory: Path, expected: list[list[Output | None]], eager: bool, raised: Exception
) -> None:
    model: Any = load(directory)
    device = FakeDevice(eager_work=eager)
    runner = CudaRunner(model, device, {})
    forward = model.forward

    def broken(packed: Any) -> torch.Tensor:
        if packed.layout.lengths == (128,):
            raise raised
        rows: torch.Tensor = forward(packed)
        return rows

    model.forward = broken
    before = runner.launch(BATCHES[0])
    wanted = RuntimeError if str(raised) == "broken" else OutOfMemory
    with pytest.raises(wanted):
        runner.launch(BATCHES[1])()
    after = runner.launch(BATCHES[2])
    assert same(before(), expected[0])
    assert same(after(), expected[2])
    assert same(runner.launch(BATCHES[3])(), expected[3])
    assert device.given_back == (wanted is OutOfMemory)


def test_a_score_that_is_not_finite_is_none(directory: Path) -> None:
    model: Any = load(directory)
    runner, forward = CudaRunner(model, FakeDevice(), {}), model.forward

    def poisoned(packed: Any) -> torch.Tensor:
        rows: torch.Tensor = forward(packed).clone()
        rows[0] = torch.nan  # of the longest
        return rows

    model.forward = poisoned
    outputs = runner.launch(BATCHES[0])()
    assert [output is None for output in outputs] == [False, True, False, False]


@pytest.fixture
def capturable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that goes by the layout on the device alone, as on a GPU."""
    taken_for_a_gpu(monkeypatch)
    return load(directory)


def taken_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the models that are loaded from now on have a GPU's operations and its attention."""
    monkeypatch.setattr(graphs, "MOST_CAPTURED", 256)
    for module in (operations, cuda):
        monkeypatch.setattr(module, "kernel_for", lambda _: part_by_part)
    made = TorchOperations(torch.device("cpu"), torch.float32, Attention.VARLEN)
    monkeypatch.setattr(bodies, "operations_for", lambda *_: made)
    monkeypatch.setattr(loader, "choose_attention", lambda *_: Attention.VARLEN)


def test_captured_passes_give_the_same_scores(
    capturable: Model, expected: list[list[Output | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice()
    runner = CudaRunner(capturable, device, capture_all(capturable, device))
    assert device.log.count("capture") > len(all_shapes()) / 2
    alone: Any = capturable
    forwards: list[int] = []
    forward = alone.forward

    def counting(packed: Any) -> torch.Tensor:
        forwards.append(len(packed.layout.lengths))
        rows: torch.Tensor = forward(packed)
        return rows

    monkeypatch.setattr(alone, "forward", counting)
    flights = [runner.launch(batch) for batch in (BATCHES[0], BATCHES[1], BATCHES[0], BATCHES[3])]
    wanted = [expected[0], expected[1], expected[0], expected[3]]
    for flight, outputs in zip(flights, wanted, strict=True):
        assert same(flight(), outputs)
    assert forwards == [0, 0, 0, 9], "three were replayed, the large one was not"


def test_a_language_model_is_captured_without_its_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = checkpoints.qwen3_reranker(tmp_path / "qwen3")
    plain = CpuRunner(load(directory))
    taken_for_a_gpu(monkeypatch)
    model: Any = load(directory)
    tokenizer = tokenizer_for(model.card)
    calls = [
        tokenize(tokenizer, query, [f"document {number}, {'and more ' * number}" for number in range(count)])
        for query, count in (("one", 1), ("another query", 3), ("a third", 12))
    ]
    passes: list[tuple[int, int]] = []
    forward = model.forward

    def counting(packed: Any) -> torch.Tensor:
        passes.append((len(packed.layout.lengths), len(packed.prefixes)))
        rows: torch.Tensor = forward(packed)
        return rows

    device = FakeDevice()
    runner = CudaRunner(model, device, capture_all(model, device))
    monkeypatch.setattr(model, "forward", counting)
    flights = [runner.launch(call.sequences) for call in calls]
    for flight, call in zip(flights, calls, strict=True):
        assert call.sequences[0].prefix is not None
        assert same(flight(), plain.launch(call.sequences)())
    assert passes == [(0, 0), (0, 0), (14, 2)], "two were replayed; the large one left two prefixes"


def test_a_captured_pass_would_notice_what_fills_it_up_leaking(
    capturable: Model, expected: list[list[Output | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(query: Any, key: Any, value: Any, queries: Any, keys: Any, **options: Any) -> torch.Tensor:
        whole = keys.starts.clone()
        whole[:-1] = 0
        spread = Layout(whole, keys.longest, keys.lengths)
        return part_by_part(query, key, value, queries, spread, **options)

    device = FakeDevice()
    runner = CudaRunner(capturable, device, capture_all(capturable, device))
    body: Any = capturable.body  # type: ignore[attr-defined]
    for layer in body._layers:
        monkeypatch.setattr(layer.attention._attend.__self__, "_kernel", leaking)
    assert not same(runner.launch(BATCHES[0])(), expected[0])


def test_where_capturing_runs_out_of_memory_batches_run_uncaptured(
    capturable: Model, expected: list[list[Output | None]], caplog: pytest.LogCaptureFixture
) -> None:
    class Small(FakeDevice):
        def capture(self, work: Callable[[], torch.Tensor]) -> Replay:
            if self.log.count("capture") == 5:
                raise torch.OutOfMemoryError("no room")
            return super().capture(work)

    device = Small()
    runner = CudaRunner(capturable, device, capture_all(capturable, device))
    assert "run slower" in caplog.text
    assert device.given_back == 1
    for batch, wanted in zip(BATCHES, expected, strict=True):
        assert same(runner.launch(batch)(), wanted)


def test_only_models_that_can_be_captured_are(model: Model) -> None:
    device = FakeDevice()
    assert capture_all(model, device) == {}
    assert device.log == []


@pytest.mark.parametrize("gathered", [False, True])
def test_a_prefix_is_computed_once_for_batches_that_overlap(
    gathered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = checkpoints.qwen3_reranker(tmp_path / "qwen3")
    plain = CpuRunner(load(directory))
    if gathered:
        for module in (hooked, cuda):
            monkeypatch.setattr(module, "kernel_for", lambda _: part_by_part)
    model = load(directory)
    tokenizer = tokenizer_for(model.card)
    calls = [
        tokenize(tokenizer, query, [f"document {number}, {'and more ' * number}" for number in range(6)])
        for query in ("one", "another query")
    ]
    sequences = [call.sequences for call in calls]
    batches = [
        sequences[0][:3],
        sequences[0][3:] + sequences[1][:2],
        sequences[1][2:],
    ]
    expected = [plain.launch(batch)() for batch in batches]
    tokens: list[int] = []
    forward = model.forward

    def counting(packed: Any) -> torch.Tensor:
        tokens.append(len(packed.input_ids))
        return forward(packed)

    monkeypatch.setattr(model, "forward", counting)
    runner = CudaRunner(model, FakeDevice(eager_copies=True), {})
    flights = [runner.launch(batch) for batch in batches]
    for flight, wanted in zip(flights, expected, strict=True):
        assert same(flight(), wanted)
    prefixes = {prefix for batch in batches for each in batch for prefix in each.prefix.chain()}  # type: ignore[union-attr]
    own = sum(tokens_of(batch) for batch in batches)
    assert sum(tokens) == own + sum(map(len, prefixes))


def test_a_model_on_the_cpu_runs_there(model: Model) -> None:
    assert isinstance(runner_for(model), CpuRunner)
