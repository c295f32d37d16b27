"""All operations of networks by torch's own, on any device: the base of the faster ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import (
    gelu,
    layer_norm,
    linear,
    relu,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

from rerank_grpc.kernels.base import (
    Activation,
    AddNorm,
    Angles,
    Causal,
    GatedProduct,
    Heads,
    Kernel,
    KeysValues,
    Layout,
    Linear,
    Rotate,
)
from rerank_grpc.kernels.causal import attend_window, causal_parts

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "silu": silu,
    "relu": relu,
    "tanh": torch.tanh,
}


class PlainOperations:
    """Computes in one type; attends by `kernel` where there is one, else part by part."""

    level = ""

    def __init__(self, device: torch.device, dtype: torch.dtype, kernel: Kernel | None = None) -> None:
        self._device = device
        self._dtype = self.matrices = self.tables = dtype
        self._kernel = kernel

    def table(self, weight: Tensor) -> Tensor:
        return weight.to(self._device, self._dtype)

    def linear(
        self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, exact: bool = False
    ) -> Linear:
        held, added = self.table(weight), None if bias is None else self.table(bias)
        if gelu:
            return lambda rows: ACTIVATIONS["gelu"](linear(rows, held, added))
        return partial(linear, weight=held, bias=added)

    def norm(
        self, weight: Tensor, bias: Tensor | None, epsilon: float, *, rms: bool, keeps_sum: bool
    ) -> AddNorm:
        held = weight.to(self._device)
        added = None if bias is None else bias.to(self._device)
        return partial(add_norm, weight=held, bias=added, epsilon=epsilon, rms=rms, keeps_sum=keeps_sum)

    def gate(self, activation: Activation) -> GatedProduct:
        return partial(plain_gate, ACTIVATIONS[activation])

    def turn(self, heads: int, weight: Tensor | None, epsilon: float) -> Rotate:
        return partial(plain_turn, heads, None if weight is None else weight.to(self._device), epsilon)

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
        if turns is not None:
            query = plain_turn(heads.count, None, 0.0, query, turns[0])
            key = plain_turn(heads.groups, None, 0.0, key, turns[1])
        q, k = query.unflatten(1, (-1, heads.size)), key.unflatten(1, (-1, heads.size))
        v = value.unflatten(1, (-1, heads.size))
        if self._kernel is not None and aligned(queries, keys, heads.window):
            return self._kernel(q, k, v, queries, keys, window=heads.window, scale=heads.scale).flatten(1)
        # Part by part, so that no score depends on the neighbours: torch may add in another order otherwise.
        parts = zip(
            q.transpose(0, 1)[None].split(queries.lengths, dim=2),
            k.transpose(0, 1)[None].split(keys.lengths, dim=2),
            v.transpose(0, 1)[None].split(keys.lengths, dim=2),
            strict=True,
        )
        attend = partial(attend_window, scale=heads.scale, window=heads.window)
        if heads.window is None:
            grouped = heads.groups != heads.count
            attend = partial(scaled_dot_product_attention, scale=heads.scale, enable_gqa=grouped)
        mixed = [attend(*part).transpose(1, 2) for part in parts]
        return torch.cat(mixed, dim=1).flatten(2)[0]

    def takes(self, heads: Heads) -> bool:
        return self._kernel is not None

    def untaken(self, heads: Heads, columns: tuple[int, ...], outputs: tuple[int, ...]) -> list[str]:
        return []

    def causal(
        self, contexts: tuple[KeysValues | None, ...], prefixes: tuple[KeysValues, ...], layout: Layout
    ) -> Causal:
        return causal_parts(contexts, prefixes, layout, self._kernel)


def add_norm(
    added: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
    *,
    rms: bool,
    keeps_sum: bool,
) -> tuple[Tensor, Tensor]:
    """Does what an AddNorm does; the sum is rounded to the type of the rows, and normalized in float32."""
    total = residual if added is None else residual + added
    if rms:
        rows = rms_norm(total.float(), weight.shape, weight, epsilon).to(total.dtype)
    elif total.device.type == "cpu" or total.dtype is weight.dtype:
        # torch takes bf16 rows with weights in fp32 there, and then computes in fp32
        rows = layer_norm(total, weight.shape, weight, bias, epsilon)
    else:
        rows = layer_norm(total.float(), weight.shape, weight, bias, epsilon).to(total.dtype)
    return rows, total if keeps_sum else rows


def plain_gate(activate: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """[num_rows, 2 · width] → [num_rows, width]."""
    first, second = rows.chunk(2, dim=1)
    return activate(first).mul_(second)


def plain_turn(heads: int, weight: Tensor | None, epsilon: float, rows: Tensor, turns: Angles) -> Tensor:
    """Turns each head of each row in float32, normalized before if there is a weight."""
    own = rows.unflatten(1, (heads, -1)).float()
    if weight is not None:
        own = rms_norm(own, weight.shape, weight, epsilon)
    first, second = own.chunk(2, dim=2)
    cosines, sines = turns.cosines[:, None], turns.sines[:, None]
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=2)
    return turned.flatten(1).to(rows.dtype)


def aligned(queries: Layout, keys: Layout, window: int | None) -> bool:
    """Whether a kernel, to which the last query of a part is the place of its last key, sees the right keys.

    It does where all see all, and where nothing is far enough for the window to hide it.
    """
    if window is None or queries is keys:
        return True
    assert queries.lengths, "a captured pass, whose lengths are those of no batch, asks for them"
    parts = zip(queries.lengths, keys.lengths, strict=True)
    return all(rows == seen or max(rows, seen) <= window for rows, seen in parts)
