"""The CPU's operations in fp32, bf16 and int8, by oneDNN or the kernels in C."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu as activate

from rerank_grpc.kernels.base import (
    CPU,
    Activation,
    AddNorm,
    Angles,
    Causal,
    GatedProduct,
    Heads,
    KeysValues,
    Layout,
    Linear,
    Rotate,
)
from rerank_grpc.kernels.causal import Contexts
from rerank_grpc.kernels.device import DTYPES, INT8, fast_bf16
from rerank_grpc.kernels.native import ACTIVATIONS, HEAD_SIZES, INT8_OUTPUTS, WIDTHS, Kernels, kernels
from rerank_grpc.kernels.plain import PlainOperations

LEVELS = 127
ZERO = 128


def cpu_operations(precision: str) -> CpuOperations:
    """Makes the operations of a precision, by the kernels in C where they run and are faster."""
    native = kernels() if DTYPES[precision] is torch.bfloat16 else None
    return CpuOperations(precision) if native is None else KernelOperations(precision, native)


class CpuOperations(PlainOperations):
    """Computes in fp32 or bf16 by oneDNN; with int8 only the products of linear layers are int8."""

    def __init__(self, precision: str) -> None:
        super().__init__(CPU, DTYPES[precision])
        self._precision = precision
        if precision in INT8:  # weights are rounded once
            self.matrices = torch.float32

    def linear(
        self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, exact: bool = False
    ) -> Linear:
        if self._precision not in INT8 or (exact and self._precision != "int8-all"):
            if self._dtype is torch.bfloat16 and not fast_bf16():
                return widened_linear(weight, bias, gelu=gelu)
            return plain_linear(weight, bias, self._dtype, gelu=gelu)
        quantized, scales = quantize_weight(weight)
        added = torch.zeros(len(weight)) if bias is None else bias.float().clone()
        product = self._int8_linear(quantized, scales, added, gelu=gelu)
        return Corrected(product, weight, quantized, scales, added)

    def _int8_linear(self, weight: Tensor, scales: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
        return Int8Linear(weight, scales, bias, gelu=gelu)


class KernelOperations(CpuOperations):
    """Computes by the kernels in C, in bf16 or int8; a shape that none takes goes to torch's operations."""

    def __init__(self, precision: str, native: Kernels) -> None:
        super().__init__(precision)
        self._native = native
        self.level = native.level

    def _int8_linear(self, weight: Tensor, scales: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
        outputs, inputs = weight.shape
        if outputs % INT8_OUTPUTS or inputs % WIDTHS:
            return super()._int8_linear(weight, scales, bias, gelu=gelu)
        return native_int8_linear(self._native, weight, scales, bias, gelu=gelu)

    def norm(
        self, weight: Tensor, bias: Tensor | None, epsilon: float, *, rms: bool, keeps_sum: bool
    ) -> AddNorm:
        if len(weight) % WIDTHS:
            return super().norm(weight, bias, epsilon, rms=rms, keeps_sum=keeps_sum)
        return partial(
            self._native.norm, weight=weight, bias=bias, epsilon=epsilon, rms=rms, keeps_sum=keeps_sum
        )

    def gate(self, activation: Activation) -> GatedProduct:
        plain = super().gate(activation)
        if activation not in ACTIVATIONS:
            return plain
        return partial(native_gate, partial(self._native.gate, activation=activation), plain)

    def turn(self, heads: int, weight: Tensor | None, epsilon: float) -> Rotate:
        plain = super().turn(heads, weight, epsilon)
        return partial(native_turn, self._native, heads, weight, epsilon, plain)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Layout,
        keys: Layout,
        heads: Heads,
        turns: tuple[Angles, Angles] | None = None,
    ) -> Tensor:
        if not self.takes(heads):
            return super().attend(query, key, value, queries, keys, heads, turns)
        return self._native.attention(
            *(query, key, value, queries.starts, keys.starts),
            heads=heads.count,
            key_heads=heads.groups,
            scale=heads.scale,
            window=heads.window,
            turns=None if turns is None else (*turns[0], *turns[1]),
        )

    def takes(self, heads: Heads) -> bool:
        return heads.size in HEAD_SIZES

    def untaken(self, heads: Heads, columns: tuple[int, ...], outputs: tuple[int, ...]) -> list[str]:
        quantized = outputs if self._precision in INT8 else ()
        slow = {
            "attention": not self.takes(heads),
            "norms and gates": any(each % WIDTHS for each in columns),
            "int8 products": any(each % INT8_OUTPUTS for each in quantized),
        }
        return [name for name, left in slow.items() if left]

    def causal(
        self, contexts: tuple[KeysValues | None, ...], prefixes: tuple[KeysValues, ...], layout: Layout
    ) -> Causal:
        plain = super().causal(contexts, prefixes, layout)
        return NativeCausal(self._native, contexts or (None,) * len(layout.lengths), prefixes, layout, plain)


