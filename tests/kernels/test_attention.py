"""What a GPU runs, run on the CPU: the choice of a kernel, torch's operations, gathered keys."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rerank_grpc.kernels import attention, causal, cuda
from rerank_grpc.kernels.attention import (
    Attention,
    attend_by_length,
    choose_attention,
    kernels_take,
    window_of,
)
from rerank_grpc.kernels.base import Angles, Heads, KeysValues, Layout
from rerank_grpc.kernels.causal import MASK_ROWS, CausalParts, GatheredParts, kept_of, key_ranges
from rerank_grpc.kernels.cuda import TorchOperations
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.kernels.plain import PlainOperations, plain_turn
from rerank_grpc.models import loader
from rerank_grpc.models.base import Model, PackedTokens
from rerank_grpc.models.bodies import model as bodies
from rerank_grpc.models.borrowed.hooked import HOOK
from rerank_grpc.runner.packing import pack, tensors
from rerank_grpc.runner.prefixes import PrefixCache
from tests import prompts
from tests import random_models as checkpoints
from tests.conftest import load
from tests.models import test_modernbert as modernbert
from tests.models.test_parity import BOUND, QUERY, documents, error, pack_request, reference
from tests.texts import tokenized

CPU = torch.device("cpu")
VARLEN, FLASH, SDPA = Attention.VARLEN, Attention.FLASH, Attention.SDPA
CARD = torch.device("cuda", 0)
CONFIG = {"num_attention_heads": 12, "hidden_size": 384}
# Of the standard deviation of the reference's logits, in fp32.
EXACT = 1e-5


@pytest.mark.parametrize(
    ("capability", "precision", "size", "expected"),
    [
        ((9, 0), "bf16", 64, True),
        ((8, 0), "fp16", 128, True),
        ((9, 0), "fp32", 64, False),
        ((7, 5), "fp16", 64, False),
        ((9, 0), "bf16", 20, False),
        ((9, 0), "bf16", 512, False),
        (None, "bf16", 64, False),
    ],
)
def test_kernels_take_what_a_card_and_a_precision_can_do(
    capability: tuple[int, int] | None, precision: str, size: int, expected: bool
) -> None:
    assert kernels_take(capability, precision, size) is expected


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> set[Attention]:
    """The kernels that run on a card, of the two that are installed; a test may take some away."""
    running = {VARLEN, FLASH}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(attention, "installed", lambda: (VARLEN, FLASH))
    monkeypatch.setattr(attention, "works", lambda kernel, *_: kernel in running)
    return running


def test_the_fastest_attention_is_chosen_for_a_models_own_heads(runs: set[Attention]) -> None:
    assert choose_attention(CARD, "bf16", CONFIG) is VARLEN
    assert choose_attention(CARD, "bf16", CONFIG | {"head_dim": 36}) is SDPA
    assert choose_attention(CPU, "bf16", CONFIG) is SDPA


def test_a_kernel_that_does_not_run_is_passed_over(runs: set[Attention]) -> None:
    runs.remove(VARLEN)
    assert choose_attention(CARD, "bf16", CONFIG) is FLASH
    runs.remove(FLASH)
    assert choose_attention(CARD, "bf16", CONFIG) is SDPA


def test_a_kernel_that_raises_does_not_work(caplog: pytest.LogCaptureFixture) -> None:
    # The one has no code for the CPU, and the other is not installed here.
    assert not attention.works(VARLEN, CPU, "bf16", 32)
    assert not attention.works(FLASH, CPU, "bf16", 32)
    assert "attention packed (varlen) does not run on cpu" in caplog.text


def test_the_labels_are_those_that_list_models_has_always_shown() -> None:
    shown = [each.label for each in Attention]
    assert shown == ["packed (varlen)", "packed (flash-attn)", "packed (kernels)", "packed (sdpa)", "padded"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_kernel_that_masks_otherwise_is_passed_over(
    precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_mask(*tensors: Any, causal: bool, window: int | None) -> torch.Tensor:
        return part_by_part(*tensors)

    def without_window(*tensors: Any, causal: bool, window: int | None) -> torch.Tensor:
        return part_by_part(*tensors, causal=causal)

    def aligned_to_the_first(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Layout, keys: Layout, **_: Any
    ) -> torch.Tensor:
        first = torch.cat([key[:1], key[1:3]]), torch.cat([value[:1], value[1:3]])
        return part_by_part(query, *first, queries, queries, causal=True)

    for kernel in (part_by_part, without_mask, without_window, aligned_to_the_first):
        monkeypatch.setattr(attention, "kernel_for", lambda _, kernel=kernel: kernel)
        assert attention.works(VARLEN, CPU, precision, 32) == (kernel is part_by_part)
    assert caplog.text.count("computes something else") == 3


def test_the_kernel_of_this_torch_takes_what_is_passed_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself has no CPU code: its operator is replaced below the checks of arguments."""
    seen: list[tuple[Any, ...]] = []

    def operator(query: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        seen.append(rest)
        return query, query, query

    importlib.import_module("torch.nn.attention.varlen")
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn", operator)
    kernel = attention.kernel_for(VARLEN)
    assert kernel is not None
    query, key = torch.ones(7, 4, 8), torch.ones(7, 2, 8)
    layout = Layout.of((3, 4))
    assert torch.equal(kernel(query, key, key, layout, layout, causal=True, scale=0.5), query)
    assert torch.equal(kernel(query, query, query, layout, layout, window=4), query)
    assert torch.equal(kernel(query, key, key, layout, layout, causal=True, window=4), query)
    assert seen[0][4:9] == (4, 4, True, 0.5, [-1, 0])
    assert seen[1][4:9] == (4, 4, False, None, [3, 3])
    assert seen[2][4:9] == (4, 4, False, None, [3, 0])


def test_flash_attention_is_told_window_and_mask_as_its_own_functions_take_them() -> None:
    asked = attention._flash_options(grouped=True, causal=True, window=4, scale=0.5)
    assert asked == {"softmax_scale": 0.5, "causal": True, "window_size": (3, 0)}
    assert attention._flash_options(grouped=False)["window_size"] == (-1, -1)


def test_the_hook_does_not_make_transformers_use_its_own_flash_attention() -> None:
    assert "flash" not in HOOK
    assert HOOK in AttentionInterface().valid_keys()
    assert HOOK not in AttentionMaskInterface().valid_keys()


def test_a_window_counts_the_places_on_each_side() -> None:
    assert window_of(causal=False, window=None) == (-1, -1)
    assert window_of(causal=False, window=1) == (0, 0)
    assert window_of(causal=True, window=None) == (-1, 0)
    assert window_of(causal=True, window=4) == (3, 0)


def part_by_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Layout,
    keys: Layout,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """What a kernel computes, by `starts` alone, as the kernels go by."""
    mixed = torch.full_like(query, math.nan)
    bounds = zip(*(each.starts.tolist() for each in (queries, keys)), strict=True)
    edges = list(bounds)
    for (start, key_start), (end, key_end) in pairwise(edges):
        if start == end:
            continue
        q, k, v = query[start:end], key[key_start:key_end], value[key_start:key_end]
        own = torch.arange(len(k) - len(q), len(k))[:, None]
        places = torch.arange(len(k))
        near = (own - places).abs() < (window or len(k) + len(q))
        seen = near & (places <= own) if causal else near
        q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
        grouped = query.shape[1] != key.shape[1]
        found = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped)
        mixed[start:end] = found[0].transpose(0, 1)
    return mixed


