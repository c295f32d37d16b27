"""Each kernel in C against torch in float64, over random shapes; rows and parts never leak."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, rms_norm, scaled_dot_product_attention, silu

from rerank_grpc.kernels import cpu
from rerank_grpc.kernels.base import Activation, Heads
from rerank_grpc.kernels.device import fast_bf16
from rerank_grpc.kernels.native import ACTIVATIONS, Kernels
from tests.kernels.at_level import EXACT_INT8, HERE, NAMES, kernels_at

# A result is rounded to bf16, and so are the weights of attention: half of the last of 8 bits each.
ROUNDING = 2.0**-8
LENGTHS = (1, 15, 16, 17, 0, 48, 63, 65, 90, 2)


@pytest.fixture(params=[(name, 2 - place % 2) for place, name in enumerate(NAMES)], ids=NAMES)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """Computes at each level that the processor has, by two threads at every second one."""
    (name, count), threads = request.param, torch.get_num_threads()
    found = kernels_at(name, monkeypatch)
    torch.set_num_threads(count)
    yield found
    torch.set_num_threads(threads)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Numbers wide enough that weights of attention differ  # bf16."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2).bfloat16()


def close(found: Tensor, exact: Tensor, times: float = 1.0) -> bool:
    """Whether bf16 numbers are the exact ones, to a rounding of each, and of the sums inside."""
    assert found.dtype is torch.bfloat16
    spread = exact.abs().amax(dim=-1, keepdim=True) if exact.numel() else exact
    bound = times * ROUNDING * (exact.abs() + spread)
    return bool(((found.double() - exact).abs() <= bound).all())


def same(found: Tensor, other: Tensor) -> bool:
    """Whether two bf16 tensors are the same to the last bit, NaN too."""
    return torch.equal(found.contiguous().view(torch.int16), other.contiguous().view(torch.int16))


def angles(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    found = torch.rand(rows, size // 2, generator=torch.Generator().manual_seed(seed)) * 6
    return found.cos(), found.sin()


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns the first half of each head with the second, in float64  # [rows, heads, size]."""
    first, second = x.double().chunk(2, dim=-1)
    c, s = cosines.double()[:, None], sines.double()[:, None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


# ---- norm, gate, turn


@pytest.mark.parametrize("rows", [0, 1, 33])
@pytest.mark.parametrize("width", [16, 96, 768])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_norm_is_that_of_the_sum(
    kernels: Kernels, rows: int, width: int, rms: bool, biased: bool
) -> None:
    weight, bias = draw(2, width).float().unbind(0)
    added, residual = draw(2, rows, width, seed=1).unbind(0)

    def exact(x: Tensor) -> Tensor:
        normed = rms_norm(x, (width,), eps=1e-5) if rms else layer_norm(x, (width,), eps=1e-5)
        return normed * weight + (bias if biased else 0)

    def norm(added: Tensor | None, residual: Tensor, *, keeps_sum: bool) -> tuple[Tensor, Tensor]:
        shift = bias if biased else None
        return kernels.norm(added, residual, weight, shift, 1e-5, rms=rms, keeps_sum=keeps_sum)

    normed, following = norm(added, residual.clone(), keeps_sum=False)
    assert following is normed
    assert close(normed, exact(added.double() + residual.double()))
    alone, _ = norm(None, residual.clone(), keeps_sum=False)
    assert close(alone, exact(residual.double()))
    total = added + residual
    kept = residual.clone()
    normed, following = norm(added, kept, keeps_sum=True)
    assert following is kept
    assert same(kept, total)
    assert same(normed, norm(None, total, keeps_sum=True)[0])
    assert close(normed, exact(total.double()))


EXACT = {"gelu": gelu, "gelu_tanh": lambda x: gelu(x, approximate="tanh"), "silu": silu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "width"), [(0, 16), (1, 16), (7, 48), (33, 1152)])
def test_the_gate_activates_one_half_times_the_other(
    kernels: Kernels, activation: Activation, rows: int, width: int
) -> None:
    values = draw(rows, 2 * width) * 4
    left, right = values.double().chunk(2, dim=1)
    exact = EXACT[activation](left) * right
    found = kernels.gate(values, activation)
    assert found.shape == (rows, width)
    bound = ROUNDING * exact.abs() + 1e-5 * right.abs().clamp(min=1)  # GELU itself is right to 6e-6
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_of_every_number_is_right(kernels: Kernels, activation: Activation) -> None:
    every = torch.arange(-(2**15), 2**15).short().view(torch.bfloat16)
    values = torch.stack([every.view(-1, 64), torch.ones(1024, 64).bfloat16()], dim=1).flatten(1)
    found = kernels.gate(values, activation).flatten()
    assert found[every.isnan()].isnan().all()
    finite = every.abs() < 1e18  # whose cube, inside tanh, is finite
    exact = EXACT[activation](every[finite].double())
    assert ((found[finite].double() - exact).abs() <= ROUNDING * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("size", [16, 32, 48, 64, 80, 128, 256])
@pytest.mark.parametrize("weighted", [False, True])
def test_heads_are_normalized_and_turned_in_place(kernels: Kernels, size: int, weighted: bool) -> None:
    heads, rows = 3, 21
    wide = draw(rows, (heads + 2) * size)
    before = wide.clone()
    weight = draw(size, seed=1).float() if weighted else None
    cosines, sines = angles(rows, size)
    view = wide[:, size:-size]
    kernels.turn(view, cosines, sines, heads=heads, weight=weight, epsilon=1e-6)
    x = before[:, size:-size].double().unflatten(1, (heads, size))
    if weight is not None:
        x = rms_norm(x, (size,), weight.double(), 1e-6)
    assert close(view.unflatten(1, (heads, size)), rotated(x, cosines, sines))
    assert same(wide[:, :size], before[:, :size])
    assert same(wide[:, -size:], before[:, -size:])
    kernels.turn(view[:0], cosines, sines, heads=heads, weight=weight, epsilon=1e-6)


def test_a_row_is_the_same_alone_and_among_others_and_keeps_its_nan(kernels: Kernels) -> None:
    weight, (cosines, sines) = draw(64).float(), angles(5, 64)
    rows = draw(5, 64)

    def run(which: slice, values: Tensor) -> list[Tensor]:
        turned = values[which].clone()
        kernels.turn(turned, cosines[which], sines[which], heads=1, weight=weight, epsilon=1e-6)
        norms = [
            kernels.norm(None, values[which].clone(), weight, None, 1e-6, rms=rms, keeps_sum=False)[0]
            for rms in (False, True)
        ]
        return [turned, *norms, *(kernels.gate(values[which].contiguous(), kind) for kind in ACTIVATIONS)]

    together, alone = run(slice(None), rows), run(slice(2, 3), rows)
    assert all(same(many[2:3], one) for many, one in zip(together, alone, strict=True))
    rows[1, 3] = torch.nan
    for found, before in zip(run(slice(None), rows), together, strict=True):
        assert found[1, 3].isnan()
        assert same(found[[0, 2, 3, 4]], before[[0, 2, 3, 4]])
    assert all(found[1].isnan().all() for found in run(slice(None), rows)[:3])


def test_numbers_are_rounded_to_the_nearest_even_and_nan_stays_nan(kernels: Kernels) -> None:
    bits = torch.randint(-(2**31), 2**31, (4_000, 64), generator=torch.Generator().manual_seed(0))
    bits[::2] = bits[::2] // 65_536 * 65_536 + 32_768  # in the middle between two
    bits[1::4] -= bits[1::4] % 65_536 - 32_769
    numbers = bits.int().view(torch.float32)
    numbers[0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38])
    numbers[numbers.abs() < 1e-37] = 1.0  # the instruction for bf16 makes the smallest ones 0
    ones = torch.ones(len(numbers), 128).bfloat16()
    kernels.turn(ones, numbers, torch.zeros_like(numbers), heads=1, weight=None, epsilon=0.0)
    found, expected = ones[:, :64], numbers.bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    assert expected.isnan().any()
    assert torch.equal(found[~expected.isnan()], expected[~expected.isnan()])