class NativeCausal:
    """Attends causally by one call for all parts; heads of a size that the kernel does not take, by `plain`.

    The keys of a prefix are read where they are kept, and copied nowhere.
    """

    def __init__(
        self,
        native: Kernels,
        contexts: Contexts,
        prefixes: tuple[KeysValues, ...],
        layout: Layout,
        plain: Causal,
    ) -> None:
        self._native = native
        self._contexts = contexts
        self._prefixes = prefixes
        self._layout = layout
        self._plain = plain
        self._continued = list({id(each): each for each in contexts if each is not None}.values())
        places = {id(each): place for place, each in enumerate(self._continued)}
        self._places = torch.tensor([places.get(id(each), -1) for each in contexts], dtype=torch.int32)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, last_only: bool
    ) -> Tensor:
        """[num_rows, heads · size] → the same."""
        if heads.size not in HEAD_SIZES:
            return self._plain.attend(layer, query, key, value, heads, last_only=last_only)
        # Before the attention: a later part of this pass may continue a prefix of it.
        self._leave(key, value, layer, heads)
        queries = self._layout.singles(len(self._prefixes)) if last_only else self._layout
        return self._native.causal_attention(
            *(query, key, value, queries.starts, self._layout.starts),
            prefixes=[each.layers[layer] for each in self._continued],
            continued=self._places,
            heads=heads.count,
            key_heads=heads.groups,
            scale=heads.scale,
            window=heads.window,
        )

    def _leave(self, key: Tensor, value: Tensor, layer: int, heads: Heads) -> None:
        """Gives the prefixes, which are the first parts, copies of their keys and values."""
        begin = 0
        parts = zip(self._prefixes, self._contexts, self._layout.lengths, strict=False)
        for prefix, context, length in parts:
            own = [each[begin : begin + length].unflatten(1, (heads.groups, -1)) for each in (key, value)]
            before = [] if context is None else context.layers[layer]
            k, v = (
                torch.cat([*(kept[0].transpose(0, 1) for kept in before[place : place + 1]), rows])
                for place, rows in enumerate(own)
            )
            prefix.layers.append((k.transpose(0, 1)[None], v.transpose(0, 1)[None]))
            begin += length


def native_gate(native: GatedProduct, plain: GatedProduct, rows: Tensor) -> Tensor:
    """Makes a GatedProduct of the kernel in C; columns of a number that it does not take go to `plain`."""
    return plain(rows) if rows.shape[1] % (2 * WIDTHS) else native(rows)


def native_turn(
    native: Kernels,
    heads: int,
    weight: Tensor | None,
    epsilon: float,
    plain: Rotate,
    rows: Tensor,
    turns: Angles,
) -> Tensor:
    """Makes a Rotate of the kernel in C, in place; heads of a size that it does not take go to `plain`."""
    if rows.shape[1] // heads not in HEAD_SIZES:
        return plain(rows, turns)
    native.turn(rows, turns.cosines, turns.sines, heads=heads, weight=weight, epsilon=epsilon)
    return rows


def plain_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, gelu: bool) -> Linear:
    """Lays out oneDNN's product in fp32 or bf16, with bias and GELU in the same pass."""
    # Laid out for this number of rows; any other works too.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), 2048)
    after = {"attr": "gelu", "algorithm": "none"} if gelu else {"attr": "none", "algorithm": ""}
    added = None if bias is None else bias.to(dtype)
    return partial(torch.ops.mkldnn._linear_pointwise, W=packed, B=added, scalars=[], **after)


def widened_linear(weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Linear:
    """Lays out a product in fp32 of rows in bf16, for CPUs on which oneDNN's in bf16 is slower than that."""
    product = plain_linear(weight, bias, torch.float32, gelu=gelu)
    return lambda rows: product(rows.float()).to(rows.dtype)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each output's weights to int8 with a scale of their own."""
    scales = (weight.abs().amax(dim=1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round().to(torch.int8), scales


def weight_sums(weight: Tensor, scales: Tensor) -> Tensor:
    """Sums each output's weights: its product with a row of ones, without the bias  # [outputs] float32."""
    return weight.sum(dim=1, dtype=torch.float32) * scales


class Corrected:
    """An int8 product whose first rows, drawn to be like any, tell what rounding the weight adds on average.

    All rows of a network have much in common. Rounding turns that into the same error of every row, which the
    layers behind carry on to all logits alike; `bias`, which the product holds, takes it off.
    """

    def __init__(
        self, product: Linear, weight: Tensor, rounded: Tensor, scales: Tensor, bias: Tensor
    ) -> None:
        self._product = product
        self._bias = bias
        self._steps = scales / (2 * LEVELS)
        lost = (weight / scales[:, None] - rounded) * (2 * LEVELS)  # within LEVELS
        self._lost: Tensor | None = lost.round().to(torch.int8)  # a byte each: no more than bf16 would take

    def __call__(self, rows: Tensor) -> Tensor:
        if self._lost is not None:
            average = rows.float().mean(dim=0)
            self._bias += (self._lost.float() @ average) * self._steps
            self._lost = None
        return self._product(rows)


def native_int8_linear(
    native: Kernels, weight: Tensor, scales: Tensor, bias: Tensor, *, gelu: bool
) -> Linear:
    """Lays out the product in C, which quantizes each row with a scale and a middle of its own."""
    return partial(
        native.linear_int8,
        packed=native.pack_int8(weight),
        scales=scales.contiguous(),
        weight_sums=weight_sums(weight, scales),
        bias=bias.float().contiguous(),
        gelu=gelu,
    )


class Int8Linear:
    """The same by torch's operations: oneDNN takes one scale, so the scales of the rows come after it."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor, *, gelu: bool) -> None:
        self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scales = scales
        self._sums = weight_sums(weight, scales)
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias.float()
        self._gelu = gelu

    def __call__(self, rows: Tensor) -> Tensor:
        values = rows.float()
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        middles = low + (high - low) / 2  # the outputs of GELU lie to one side of 0
        row_scales = ((high - low) / 2 / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        # oneDNN is fast for unsigned rows only.
        quantized = ((values - middles) / row_scales).round().add_(ZERO).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            *(quantized, 1.0, ZERO, self._weight, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        out = torch.addcmul(self._bias, product, row_scales).addcmul_(middles, self._sums)
        return (activate(out) if self._gelu else out).to(rows.dtype)