def test_neighbours_of_equal_length_are_attended_together_and_apart_from_others() -> None:
    torch.manual_seed(0)
    layout = Layout.of((3, 3, 3, 1, 5, 5, 2))
    query, key, value = torch.randn(3, 22, 4, 8).unbind(0)
    found = attend_by_length(query, key, value, layout, layout)
    torch.testing.assert_close(found, part_by_part(query, key, value, layout, layout))
    found = attend_by_length(query, key, value, layout, layout, 0.9)
    torch.testing.assert_close(found, part_by_part(query, key, value, layout, layout, scale=0.9))
    some = Layout.of((0, 3, 0, 0, 2, 5, 2))
    found = attend_by_length(query[:12], key, value, some, layout)
    torch.testing.assert_close(found, part_by_part(query[:12], key, value, some, layout))
    first = query.index_select(0, layout.firsts)
    found = attend_by_length(first, key, value, layout.singles(), layout)
    torch.testing.assert_close(found, part_by_part(first, key, value, layout.singles(), layout))


@pytest.fixture(params=[SDPA, VARLEN])
def on_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    """Loads bodies with a GPU's operations, on the CPU, whose kernel is part_by_part."""
    chosen: Attention = request.param
    monkeypatch.setattr(cuda, "kernel_for", {SDPA: None, VARLEN: part_by_part}.get)
    monkeypatch.setattr(
        bodies,
        "operations_for",
        lambda device, precision, attention: TorchOperations(CPU, DTYPES[precision], chosen),
    )
    return chosen


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta"])
def test_torchs_operations_give_transformers_logits(
    family: str, on_torch: Attention, directories: dict[str, Path]
) -> None:
    model = load(directories[family])
    packed = pack_request(tokenized(model.card, QUERY, documents()))
    expected = reference(directories[family], documents())
    assert expected.std() >= 1
    assert error(model.forward(packed)[:, 0], expected) <= BOUND
    blank = pack_request(tokenized(model.card, QUERY, [""] * len(documents())))
    assert error(model.forward(blank)[:, 0], expected) > 100 * BOUND


