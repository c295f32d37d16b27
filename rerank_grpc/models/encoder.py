"""The encoder of BERT, RoBERTa and XLM-RoBERTa over packed sequences.

Transformers' modules compute the same (tests/models/test_parity.py); this one
merges query, key and value into one product, lays weights out once, adds,
normalizes and activates without passes of their own, and computes the last
layer for the rows that are pooled only. What it computes with on the CPU is
here, too; operations.py has the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.functional import embedding, layer_norm, scaled_dot_product_attention
from transformers.activations import ACT2FN

from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.kernels.linear import Linear, linear
from rerank_grpc.kernels.native import kernels

Take = Callable[[str], torch.Tensor]

# Sizes of a head that kernels.c attends with.
NATIVE_HEADS = (16, 32, 48, 64)


class AddNorm(Protocol):
    """Adds two matrices and normalizes the rows of the sum."""

    def __call__(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden] twice → [num_rows, hidden]."""


class Operations(Protocol):
    """What a device computes with; weights and biases come in fp32, on the CPU."""

    def table(self, weight: torch.Tensor) -> torch.Tensor:
        """Lays out a table of embeddings."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Linear:
        """Lays out a linear layer, perhaps with GELU behind it."""

    def norm(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> AddNorm:
        """Lays out a norm and the sum before it."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        heads: int,
    ) -> torch.Tensor:
        """Attends within each part, both ways  # [num_rows, heads · size], query's rows as `queries` says."""


class Encoder:
    """Runs the layers of one model.

    `take` gives a weight, in fp32, by its name, which is `prefix` and that in
    transformers' module; each is asked for once. With `first_only` the result
    is the first row of each sequence, else all rows.
    """

    def __init__(
        self, config: Any, take: Take, prefix: str, *, operations: Operations, first_only: bool
    ) -> None:
        tables = f"{prefix}embeddings"
        self._words = operations.table(take(f"{tables}.word_embeddings.weight"))
        self._places = operations.table(take(f"{tables}.position_embeddings.weight"))
        self._types = operations.table(take(f"{tables}.token_type_embeddings.weight"))
        self._norm = named_norm(take, f"{tables}.LayerNorm", config, operations)
        names = [f"{prefix}encoder.layer.{place}" for place in range(config.num_hidden_layers)]
        self._layers = [
            Layer(take, name, config, operations, first_only=first_only and name == names[-1])
            for name in names
        ]

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        layout: Layout,
    ) -> torch.Tensor:
        """Runs all sequences at once; the ids are  # [num_tokens].

        Returns [num_sequences, hidden] with `first_only`, else [num_tokens, hidden].
        """
        rows = embedding(input_ids, self._words)
        rows += embedding(token_type_ids, self._types)
        rows = self._norm(rows, embedding(position_ids, self._places))
        for layer in self._layers:
            rows = layer(rows, layout)
        return rows


class Layer:
    """Attention and feed-forward; with `first_only`, for the first row of each sequence."""

    def __init__(
        self, take: Take, name: str, config: Any, operations: Operations, *, first_only: bool
    ) -> None:
        own = f"{name}.attention.self"
        weights = [take(f"{own}.{part}.weight") for part in ("query", "key", "value")]
        biases = [take(f"{own}.{part}.bias") for part in ("query", "key", "value")]
        self._attend = operations.attend
        self._heads = config.num_attention_heads
        self._width = config.hidden_size
        self._query: Linear | None = None
        if first_only:
            self._query = operations.linear(weights.pop(0), biases.pop(0))
        self._merged = operations.linear(torch.cat(weights), torch.cat(biases))
        del weights
        self._out = named_linear(take, f"{name}.attention.output.dense", operations)
        self._attention_norm = named_norm(take, f"{name}.attention.output.LayerNorm", config, operations)
        fused = config.hidden_act == "gelu"
        self._up = named_linear(take, f"{name}.intermediate.dense", operations, gelu=fused)
        self._act = None if fused else ACT2FN[config.hidden_act]
        self._down = named_linear(take, f"{name}.output.dense", operations)
        self._norm = named_norm(take, f"{name}.output.LayerNorm", config, operations)

    def __call__(self, rows: torch.Tensor, layout: Layout) -> torch.Tensor:
        """[num_tokens, hidden] → the same, or [num_sequences, hidden] with `first_only`."""
        merged = self._merged(rows).split(self._width, dim=1)
        if self._query is None:
            query, key, value = merged
            mixed = self._attend(query, key, value, layout, layout, self._heads)
        else:
            key, value = merged
            rows = rows.index_select(0, layout.firsts)
            mixed = self._attend(self._query(rows), key, value, layout.singles(), layout, self._heads)
        rows = self._attention_norm(self._out(mixed), rows)
        wide = self._up(rows)
        return self._norm(self._down(wide if self._act is None else self._act(wide)), rows)


def named_linear(take: Take, name: str, operations: Operations, *, gelu: bool = False) -> Linear:
    """Lays out the linear layer of that name."""
    return operations.linear(take(f"{name}.weight"), take(f"{name}.bias"), gelu=gelu)


def named_norm(take: Take, name: str, config: Any, operations: Operations) -> AddNorm:
    """Lays out the norm of that name."""
    return operations.norm(take(f"{name}.weight"), take(f"{name}.bias"), config.layer_norm_eps)


class CpuOperations:
    """oneDNN's products and the kernels of kernels.c; see Operations."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._dtype = DTYPES[precision]

    def table(self, weight: torch.Tensor) -> torch.Tensor:
        """See Operations."""
        return weight.to(self._dtype)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Linear:
        """See Operations."""
        return linear(self._precision, weight, bias, gelu=gelu)

    def norm(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> AddNorm:
        """See Operations."""
        return Norm(weight, bias, epsilon, self._dtype)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        heads: int,
    ) -> torch.Tensor:
        """See Operations."""
        return attend(query, key, value, queries.starts, keys.starts, heads)


class Norm:
    """See AddNorm."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float, dtype: torch.dtype) -> None:
        self._weight, self._bias, self._epsilon = weight, bias, epsilon
        self._native = kernels() if dtype is torch.bfloat16 and len(self._weight) % 16 == 0 else None

    def __call__(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden] twice → [num_rows, hidden]."""
        if self._native is not None:
            return self._native.add_norm(rows, residual, self._weight, self._bias, self._epsilon)
        # torch takes bf16 rows with weights in fp32, and then computes in fp32
        return layer_norm(rows + residual, self._weight.shape, self._weight, self._bias, self._epsilon)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Attends within each sequence, both ways; see Kernels.attention for the shapes."""
    size = query.shape[1] // heads
    native = kernels() if query.dtype is torch.bfloat16 and size in NATIVE_HEADS else None
    if native is not None:
        return native.attention(query, key, value, query_starts, key_starts, heads)
    lengths = [starts.diff().tolist() for starts in (query_starts, key_starts, key_starts)]
    parts = zip(
        *(
            rows.unflatten(1, (heads, size)).transpose(0, 1)[None].split(own, dim=2)
            for rows, own in zip((query, key, value), lengths, strict=True)
        ),
        strict=True,
    )
    mixed = [scaled_dot_product_attention(*part).transpose(1, 2).flatten(2)[0] for part in parts]
    return torch.cat(mixed)
