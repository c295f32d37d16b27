"""Reads the weights of a plan by their names, and lays them out by the operations of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rerank_grpc.kernels.base import AddNorm, Linear, Operations, Rotate
from rerank_grpc.kernels.plain import ACTIVATIONS
from rerank_grpc.models.bodies.plan import HeadNorms, LayerPlan, LinearPlan, NormPlan


class WeightReader(Protocol):
    """The weights of a checkpoint, each to be read once."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, /) -> Tensor:
        """Reads a weight in a type; raises NoPlan if it is missing or of another shape."""


class Weights:
    """Lays out the weights of one network, whose names stand behind `prefix`."""

    def __init__(self, source: WeightReader, prefix: str, hidden: int, operations: Operations) -> None:
        self._source = source
        self._prefix = prefix
        self._hidden = hidden
        self.operations = operations

    def take(self, name: str, *shape: int) -> Tensor:
        """Reads one weight: a matrix in the type in which the operations take it, a vector in fp32."""
        dtype = self.operations.matrices if len(shape) == 2 else torch.float32
        return self._source(f"{self._prefix}{name}", shape, dtype)

    def table(self, name: str, rows: int) -> Tensor:
        """Lays out a table of embeddings."""
        shape = (rows, self._hidden)
        return self.operations.table(
            self._source(f"{self._prefix}{name}.weight", shape, self.operations.tables)
        )

    def rows(self, plan: LinearPlan, sizes: tuple[int, ...], inputs: int) -> tuple[Tensor, Tensor | None]:
        """Reads a product's weights, of so many outputs each, side by side  # [sum(sizes), inputs]."""
        # One name may hold all of them, as ModernBERT's queries, keys and values do.
        each = sizes if len(plan.names) == len(sizes) else (sum(sizes),)
        named = list(zip(plan.names, each, strict=True))
        weights = [self.take(f"{name}.weight", outputs, inputs) for name, outputs in named]
        biases = [self.take(f"{name}.bias", outputs) for name, outputs in named] if plan.bias else []
        return _joined(weights), _joined(biases) if biases else None

    def linear(self, plan: LinearPlan, sizes: tuple[int, ...], inputs: int, *, exact: bool = False) -> Linear:
        """Lays out a product."""
        return self.operations.linear(*self.rows(plan, sizes, inputs), exact=exact)

    def norm(self, plan: NormPlan) -> AddNorm:
        """Lays out a norm and the sum before it."""
        weight = self.take(f"{plan.name}.weight", self._hidden) + plan.offset
        bias = self.take(f"{plan.name}.bias", self._hidden) if plan.bias else None
        return self.operations.norm(weight, bias, plan.epsilon, rms=plan.rms, keeps_sum=plan.keeps_sum)

    def turns(self, plan: LayerPlan) -> tuple[Rotate, Rotate]:
        """Makes the rotations of queries and of keys, behind the norms of their heads."""
        norms, heads = plan.head_norms or HeadNorms("", "", 0.0), plan.heads
        query = self.take(f"{norms.query}.weight", heads.size) if norms.query else None
        key = self.take(f"{norms.key}.weight", heads.size) if norms.key else None
        turn = self.operations.turn
        return turn(heads.count, query, norms.epsilon), turn(heads.groups, key, norms.epsilon)

    def feed_forward(
        self, plan: LayerPlan, width: int, *, causal: bool
    ) -> tuple[Linear, Callable[[Tensor], Tensor] | None, Linear]:
        """Lays out the products of a feed-forward, `width` columns wide between, and what is done there.

        That is None where the first product does it.
        """
        weight, bias = self.rows(plan.up, (width, width) if plan.gated else (width,), self._hidden)
        fused = plan.activation == "gelu" and not plan.gated
        up = self.operations.linear(weight, bias, gelu=fused)
        # Language models have inputs of this product that are far larger than all others.
        down = self.linear(plan.down, (self._hidden,), width, exact=causal)
        if fused:
            return up, None, down
        if plan.gated:
            return up, self.operations.gate(plan.activation), down
        return up, ACTIVATIONS[plan.activation], down


def _joined(weights: list[Tensor]) -> Tensor:
    return torch.cat(weights) if len(weights) > 1 else weights[0]
