"""What only a card can tell: run `python -m pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine.engine import Engine
from rerank_grpc.kernels import attention, cuda
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.cuda import TorchOperations
from rerank_grpc.kernels.plain import PlainOperations
from rerank_grpc.models.base import Model
from rerank_grpc.models.loader import keep_compiled_code
from rerank_grpc.runner.accelerator import Cuda
from rerank_grpc.runner.cuda import CudaRunner, runner_for
from rerank_grpc.runner.graphs import all_shapes, capture_all, shape_for
from rerank_grpc.runner.runner import OutOfMemory
from rerank_grpc.sequence import Sequence
from tests import random_models as checkpoints
from tests.conftest import WRITERS, load
from tests.kernels.test_attention import all_operations, part_by_part
from tests.models import test_modernbert as modernbert
from tests.models.test_parity import QUERY, documents
from tests.support import submit
from tests.texts import tokenized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CARD = torch.device("cuda", 0)
FAMILIES = ["bert", "roberta", "xlm_roberta"]
# Of the standard deviation of the reference's logits: a card adds in another order than another kernel.
EXACT = 5e-4


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("card")
    return {family: write(root / family) for family, write in WRITERS.items()} | {
        "qwen3": checkpoints.qwen3_reranker(root / "qwen3"),
        "modernbert": modernbert.write(root / "modernbert", "cls", global_attn_every_n_layers=5),
    }


@pytest.fixture(params=[Attention.VARLEN, Attention.FLASH])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    """Each kernel that is installed, as if it were the only one."""
    chosen: Attention = request.param
    if chosen not in attention.installed():
        pytest.skip(f"{chosen.label} is not installed")
    monkeypatch.setattr(attention, "installed", lambda: (chosen,))
    return chosen


def on_card(directory: Path, precision: str) -> tuple[Model, CudaRunner]:
    model = load(directory, precision=precision, device="cuda")
    runner = runner_for(model)
    assert isinstance(runner, CudaRunner)
    return model, runner


def batch_of(model: Model, texts: list[str], query: str = QUERY) -> tuple[Sequence, ...]:
    request = tokenized(model.card, query, texts)
    return tuple(request.sequences[each.chunks[0].sequence] for each in request.documents)


def scores(model: Model, runner: CudaRunner, texts: list[str]) -> torch.Tensor:
    return torch.tensor(runner.launch(batch_of(model, texts))())


@torch.inference_mode()
def transformers_logits(directory: Path, texts: list[str], dtype: torch.dtype) -> torch.Tensor:
    network = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        [QUERY] * len(texts),
        texts,
        truncation="only_second",
        max_length=checkpoints.MAX_TOKENS,
        padding=True,
        return_tensors="pt",
    )
    logits: torch.Tensor = network.to(CARD).eval()(**batch.to(CARD)).logits[:, 0]
    return logits.float().cpu()


def mean_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("family", [*FAMILIES, "deberta", "electra"])
def test_logits_in_fp32_equal_those_of_transformers_on_the_same_card(
    family: str, directories: dict[str, Path]
) -> None:
    model, runner = on_card(directories[family], "fp32")
    assert model.card.attention == (Attention.SDPA if family in FAMILIES else Attention.PADDED)
    expected = transformers_logits(directories[family], documents(), torch.float32)
    found = scores(model, runner, documents())
    assert float((found - expected).abs().max() / expected.std()) <= EXACT


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_kernel_is_no_worse_than_transformers_own(
    family: str, precision: str, kernel: Attention, directories: dict[str, Path]
) -> None:
    model, runner = on_card(directories[family], precision)
    assert model.card.attention == kernel
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    expected = transformers_logits(directories[family], documents(), torch.float32)
    theirs = mean_error(transformers_logits(directories[family], documents(), dtype), expected)
    # Two passes that round equally well differ by a third over so few documents.
    assert mean_error(scores(model, runner, documents()), expected) <= 1.6 * theirs


def test_a_window_is_honoured(kernel: Attention) -> None:
    torch.manual_seed(0)
    lengths = (40, 300, 7)
    query, key, value = torch.randn(3, sum(lengths), 4, 32).unbind(0)
    layout = Layout.of(lengths)
    on_it = Layout(layout.starts.int().to(CARD), layout.longest, lengths)
    attend = attention.kernel_for(kernel)
    assert attend is not None
    half_query, half_key, half_value = (each.half().to(CARD) for each in (query, key, value))
    cases: list[dict[str, Any]] = [{"window": 65}, {"causal": True}, {}]
    for options in cases:
        expected = part_by_part(query, key, value, layout, layout, **options)
        found = attend(half_query, half_key, half_value, on_it, on_it, **options)
        torch.testing.assert_close(found.float().cpu(), expected, rtol=0.02, atol=0.02)


def test_a_part_of_a_causal_pass_sees_what_it_continues(kernel: Attention) -> None:
    """The mask is aligned to the last key: with more keys than queries that is what decides."""
    torch.manual_seed(0)
    queries, keys = Layout.of((3, 50)), Layout.of((40, 90))
    query = torch.randn(53, 4, 32)
    key, value = torch.randn(2, 130, 2, 32).unbind(0)
    expected = part_by_part(query, key, value, queries, keys, causal=True)
    on_it, keys_on_it = (
        Layout(each.starts.int().to(CARD), each.longest, each.lengths) for each in (queries, keys)
    )
    attend = attention.kernel_for(kernel)
    assert attend is not None
    half_query, half_key, half_value = (each.half().to(CARD) for each in (query, key, value))
    found = attend(half_query, half_key, half_value, on_it, keys_on_it, causal=True)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.02, atol=0.02)


def test_empty_sequences_and_those_without_keys_are_harmless(kernel: Attention) -> None:
    torch.manual_seed(0)
    starts = torch.tensor([0, 0, 0, 5, 12], dtype=torch.int32, device=CARD)
    layout = Layout(starts, 512)
    query, key, value = torch.randn(3, 12, 4, 32, dtype=torch.float16, device=CARD).unbind(0)
    attend = attention.kernel_for(kernel)
    assert attend is not None
    plain = Layout(starts[2:], 7)
    torch.testing.assert_close(
        attend(query, key, value, layout, layout), attend(query, key, value, plain, plain)
    )
    firsts = attend(query.index_select(0, layout.firsts), key, value, layout.singles(), layout)
    assert torch.isfinite(firsts[2:]).all()


@pytest.mark.parametrize("family", ["xlm_roberta", "modernbert", "qwen3"])
def test_captured_passes_give_what_uncaptured_ones_give(
    family: str, kernel: Attention, directories: dict[str, Path]
) -> None:
    # In fp16: cuBLAS may add in another order for another number of rows, and bf16 would round that tenfold.
    model, runner = on_card(directories[family], "fp16")
    graphs = capture_all(model, Cuda(CARD))
    assert len(graphs) > len(all_shapes()) / 2
    plain = CudaRunner(model, Cuda(CARD), {})
    for count in (1, 2, 5, 11):
        batch = batch_of(model, documents()[:count])
        assert shape_for(batch) in graphs
        captured, uncaptured = torch.tensor(runner.launch(batch)()), torch.tensor(plain.launch(batch)())
        torch.testing.assert_close(captured, uncaptured, rtol=0.02, atol=0.05)


@contextmanager
def no_other_wait() -> Iterator[None]:
    """Whatever lets the host wait raises; but for events, by which the runner waits once."""
    try:
        with warnings.catch_warnings():  # the mode calls itself a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert", "qwen3"])
def test_nothing_waits_within_a_pass(
    family: str, kernel: Attention, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runner = on_card(directories[family], "bf16")
    small, large = batch_of(model, documents()[:3]), batch_of(model, documents() * 8)
    waits: list[object] = []
    wait = runner._device.wait

    def counting(mark: Any) -> None:
        waits.append(mark)
        wait(mark)

    monkeypatch.setattr(runner._device, "wait", counting)
    for batch in (small, large):
        runner.launch(batch)()
    waits.clear()
    with no_other_wait():
        flights = [runner.launch(batch) for batch in (small, large)]
    for flight in flights:
        with no_other_wait():
            flight()
    assert len(waits) == 2


def test_out_of_memory_leaves_the_runner_able(directories: dict[str, Path]) -> None:
    model, runner = on_card(directories["bert"], "bf16")
    small, large = batch_of(model, documents()[:3]), batch_of(model, documents() * 400)
    expected = runner.launch(small)()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CARD).total_memory
    room = torch.cuda.memory_reserved(CARD) + (20 << 20)
    torch.cuda.set_per_process_memory_fraction(room / total, CARD)
    try:
        with pytest.raises(OutOfMemory):
            runner.launch(large)()
        assert runner.launch(small)() == pytest.approx(expected, abs=0.05)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CARD)
    assert len(runner.launch(large)()) == len(large)


@pytest.fixture
def compiling() -> Iterator[None]:
    """Fails where an operation runs as it is because it could not be compiled."""
    cuda._tell_once.cache_clear()
    yield
    assert not cuda._tell_once.cache_info().currsize


def test_fused_operations_are_compiled_and_kept_on_disk(compiling: None) -> None:
    keep_compiled_code()
    fused = TorchOperations(CARD, torch.bfloat16, Attention.SDPA)
    plain = PlainOperations(CARD, torch.bfloat16)
    all_operations(fused, 5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (1, 2, 333, 20_000):
            for one, other in zip(all_operations(fused, rows), all_operations(plain, rows), strict=True):
                torch.testing.assert_close(one, other, rtol=0.04, atol=0.04)
    assert any(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.py"))


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert", "qwen3"])
def test_no_pass_compiles_behind_the_load(
    family: str, kernel: Attention, directories: dict[str, Path], compiling: None
) -> None:
    model, runner = on_card(directories[family], "bf16")
    with torch.compiler.set_stance("fail_on_recompile"):
        for texts in (documents()[:1], documents()[:3], documents() * 8):
            assert None not in runner.launch(batch_of(model, texts))()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_modernbert_beyond_its_window_scores_as_transformers_does(
    pooling: str, precision: str, tmp_path: Path
) -> None:
    directory, batch = modernbert.write(tmp_path / pooling, pooling), modernbert.sequences()
    _, runner = on_card(directory, precision)
    expected = modernbert.reference(directory, batch)
    found = torch.tensor(runner.launch(tuple(map(Sequence.of, batch)))())
    assert mean_error(found, expected) <= (EXACT if precision == "fp32" else 0.2)


def test_a_shared_prefix_scores_as_the_whole_text_does(
    kernel: Attention, directories: dict[str, Path]
) -> None:
    model, runner = on_card(directories["qwen3"], "bf16")
    batch = batch_of(model, documents()[:12])
    assert batch[0].prefix is not None
    unshared = tuple([sequence.whole() for sequence in batch])
    exact, exactly = on_card(directories["qwen3"], "fp32")
    expected = torch.tensor(exactly.launch(unshared)())
    assert exact.card.attention is Attention.SDPA
    torch.testing.assert_close(torch.tensor(exactly.launch(batch)()), expected, rtol=1e-3, atol=5e-3)
    theirs = mean_error(torch.tensor(runner.launch(unshared)()), expected)
    assert mean_error(torch.tensor(runner.launch(batch)()), expected) <= 2 * theirs
    assert model.card.shares_prefixes


def test_the_engine_overlaps_batches_and_answers_everybody(
    kernel: Attention, directories: dict[str, Path]
) -> None:
    model, runner = on_card(directories["roberta"], "fp16")
    batch = batch_of(model, documents())
    expected = runner.launch(batch)()
    engine = Engine(runner, EngineSettings(max_batch_tokens=1_000))
    engine.start()
    try:
        requests = [submit(engine, batch) for _ in range(10)]
        for request in requests:
            for _ in request.completed():
                pass
            assert request.outputs == pytest.approx(expected, abs=0.2)
    finally:
        engine.close()
