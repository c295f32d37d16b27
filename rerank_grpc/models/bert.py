"""The body of BERT, RoBERTa and XLM-RoBERTa over packed sequences, with few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers.activations import ACT2FN

from rerank_grpc.kernels.base import AddNorm, Layout, Linear, Operations
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.models.weights import Take

# By family, whether the table of positions reserves the rows up to the padding id's. Such a family
# has one segment, whatever the tokenizer says.
BERT_FAMILIES = {"bert": False, "roberta": True, "xlm-roberta": True}


class BertBody:
    """Runs the layers of one model, whose weights have the names of transformers' modules behind `prefix`.

    With `first_only` the result is the first row of each sequence  # [num_sequences, hidden].
    """

    def __init__(
        self, config: Any, take: Take, prefix: str, operations: Operations, *, first_only: bool
    ) -> None:
        weights = Weights(config, take, operations)
        tables = f"{prefix}embeddings"
        self._words = weights.table(f"{tables}.word_embeddings")
        self._positions = weights.table(f"{tables}.position_embeddings")
        self._segments: Tensor | None = weights.table(f"{tables}.token_type_embeddings")
        if BERT_FAMILIES[config.model_type]:
            self._positions = self._positions[config.pad_token_id + 1 :]
        if BERT_FAMILIES[config.model_type] or len(self._segments) == 1:
            self._words += self._segments[0]
            self._segments = None
        self._norm = weights.norm(f"{tables}.LayerNorm")
        names = [f"{prefix}encoder.layer.{index}" for index in range(config.num_hidden_layers)]
        kinds = [Layer] * len(names)
        if first_only:
            kinds[-1] = FirstRowLayer
        self._layers = [kind(weights, name) for kind, name in zip(kinds, names, strict=True)]

    def __call__(self, packed: PackedTokens) -> Tensor:
        rows = embedding(packed.input_ids, self._words)
        if self._segments is not None:
            rows += embedding(packed.token_type_ids, self._segments)
        rows = self._norm(rows, embedding(packed.position_ids, self._positions))
        for layer in self._layers:
            rows = layer(rows, packed.layout)
        return rows


class Weights:
    """Reads the weights of a network by name and lays them out for a device."""

    def __init__(self, config: Any, take: Take, operations: Operations) -> None:
        self.config = config
        self.operations = operations
        self.take = take

    def table(self, name: str) -> Tensor:
        return self.operations.table(self.take(f"{name}.weight"))

    def linear(self, *names: str, gelu: bool = False) -> Linear:
        """Lays out one product for the linear layers of these names, side by side."""
        weights = [self.take(f"{name}.weight") for name in names]
        biases = [self.take(f"{name}.bias") for name in names]
        return self.operations.linear(torch.cat(weights), torch.cat(biases), gelu=gelu)

    def norm(self, name: str) -> AddNorm:
        weight, bias = self.take(f"{name}.weight"), self.take(f"{name}.bias")
        return self.operations.norm(weight, bias, self.config.layer_norm_eps)

    def activated(self, name: str) -> Linear:
        """Lays out a linear layer with the activation of the config behind it."""
        if self.config.hidden_act == "gelu":
            return self.linear(name, gelu=True)
        product, activate = self.linear(name), ACT2FN[self.config.hidden_act]
        return lambda rows: activate(product(rows))


class Layer:
    """Attention and feed-forward for all rows."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._attend = weights.operations.attend
        self._heads = weights.config.num_attention_heads
        self._width = weights.config.hidden_size
        self._lay_out_attention(weights, f"{name}.attention.self")
        self._out = weights.linear(f"{name}.attention.output.dense")
        self._attention_norm = weights.norm(f"{name}.attention.output.LayerNorm")
        self._up = weights.activated(f"{name}.intermediate.dense")
        self._down = weights.linear(f"{name}.output.dense")
        self._norm = weights.norm(f"{name}.output.LayerNorm")

    def __call__(self, rows: Tensor, layout: Layout) -> Tensor:
        """[num_tokens, hidden] → the same."""
        query, key, value = self._merged(rows).split(self._width, dim=1)
        key, value, keys = layout.seen(key, value)
        return self._feed(self._attend(query, key, value, layout, keys, self._heads), rows)

    def _lay_out_attention(self, weights: Weights, name: str) -> None:
        self._merged = weights.linear(f"{name}.query", f"{name}.key", f"{name}.value")

    def _feed(self, mixed: Tensor, rows: Tensor) -> Tensor:
        rows = self._attention_norm(self._out(mixed), rows)
        return self._norm(self._down(self._up(rows)), rows)


class FirstRowLayer(Layer):
    """The same for the first row of each sequence, which still attends to all rows."""

    def __call__(self, rows: Tensor, layout: Layout) -> Tensor:
        """[num_tokens, hidden] → [num_sequences, hidden]."""
        key, value, keys = layout.seen(*self._merged(rows).split(self._width, dim=1))
        rows = rows.index_select(0, layout.firsts)
        mixed = self._attend(self._query(rows), key, value, layout.singles(), keys, self._heads)
        return self._feed(mixed, rows)

    def _lay_out_attention(self, weights: Weights, name: str) -> None:
        self._query = weights.linear(f"{name}.query")
        self._merged = weights.linear(f"{name}.key", f"{name}.value")
