"""The GPU's operations, of torch's own and of fused ones that Inductor compiles; they run on any device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from rerank_grpc.kernels.attention import Attention, attend_by_length, kernel_for
from rerank_grpc.kernels.base import Activation, AddNorm, Angles, GatedProduct, Heads, Layout, Linear, Rotate
from rerank_grpc.kernels.plain import (
    ACTIVATIONS,
    PlainOperations,
    add_norm,
    plain_gate,
)

log = logging.getLogger(__name__)

# From matrices, which have as many rows as each other, and vectors; None stands for what is not there
Function: TypeAlias = Callable[..., Any]
# A case of Inductor's: for each matrix or vector its columns, and how far apart its rows are
Form: TypeAlias = tuple[tuple[int, ...] | None, ...]
# One row is a case of its own for Inductor; all other numbers are one case. Many rows let it choose blocks
# for large passes.
SAMPLE_ROWS = (1, 2_048)
HALVES = (torch.bfloat16, torch.float16)


class TorchOperations(PlainOperations):
    """Computes in one type and never waits for the device; with a kernel the host needs no lengths."""

    def __init__(self, device: torch.device, dtype: torch.dtype, attention: Attention) -> None:
        super().__init__(device, dtype, kernel_for(attention))
        self._fuses = device.type == "cuda"

    def linear(
        self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, exact: bool = False
    ) -> Linear:
        if not (gelu and self._fuses and bias is not None and self.matrices in HALVES):
            return super().linear(weight, bias, gelu=gelu, exact=exact)
        held, added = self.table(weight).t(), self.table(bias)
        # The product's own last step: no pass over memory, and no rounding of what GELU is of. It is GELU by
        # tanh, which is off by 5e-4 at most: in logits a fifth of what fp16 rounds, and less of bf16.
        return lambda rows: torch._addmm_activation(added, rows, held, use_gelu=True)

    def norm(
        self, weight: Tensor, bias: Tensor | None, epsilon: float, *, rms: bool, keeps_sum: bool
    ) -> AddNorm:
        if self._fuses:
            fused = fused_norm(epsilon, rms, keeps_sum)
            held, shift = weight.to(self._device), None if bias is None else bias.to(self._device)
            return lambda added, residual: fused(added, residual, held, shift)
        if not rms:
            # As transformers' own code rounds: in fp32 this would be five passes over memory, not two.
            weight, bias = self.table(weight), None if bias is None else self.table(bias)
        return super().norm(weight, bias, epsilon, rms=rms, keeps_sum=keeps_sum)

    def gate(self, activation: Activation) -> GatedProduct:
        return fused_gate(activation) if self._fuses else super().gate(activation)

    def turn(self, heads: int, weight: Tensor | None, epsilon: float) -> Rotate:
        held = None if weight is None else weight.to(self._device)
        turn = fused_turn(heads, epsilon) if self._fuses else partial(turn_heads, heads, epsilon)
        return lambda rows, turns: turn(rows, turns.cosines, turns.sines, held)

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
            query = self.turn(heads.count, None, 0.0)(query, turns[0])
            key = self.turn(heads.groups, None, 0.0)(key, turns[1])
        if self._kernel is not None or heads.window is not None or heads.groups != heads.count:
            return super().attend(query, key, value, queries, keys, heads)
        q, k, v = (rows.unflatten(1, (-1, heads.size)) for rows in (query, key, value))
        return attend_by_length(q, k, v, queries, keys, heads.scale).flatten(1)


class Fused:
    """A function of rows that is compiled once for each form of its arguments, for any number of rows.

    The pass that checks a model at its load meets all forms, so no later pass compiles. Where nothing can be
    compiled, the function runs as it is.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._compiled: dict[tuple[torch.device, torch.dtype, Form], Function] = {}

    def __call__(self, *tensors: Tensor | None) -> Any:
        first = next(each for each in tensors if each is not None)
        key = (first.device, first.dtype, tuple([None if each is None else _form(each) for each in tensors]))
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = self._compile(tensors)
        return found(*tensors)

    def _compile(self, tensors: tuple[Tensor | None, ...]) -> Function:
        compiled = torch.compile(_own_code(self._function))
        try:
            with torch.inference_mode():  # as the passes are, or they would compile again
                for rows in SAMPLE_ROWS:
                    compiled(*[None if each is None else _sample(each, rows) for each in tensors])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _tell_once(type(error).__name__)
            return self._function
        return compiled


@cache
def _tell_once(reason: str) -> None:
    log.warning("norms, gates and rotations are not compiled (%s): they run slower", reason)


def _own_code(function: Function) -> Function:
    """Copies a function with its code: Dynamo gives up a code that it has compiled in eight forms."""

    def call(*tensors: Tensor | None) -> Any:
        return function(*tensors)

    return FunctionType(
        call.__code__.replace(), call.__globals__, call.__name__, call.__defaults__, call.__closure__
    )


def _form(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[1], tensor.stride(0)) if tensor.dim() == 2 else (tensor.shape[0],)


def _sample(like: Tensor, rows: int) -> Tensor:
    """A matrix of so many rows with the columns and the strides of another; a vector is its own."""
    if like.dim() == 1:
        return like
    memory = torch.zeros(rows, like.stride(0), dtype=like.dtype, device=like.device)
    sample = memory[:, : like.shape[1]]
    if rows > 1:
        torch._dynamo.mark_dynamic(sample, 0)
    return sample


@cache
def fused_norm(epsilon: float, rms: bool, keeps_sum: bool) -> Fused:
    """Makes an AddNorm of added rows, residual, weight and bias."""
    return Fused(partial(add_norm, epsilon=epsilon, rms=rms, keeps_sum=keeps_sum))


@cache
def fused_gate(activation: Activation) -> Fused:
    """Makes a GatedProduct."""
    return Fused(partial(plain_gate, ACTIVATIONS[activation]))


@cache
def fused_turn(heads: int, epsilon: float) -> Fused:
    """Makes a Rotate of rows, cosines, sines and the weight of each head's norm, if there is one."""
    return Fused(partial(turn_heads, heads, epsilon))


def turn_heads(
    heads: int, epsilon: float, rows: Tensor, cosines: Tensor, sines: Tensor, weight: Tensor | None
) -> Tensor:
    """Turns each head as plain_turn does; the halves change places: to join them were a second kernel."""
    own = rows.unflatten(1, (heads, -1)).float()
    if weight is not None:
        own = rms_norm(own, weight.shape, weight, epsilon)
    halves = own.unflatten(2, (2, -1))  # [num_rows, heads, 2, size / 2]
    signs = torch.arange(-1, 2, 2, device=rows.device)[:, None]
    turned: Tensor = halves * cosines[:, None, None] + halves.flip(2) * (sines[:, None, None] * signs)
    return turned.flatten(1).to(rows.dtype)