def test_torchs_operations_in_bf16_are_no_worse_than_transformers_own(
    on_torch: Attention, directories: dict[str, Path]
) -> None:
    model = load(directories["bert"], precision="bf16")
    packed = pack_request(tokenized(model.card, QUERY, documents()))
    expected = reference(directories["bert"], documents())
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        directories["bert"], dtype=torch.bfloat16
    ).eval()
    with torch.inference_mode():
        theirs = torch.cat(
            [
                network(ids[None], token_type_ids=types[None]).logits[0].float()
                for ids, types in zip(
                    packed.input_ids.split(packed.layout.lengths),
                    packed.token_type_ids.split(packed.layout.lengths),
                    strict=True,
                )
            ]
        )
    mean = lambda found: float((found - expected).square().mean().sqrt())  # noqa: E731
    assert 0 < mean(model.forward(packed)[:, 0]) <= 1.2 * mean(theirs)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_torchs_operations_give_modernberts_logits_beyond_the_window(
    pooling: str, on_torch: Attention, tmp_path: Path
) -> None:
    directory, batch = modernbert.write(tmp_path / pooling, pooling), modernbert.sequences()
    model, expected = load(directory), modernbert.reference(directory, batch)
    assert expected.std() >= 1
    found = model.forward(modernbert.pack(batch))[:, 0]
    assert error(found, expected) <= EXACT
    wide = modernbert.pack([each[:60] for each in batch])
    assert error(model.forward(wide)[:, 0], expected) > 100 * EXACT


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.qwen3_reranker(tmp_path_factory.mktemp("decoder") / checkpoints.QWEN3_NAME)


def passages() -> list[str]:
    return [text[:200] for text in documents()]


def packed_behind_prefixes(model: Model, texts: list[str]) -> PackedTokens:
    """Packs a request as a GPU's runner does, with the rows of the keys if there is a kernel."""
    request = tokenized(model.card, QUERY, texts)
    sequences = tuple(request.sequences[each.chunks[0].sequence] for each in request.documents)
    gathers = model.card.attention is VARLEN
    batch = pack(sequences, PrefixCache().take(sequences), gathers=gathers)
    assert len(batch.prefixes) >= 1
    return tensors(batch, torch.from_numpy(batch.ints))


