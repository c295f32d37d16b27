"""The encoder of BERT, RoBERTa and XLM-RoBERTa over packed sequences, for the CPU.

Transformers' modules compute the same (tests/models/test_parity.py); this one
merges query, key and value into one product, lays weights out once, adds,
normalizes and activates without passes of their own, and computes the last
layer for the rows that are pooled only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import embedding, layer_norm, scaled_dot_product_attention
from transformers.activations import ACT2FN

from rerank_grpc.models.device import DTYPES
from rerank_grpc.models.linear import Linear, linear
from rerank_grpc.models.native import kernels
from rerank_grpc.models.weights import give_back

Take = Callable[[str], torch.Tensor]

# Sizes of a head that kernels.c attends with.
NATIVE_HEADS = (16, 32, 48, 64)


class Encoder:
    """Runs the layers of one model.

    `take` gives a weight, in fp32, by its name, which is `prefix` and that in
    transformers' module; each is asked for once. With `first_only` the result
    is the first row of each sequence, else all rows.
    """

    def __init__(self, config: Any, take: Take, prefix: str, *, precision: str, first_only: bool) -> None:
        dtype = DTYPES[precision]
        tables = f"{prefix}embeddings"
        self._words = take(f"{tables}.word_embeddings.weight").to(dtype)
        self._places = take(f"{tables}.position_embeddings.weight").to(dtype)
        self._types = take(f"{tables}.token_type_embeddings.weight").to(dtype)
        self._norm = Norm(take, f"{tables}.LayerNorm", config, dtype)
        names = [f"{prefix}encoder.layer.{place}" for place in range(config.num_hidden_layers)]
        self._layers = [
            Layer(take, name, config, precision, first_only=first_only and name == names[-1])
            for name in names
        ]
        give_back()

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        sequence_lengths: tuple[int, ...],
    ) -> torch.Tensor:
        """Runs all sequences at once; the ids are  # [num_tokens].

        Returns [num_sequences, hidden] with `first_only`, else [num_tokens, hidden].
        """
        starts = torch.tensor([0, *accumulate(sequence_lengths)])  # [num_sequences + 1]
        rows = embedding(input_ids, self._words)
        rows += embedding(token_type_ids, self._types)
        rows = self._norm(rows, embedding(position_ids, self._places))
        for layer in self._layers:
            rows = layer(rows, starts)
        return rows


class Layer:
    """Attention and feed-forward; with `first_only`, for the first row of each sequence."""

    def __init__(self, take: Take, name: str, config: Any, precision: str, *, first_only: bool) -> None:
        dtype = DTYPES[precision]
        own = f"{name}.attention.self"
        weights = [take(f"{own}.{part}.weight") for part in ("query", "key", "value")]
        biases = [take(f"{own}.{part}.bias") for part in ("query", "key", "value")]
        self._heads = config.num_attention_heads
        self._width = config.hidden_size
        self._query: Linear | None = None
        if first_only:
            self._query = linear(precision, weights.pop(0), biases.pop(0))
        self._merged = linear(precision, torch.cat(weights), torch.cat(biases))
        del weights
        self._out = named_linear(take, f"{name}.attention.output.dense", precision)
        self._attention_norm = Norm(take, f"{name}.attention.output.LayerNorm", config, dtype)
        fused = config.hidden_act == "gelu"
        self._up = named_linear(take, f"{name}.intermediate.dense", precision, gelu=fused)
        self._act = None if fused else ACT2FN[config.hidden_act]
        self._down = named_linear(take, f"{name}.output.dense", precision)
        self._norm = Norm(take, f"{name}.output.LayerNorm", config, dtype)

    def __call__(self, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden] → the same, or [num_sequences, hidden] with `first_only`."""
        merged = self._merged(rows).split(self._width, dim=1)
        if self._query is None:
            query, key, value = merged
            mixed = attend(query, key, value, starts, starts, self._heads)
        else:
            key, value = merged
            rows = rows.index_select(0, starts[:-1])
            mixed = attend(self._query(rows), key, value, torch.arange(len(starts)), starts, self._heads)
        rows = self._attention_norm(self._out(mixed), rows)
        wide = self._up(rows)
        return self._norm(self._down(wide if self._act is None else self._act(wide)), rows)


class Norm:
    """Adds two matrices and normalizes the rows of the sum."""

    def __init__(self, take: Take, name: str, config: Any, dtype: torch.dtype) -> None:
        self._weight, self._bias = take(f"{name}.weight"), take(f"{name}.bias")
        self._epsilon = config.layer_norm_eps
        self._native = kernels() if dtype is torch.bfloat16 and len(self._weight) % 16 == 0 else None

    def __call__(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden] twice → [num_rows, hidden]."""
        if self._native is not None:
            return self._native.add_norm(rows, residual, self._weight, self._bias, self._epsilon)
        # torch takes bf16 rows with weights in fp32, and then computes in fp32
        return layer_norm(rows + residual, self._weight.shape, self._weight, self._bias, self._epsilon)


def named_linear(take: Take, name: str, precision: str, *, gelu: bool = False) -> Linear:
    """Lays out the layer of that name."""
    return linear(precision, take(f"{name}.weight"), take(f"{name}.bias"), gelu=gelu)


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