# ---- attention


def starts_of(lengths: list[int] | tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def attended(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """One part in float64  # [queries, heads, size], key and value [keys, key heads, size]."""
    q, k, v = (each.double().transpose(0, 1)[None] for each in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped)
    return torch.where(seen.any(dim=1)[:, None, None], mixed[0].transpose(0, 1), 0.0)


SHAPES = [(4, 4, 16), (4, 2, 48), (6, 6, 64), (6, 2, 80), (4, 1, 128), (2, 1, 256)]


@pytest.mark.parametrize("window", [None, 1, 17, 65])
@pytest.mark.parametrize(("heads", "key_heads", "size"), SHAPES)
@pytest.mark.parametrize("turned", [False, True])
def test_attention_both_ways_equals_torchs(
    kernels: Kernels, heads: int, key_heads: int, size: int, window: int | None, turned: bool
) -> None:
    generator = random.Random(f"{heads} {size} {window}")
    lengths = [*LENGTHS, generator.randrange(100)]
    starts, count = starts_of(lengths), sum(lengths)
    wide = draw(count, (heads + 2 * key_heads) * size, seed=size)
    query, key, value = wide.split([heads * size, key_heads * size, key_heads * size], dim=1)
    turns = (*angles(count, size), *angles(count, size))
    scale = 1 / size
    found = kernels.attention(
        *(query, key, value, starts, starts),
        heads=heads,
        key_heads=key_heads,
        scale=scale,
        window=window,
        turns=turns if turned else None,
    )
    q, k, v = (each.unflatten(1, (-1, size)) for each in (query, key, value))
    if turned:  # rounded as the kernel rounds them
        q, k = (rotated(each, *turns[:2]).bfloat16() for each in (q, k))
    for start, length in zip(starts.tolist(), lengths, strict=False):
        own = slice(start, start + length)
        places = torch.arange(length)
        seen = (places[:, None] - places).abs() < (window or length + 1)
        exact = attended(q[own], k[own], v[own], seen, scale)
        assert close(found[own].unflatten(1, (heads, size)), exact, 4.0), (start, length)


KEYS = (1, 4, 16, 1, 0, 30, 47, 64, 17, 1)  # for each of LENGTHS


@pytest.mark.parametrize("window", [None, 1, 17, 65])
@pytest.mark.parametrize(("heads", "key_heads", "size"), SHAPES)
def test_queries_beyond_the_last_key_see_the_keys_that_are_near(
    kernels: Kernels, heads: int, key_heads: int, size: int, window: int | None
) -> None:
    starts, key_starts = starts_of(LENGTHS), starts_of(KEYS)
    query = draw(sum(LENGTHS), heads * size)
    key, value = draw(2, sum(KEYS), key_heads * size, seed=1).unbind(0)
    options: dict[str, Any] = {"heads": heads, "key_heads": key_heads, "scale": 1 / size}
    found = kernels.attention(query, key, value, starts, key_starts, **options, window=window)
    q, k, v = (each.unflatten(1, (-1, size)) for each in (query, key, value))
    blind = 0
    for part, (rows, columns) in enumerate(zip(LENGTHS, KEYS, strict=True)):
        own, seen = slice(*starts[part : part + 2].tolist()), slice(*key_starts[part : part + 2].tolist())
        near = (torch.arange(rows)[:, None] - torch.arange(columns)).abs() < (window or rows + columns + 1)
        exact = attended(q[own], k[seen], v[seen], near, 1 / size)
        assert close(found[own].unflatten(1, (heads, size)), exact, 4.0), part
        blind += int((~near.any(dim=1)).sum())
    assert (blind > 0) == (window is not None)


def test_first_queries_alone_get_what_they_get_among_all(kernels: Kernels) -> None:
    lengths = [each for each in LENGTHS if each]
    starts, count = starts_of(lengths), sum(lengths)
    query, key, value = draw(3, count, 128).unbind(0)
    cosines, sines = angles(count, 64)
    firsts = starts[:-1]
    singles = torch.arange(len(starts), dtype=torch.int32)
    options: dict[str, Any] = {"heads": 2, "key_heads": 2, "scale": 0.1}
    for window in (None, 5):
        options["window"] = window
        whole = kernels.attention(query, key, value, starts, starts, **options, turns=(cosines, sines) * 2)
        turns = (cosines[firsts], sines[firsts], cosines, sines)
        found = kernels.attention(query[firsts], key, value, singles, starts, **options, turns=turns)
        assert same(found, whole[firsts])


PREFIXES = (7, 16, 92, 0, 33)
CONTINUED = (-1, 0, 2, 2, 1, 0, -1, 2, 3, 4)  # for each of LENGTHS


class Causal:
    """A random batch of which some parts continue prefixes, and what torch makes of it."""

    def __init__(self, heads: int, key_heads: int, size: int, window: int | None, last: bool) -> None:
        self.lengths = LENGTHS
        self.continued = torch.tensor(CONTINUED, dtype=torch.int32)
        self.key_starts = starts_of(LENGTHS)
        # Only the last token of each part asks, or all do.
        self.queries = [min(each, 1) for each in LENGTHS] if last else list(LENGTHS)
        self.query_starts = starts_of(self.queries)
        wide = draw(sum(LENGTHS), 2 * key_heads * size)
        self.key, self.value = wide.chunk(2, dim=1)
        self.query = draw(sum(self.queries), heads * size, seed=1)
        # Tokens precede heads in memory, as in kept prefixes.
        kept = [draw(2, 1, tokens, key_heads, size, seed=tokens).transpose(2, 3) for tokens in PREFIXES]
        self.prefixes = [(each[0], each[1]) for each in kept]
        self.options: dict[str, Any] = {
            "heads": heads,
            "key_heads": key_heads,
            "scale": size**-0.5,
            "window": window,
        }
        self.size = size

    def run(self, kernels: Kernels) -> Tensor:
        return kernels.causal_attention(
            *(self.query, self.key, self.value, self.query_starts, self.key_starts),
            *(self.prefixes, self.continued),
            **self.options,
        )

    def joined(self, part: int) -> tuple[Tensor, Tensor]:
        """The keys and values that a part sees  # [keys, key heads, size]."""
        own = slice(*self.key_starts[part : part + 2].tolist())
        k, v = (each[own].unflatten(1, (-1, self.size)) for each in (self.key, self.value))
        if CONTINUED[part] >= 0:
            before = (each[0].transpose(0, 1) for each in self.prefixes[CONTINUED[part]])
            k, v = (torch.cat(each) for each in zip(before, (k, v), strict=True))
        return k, v

    def exact(self, part: int) -> Tensor:
        k, v = self.joined(part)
        q = self.query[self.rows(part)].unflatten(1, (-1, self.size))
        places = torch.arange(len(k))
        own = torch.arange(len(k) - len(q), len(k))[:, None]
        seen = (places <= own) & (places > own - (self.options["window"] or len(k) + 1))
        return attended(q, k, v, seen, self.options["scale"])

    def rows(self, part: int) -> slice:
        return slice(*self.query_starts[part : part + 2].tolist())


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize(("heads", "key_heads", "size"), SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_causal_attention_equals_torchs(
    kernels: Kernels, heads: int, key_heads: int, size: int, window: int | None, last: bool
) -> None:
    batch = Causal(heads, key_heads, size, window, last)
    found = batch.run(kernels)
    for part in range(len(LENGTHS)):
        own = found[batch.rows(part)].unflatten(1, (heads, size))
        assert close(own, batch.exact(part), 4.0), part


@pytest.mark.parametrize("window", [None, 20])
def test_both_ways_a_part_is_the_same_alone_and_among_others(kernels: Kernels, window: int | None) -> None:
    starts, count = starts_of(LENGTHS), sum(LENGTHS)
    query, key, value = draw(3, count, 128).unbind(0)
    cosines, sines = angles(count, 64)
    options: dict[str, Any] = {"heads": 2, "key_heads": 2, "scale": 0.1, "window": window}
    found = kernels.attention(query, key, value, starts, starts, **options, turns=(cosines, sines) * 2)
    for start, length in zip(starts.tolist(), LENGTHS, strict=False):
        own, one = slice(start, start + length), starts_of([length])
        turns = (cosines[own], sines[own]) * 2
        alone = kernels.attention(query[own], key[own], value[own], one, one, **options, turns=turns)
        assert same(alone, found[own]), (start, length)


@pytest.mark.parametrize("window", [None, 20])
def test_behind_a_prefix_a_part_is_the_same_alone_and_among_others(
    kernels: Kernels, window: int | None
) -> None:
    batch = Causal(4, 2, 64, window, False)
    found = batch.run(kernels)
    for part, length in enumerate(LENGTHS):
        own, prefix = batch.rows(part), CONTINUED[part]
        query, key, value = batch.query[own], batch.key[own], batch.value[own]
        starts, prefixes = starts_of([length]), batch.prefixes[prefix : prefix + 1]
        continued = torch.zeros(1, dtype=torch.int32) if prefix >= 0 else None
        alone = kernels.causal_attention(
            *(query, key, value, starts, starts, prefixes, continued), **batch.options
        )
        assert same(alone, found[own]), part


def test_the_last_queries_alone_get_what_they_get_among_all(kernels: Kernels) -> None:
    batch = Causal(4, 2, 64, None, False)
    whole = batch.run(kernels)
    lasts = [end - 1 for end, length in zip(batch.key_starts[1:].tolist(), LENGTHS, strict=True) if length]
    batch.query, batch.query_starts = batch.query[lasts], starts_of([min(each, 1) for each in LENGTHS])
    assert same(batch.run(kernels), whole[lasts])


def test_a_long_part_that_many_threads_share_is_the_same(kernels: Kernels) -> None:
    query, key, value = draw(3, 700, 64).unbind(0)
    starts = starts_of([700])
    options: dict[str, Any] = {"heads": 1, "key_heads": 1, "scale": 0.2}
    threads = torch.get_num_threads()
    for attend in (kernels.attention, kernels.causal_attention):
        for window in (None, 65):
            found = attend(query, key, value, starts, starts, **options, window=window)
            torch.set_num_threads(7)
            other = attend(query, key, value, starts, starts, **options, window=window)
            torch.set_num_threads(threads)
            assert same(found, other)


def test_nothing_to_attend_to_gives_nothing_or_zeros(kernels: Kernels) -> None:
    nothing, rows = draw(0, 32), draw(3, 32)
    options: dict[str, Any] = {"heads": 2, "key_heads": 2, "scale": 1.0}
    for attend in (kernels.attention, kernels.causal_attention):
        assert attend(nothing, nothing, nothing, starts_of([]), starts_of([]), **options).shape == (0, 32)
        assert attend(nothing, rows, rows, starts_of([0]), starts_of([3]), **options).shape == (0, 32)
        found = attend(rows, nothing, nothing, starts_of([3]), starts_of([0]), **options)
        assert not found.any()


@pytest.mark.parametrize("operand", ["query", "key", "value"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_attention_keeps_what_is_not_a_number_and_keeps_it_to_its_part(
    kernels: Kernels, operand: str, value: float
) -> None:
    starts = starts_of([20, 30])
    parts = {name: draw(50, 64, seed=seed) for seed, name in enumerate(("query", "key", "value"))}
    options: dict[str, Any] = {"heads": 2, "key_heads": 2, "scale": 0.2}
    for attend in (kernels.attention, kernels.causal_attention):
        values = {name: each.clone() for name, each in parts.items()}
        query, key, mixed = values.values()
        whole = attend(query, key, mixed, starts, starts, **options)
        values[operand][:20, 5] = value
        found = attend(query, key, mixed, starts, starts, **options)
        assert not torch.isfinite(found[:20, :32]).all(dim=1).any()
        assert same(found[20:], whole[20:])
        assert same(found[:, 32:], whole[:, 32:])


@pytest.mark.parametrize("operand", [0, 1])
def test_a_prefix_that_is_not_a_number_reaches_its_own_parts_alone(kernels: Kernels, operand: int) -> None:
    batch = Causal(4, 2, 64, None, False)
    whole = batch.run(kernels)
    batch.prefixes[2][operand][0, :, 5] = torch.nan
    found = batch.run(kernels)
    for part, prefix in enumerate(CONTINUED):
        own = batch.rows(part)
        if prefix == 2:
            assert not torch.isfinite(found[own]).any()
        else:
            assert same(found[own], whole[own])


# ---- int8


@pytest.mark.skipif(not EXACT_INT8, reason="torch's own int8 products overflow on this processor")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 64, 128), (7, 768, 64), (101, 128, 192), (400, 64, 64), (0, 64, 64)]
)
def test_the_int8_product_equals_that_of_torch(
    kernels: Kernels, rows: int, inputs: int, outputs: int, gelu: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    bias, values = (torch.randn(shape, generator=generator) for shape in ((outputs,), (rows, inputs)))
    values[:1] = 0
    quantized, scales = cpu.quantize_weight(weight)
    ours = cpu.native_int8_linear(kernels, quantized, scales, bias, gelu=gelu)(values.bfloat16())
    assert ours.shape == (rows, outputs)
    if not rows:
        return
    theirs = cpu.Int8Linear(quantized, scales, bias, gelu=gelu)(values.bfloat16())
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.02)
    exact = torch.nn.functional.linear(values, weight, bias)
    exact = torch.nn.functional.gelu(exact) if gelu else exact
    assert float((ours.float() - exact).square().mean().sqrt()) <= 0.02


@pytest.mark.parametrize("rows", [5, 32, 70])
@pytest.mark.parametrize("inputs", [16, 80, 1_024, 4_096])
def test_the_sums_of_the_int8_product_are_exact_where_they_are_largest(
    kernels: Kernels, rows: int, inputs: int
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randint(0, 2, (128, inputs), generator=generator) * 254 - 127
    weight[:2] = torch.tensor([127, -127])[:, None]
    values = (torch.randint(0, 2, (rows, inputs), generator=generator) * 2 - 1).bfloat16()
    values[:2, :-1] = torch.tensor([1, -1])[:, None]
    values[:, -1] = -values[:, 0]  # so that the middle is 0, and the scale 1 / 127
    product = cpu.native_int8_linear(
        kernels, weight.to(torch.int8), torch.ones(128), torch.zeros(128), gelu=False
    )
    exact = values.double() @ weight.double().T
    torch.testing.assert_close(product(values), exact.bfloat16(), rtol=2**-7, atol=1e-3)


def test_the_int8_product_is_the_same_to_the_last_bit_at_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized, scales = cpu.quantize_weight(draw(192, 256).float())
    rows, found = draw(101, 256, seed=1), []
    for level in HERE:
        kernels = kernels_at(level.name, monkeypatch)
        found.append(cpu.native_int8_linear(kernels, quantized, scales, torch.zeros(192), gelu=False)(rows))
    assert found
    assert all(same(each, found[0]) for each in found)


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 64), (64, 128), (256, 192)])
def test_an_int8_weight_is_packed_as_what_it_is_a_view_of(
    kernels: Kernels, inputs: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (inputs, outputs), generator=generator, dtype=torch.int8).T
    assert not weight.is_contiguous()
    held = weight.contiguous()
    assert torch.equal(kernels.pack_int8(weight), kernels.pack_int8(held))