def test_torchs_operations_give_qwen3s_logits_behind_prefixes(
    on_torch: Attention, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "choose_attention", lambda *_: on_torch)
    model, texts = load(qwen3), passages()
    expected = prompts.own_logits(qwen3, "qwen3", prompts.own_ids(qwen3, "qwen3", QUERY, texts))
    assert expected.std() >= 1
    packed = packed_behind_prefixes(model, texts)
    assert error(model.forward(packed)[:, 0], expected) <= EXACT
    packed = packed_behind_prefixes(model, texts)
    shifted = replace(packed, position_ids=packed.position_ids * 2)
    assert error(model.forward(shifted)[:, 0], expected) > 100 * EXACT


def test_the_first_rows_in_a_window_see_what_is_near_though_a_kernel_aligns_to_the_last() -> None:
    torch.manual_seed(0)
    operations = TorchOperations(CPU, torch.float32, SDPA)
    operations._kernel = part_by_part
    layout, heads = Layout.of((40, 3, 9, 1)), Heads(4, 2, 8, 8**-0.5, window=5)
    query, key, value = torch.randn(53, 32), torch.randn(53, 16), torch.randn(53, 16)
    angles = torch.randn(53, 4)
    turns = Angles(angles.cos(), angles.sin())
    every = operations.attend(query, key, value, layout, layout, heads, (turns, turns))
    firsts = layout.firsts
    picked = operations.attend(
        *(query[firsts], key, value, layout.singles(), layout, heads, (turns.rows(firsts), turns))
    )
    torch.testing.assert_close(picked, every[firsts])
    captured = Layout(layout.starts, 512)
    with pytest.raises(AssertionError, match="captured"):
        operations.attend(query[firsts], key, value, captured.singles(), captured, heads)


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[torch.dtype], TorchOperations]]:
    """Operations that are compiled as on a card, but for the code that Inductor would write."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    def make(dtype: torch.dtype) -> TorchOperations:
        operations = TorchOperations(CPU, dtype, SDPA)
        operations._fuses = True
        return operations

    forget_compiled()
    yield make
    forget_compiled()


def forget_compiled() -> None:
    for made in (cuda.fused_norm, cuda.fused_gate, cuda.fused_turn, cuda._tell_once):
        made.cache_clear()


@torch.inference_mode()
def all_operations(operations: PlainOperations, rows: int) -> list[torch.Tensor]:
    """Norms before and behind blocks, gates, and heads that are parts of columns, of so many rows."""
    random = partial(torch.randn, generator=torch.Generator().manual_seed(rows))
    weight, bias, dtype = random(32), random(32), operations._dtype
    device = operations._device
    added, residual, merged = (random(rows, width).to(device, dtype) for width in (32, 32, 96))
    made: list[torch.Tensor] = []
    for shift, rms, keeps_sum in ((bias, False, False), (None, False, True), (None, True, True)):
        norm = operations.norm(weight, shift, 1e-5, rms=rms, keeps_sum=keeps_sum)
        made += [*norm(added.clone(), residual.clone()), *norm(None, residual.clone())]
    made += [operations.gate("gelu")(merged.clone()), operations.gate("silu")(merged.clone())]
    turns = Angles(random(rows, 4).to(device), random(rows, 4).to(device))
    alone = merged[:, 32:64].flatten().unflatten(0, (rows, 32))  # a clone of one row keeps its stride
    made.append(operations.turn(4, None, 0.0)(alone, turns))
    made.append(operations.turn(4, weight[:8], 1e-6)(merged[:, :32], turns))
    return made


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)], ids=["fp32", "bf16"]
)
def test_fused_operations_compute_what_plain_ones_do_and_compile_once_for_all_numbers_of_rows(
    dtype: torch.dtype, bound: float, fusing: Callable[[torch.dtype], TorchOperations]
) -> None:
    fused, plain = fusing(dtype), PlainOperations(CPU, dtype)
    all_operations(fused, 5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (1, 2, 5, 64, 3_000):
            expected = all_operations(plain, rows)
            for one, other in zip(all_operations(fused, rows), expected, strict=True):
                assert one.dtype is dtype
                assert one.is_contiguous()
                torch.testing.assert_close(one, other, rtol=bound, atol=bound)
    assert not cuda._tell_once.cache_info().currsize, "an operation was not compiled"


@torch.inference_mode()
def test_more_models_than_dynamo_compiles_one_code_for_are_all_compiled(
    fusing: Callable[[torch.dtype], TorchOperations],
) -> None:
    operations, residual = fusing(torch.float32), torch.randn(3, 16)
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    for number in range(12):
        norm = operations.norm(torch.ones(16), None, 1e-5 * (number + 1), rms=True, keeps_sum=True)
        norm(None, residual)
    assert counters["unique_graphs"] - before == 12 * len(cuda.SAMPLE_ROWS)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_no_pass_compiles_behind_the_one_that_checks_a_model_at_its_load(
    family: str,
    fusing: Callable[[torch.dtype], TorchOperations],
    qwen3: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "operations_for", lambda *_: fusing(torch.float32))
    if family == "modernbert":
        model = load(modernbert.write(tmp_path, "cls", global_attn_every_n_layers=5))
    else:
        model = load({"qwen3": qwen3, **directories}[family])
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ((1,), (1, 7), (90, 3, 1, 20)):
            assert model.forward(modernbert.pack([[9] * length for length in lengths])).isfinite().all()
    assert cuda.fused_norm.cache_info().currsize >= 1
    assert not cuda._tell_once.cache_info().currsize, "an operation was not compiled"


def test_rows_and_sums_are_rounded_once(fusing: Callable[[torch.dtype], TorchOperations]) -> None:
    torch.manual_seed(0)
    rows, residual = torch.randn(2, 5, 16, dtype=torch.bfloat16).unbind(0)
    weight, bias = torch.randn(16), torch.randn(16)
    norm = fusing(torch.bfloat16).norm(weight, bias, 1e-5, rms=False, keeps_sum=False)
    total = (rows + residual).double()
    exact = torch.nn.functional.layer_norm(total, (16,)) * weight + bias
    found, _ = norm(rows, residual)
    assert found.dtype is torch.bfloat16
    assert (found - exact).abs().max() < 0.02


def test_heads_are_turned_as_halves_and_not_as_neighbours() -> None:
    torch.manual_seed(0)
    rows, angles = torch.randn(5, 32), torch.randn(5, 4)
    turns = Angles(angles.cos(), angles.sin())
    found = cuda.turn_heads(4, 0.0, rows, turns.cosines, turns.sines, None)
    assert torch.equal(found, plain_turn(4, None, 0.0, rows, turns))
    first = rows[:, 0] * turns.cosines[:, 0] - rows[:, 4] * turns.sines[:, 0]
    torch.testing.assert_close(found[:, 0], first)


def test_where_nothing_can_be_compiled_functions_run_as_they_are(
    fusing: Callable[[torch.dtype], TorchOperations],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def compile_(function: object) -> Callable[..., torch.Tensor]:
        def call(*_: object) -> torch.Tensor:
            raise RuntimeError("no C compiler")

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    found, plain = fusing(torch.float32), PlainOperations(CPU, torch.float32)
    for one, other in zip(all_operations(found, 3), all_operations(plain, 3), strict=True):
        torch.testing.assert_close(one, other)
    all_operations(found, 4)
    assert caplog.text.count("rotations are not compiled (RuntimeError): they run slower") == 1


def test_compiled_code_is_kept_in_the_users_folder_unless_the_operator_chose_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loader, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what is set here goes with the test
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    loader.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere"


def test_keys_are_found_among_those_that_are_kept_and_those_of_this_pass() -> None:
    kept, first, second = KeysValues(3), KeysValues(5), KeysValues(7)
    prefixes = (first, second)
    contexts = (kept, first, kept, second, None)
    assert [id(each) for each in kept_of(contexts, prefixes)] == [id(kept)]
    # kept: 0 to 2; then parts of 2, 2, 4, 1 and 3 tokens
    assert key_ranges(contexts, prefixes, (2, 2, 4, 1, 3)) == [
        [range(3), range(3, 5)],
        [range(3), range(3, 5), range(5, 7)],
        [range(3), range(7, 11)],
        [range(3), range(3, 5), range(5, 7), range(11, 12)],
        [range(12, 15)],
    ]


def layout_of(
    contexts: tuple[KeysValues | None, ...], prefixes: tuple[KeysValues, ...], lengths: tuple[int, ...]
) -> Layout:
    ranges = key_ranges(contexts, prefixes, lengths)
    seen = tuple(sum(map(len, each)) for each in ranges)
    rows = torch.tensor([place for each in ranges for part in each for place in part])
    plain = Layout.of(lengths)
    return Layout(plain.starts, plain.longest, lengths, Layout.of(seen), rows)


@pytest.mark.parametrize("window", [None, 1, 2, 7, 40, 500])
def test_gathered_keys_give_what_attending_part_by_part_gives(window: int | None) -> None:
    """Two layers and two passes: the second finds what the first has left."""
    torch.manual_seed(0)
    heads, groups, size, layers = 4, 2, 8, 2

    def run(make: Callable[..., Any]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        system, head, other = KeysValues(6), KeysValues(10), KeysValues(9)
        passes = [
            ((None, system, head, head, None), (system, head), (6, 4, 5, 1, 3)),
            ((system, head, other, system), (other,), (3, 200, 4, 2)),
        ]
        found = []
        for contexts, prefixes, lengths in passes:
            parts = make(contexts, prefixes, lengths)
            for layer in range(layers):
                query, key, value = (
                    torch.randn(1, count, sum(lengths), size, generator=generator)
                    for count in (heads, groups, groups)
                )
                found.append(parts.attend_causal(layer, query, key, value, 0.3, window))
        return [
            *found,
            *(each for prefix in (system, head, other) for pair in prefix.layers for each in pair),
        ]

    def gathered(contexts: Any, prefixes: Any, lengths: Any) -> GatheredParts:
        return GatheredParts(contexts, prefixes, layout_of(contexts, prefixes, lengths), part_by_part)

    def part_by_part_(contexts: Any, prefixes: Any, lengths: Any) -> CausalParts:
        return CausalParts(contexts, prefixes, Layout.of(lengths))

    expected = run(part_by_part_)
    for one, other in zip(run(gathered), expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, MASK_ROWS - 1, MASK_ROWS, 300, 1_000])
@pytest.mark.parametrize("length", [1, MASK_ROWS, MASK_ROWS + 1, 3 * MASK_ROWS + 7])
def test_causal_windows_computed_in_blocks_equal_one_large_mask(length: int, window: int) -> None:
    torch.manual_seed(length)
    query, key, value = torch.randn(1, 4, length, 8), *torch.randn(2, 1, 2, length, 8).unbind(0)
    parts = CausalParts((None,), (), Layout.of((length,)))
    found = parts.attend_causal(0, query, key, value, None, window)
    layout = Layout.of((length,))
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    expected = part_by_part(q, k, v, layout, layout, causal=True, window=window)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_a_block_reads_no_more_keys_than_its_window_and_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        read.append(key.shape[2])
        return scaled_dot_product_attention(query, key, *rest, **options)

    monkeypatch.setattr(causal, "scaled_dot_product_attention", counting)
    parts = CausalParts((None,), (), Layout.of((2_000,)))
    query, key, value = torch.randn(3, 1, 2, 2_000, 8).unbind(0)
    for layer in range(2):
        parts.attend_causal(layer, query, key, value, None, 16)
    assert max(read) == MASK_ROWS + 15
    assert len(parts._masks) == 3, "the first block, those behind it, and the last"


def test_parts_that_continue_nothing_gather_nothing() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 9, 8).unbind(0)
    layout = Layout.of((4, 5))
    expected = CausalParts((None, None), (), layout).attend_causal(0, query, key, value, None, None)
    found = GatheredParts((None, None), (), layout, part_by_part)
    torch.testing.assert_close(found.attend_causal(0, query, key, value, None, None), expected)


def test_a_model_names_its_attention(directories: dict[str, Path]) -> None:
    model: Model = load(directories["bert"])
    assert model.card.attention is SDPA
    assert not model.card.capturable