@pytest.mark.skipif(not fast_bf16(), reason="the CPU has no bf16")
def test_the_int8_product_leaves_the_processor_as_onednn_expects_it(kernels: Kernels) -> None:
    rows, weight = draw(64, 128), draw(64, 128, seed=1)
    quantized, scales = cpu.quantize_weight(weight.float())
    ours = cpu.native_int8_linear(kernels, quantized, scales, torch.zeros(64), gelu=False)
    theirs = cpu.plain_linear(weight, None, torch.bfloat16, gelu=False)
    before = theirs(rows), ours(rows)
    assert same(theirs(rows), before[0])  # AMX has one shape of tiles for each thread
    assert same(ours(rows), before[1])


def test_a_row_of_the_int8_product_is_the_same_alone_and_among_others(kernels: Kernels) -> None:
    quantized, scales = cpu.quantize_weight(draw(256, 128).float())
    product = cpu.native_int8_linear(kernels, quantized, scales, torch.zeros(256), gelu=True)
    rows = draw(905, 128, seed=1)
    whole = product(rows)
    for row in (0, 95, 96, 904):
        assert same(product(rows[row : row + 1]), whole[row : row + 1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 127])
def test_the_int8_product_of_a_row_that_is_not_finite_is_not_finite(
    kernels: Kernels, value: float, place: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    quantized, scales = cpu.quantize_weight(torch.randn(64, 128, generator=generator))
    product = cpu.native_int8_linear(kernels, quantized, scales, torch.zeros(64), gelu=False)
    rows = torch.randn(3, 128, generator=generator).bfloat16()
    whole = product(rows)
    rows[1, place] = value
    found = product(rows)
    assert not torch.isfinite(found[1]).any()
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])


# ---- shapes


@pytest.mark.parametrize(
    ("size", "columns", "outputs", "untaken"),
    [
        (64, (768, 3_072), (2_304, 768, 3_072), []),
        (24, (768,), (2_304, 768, 3_072), ["attention"]),
        (64, (768, 100), (2_304, 768, 200), ["norms and gates", "int8 products"]),
        (64, (96,), (288, 96, 384), ["int8 products"]),
    ],
)
def test_shapes_that_the_kernels_do_not_take_are_named(
    kernels: Kernels, size: int, columns: tuple[int, ...], outputs: tuple[int, ...], untaken: list[str]
) -> None:
    heads = Heads(12, 12, size, 1.0)
    assert cpu.cpu_operations("int8").untaken(heads, columns, outputs) == untaken
    in_bf16 = [each for each in untaken if each != "int8 products"]
    assert cpu.cpu_operations("bf16").untaken(heads, columns, outputs) == in_bf16
    assert cpu.cpu_operations("fp32").untaken(heads, columns, outputs) == []
