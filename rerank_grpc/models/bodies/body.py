"""The body that runs any plan over packed sequences, with few passes over memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from rerank_grpc.kernels.base import Angles, Causal
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.models.bodies.plan import LayerPlan, NetworkPlan, Pooled, RotationPlan
from rerank_grpc.models.bodies.weights import Weights


@dataclass(slots=True)
class Pass:
    """The state of one pass that its layers share."""

    packed: PackedTokens
    turns: dict[RotationPlan, Angles]
    causal: Causal | None  # None where tokens see what stands behind them
    picked: Tensor | None = None  # the rows that the last layer computes; None for all

    def turned(self, rotation: RotationPlan, rows: Tensor | None) -> Angles:
        """The angles of some rows, or of all."""
        return self.turns[rotation] if rows is None else self.turns[rotation].rows(rows)


class OwnBody:
    """Runs the layers of one model; the last one computes only the rows that are `pooled`.

    With "first" or "last" the result is the row of that token of each sequence
    # [num_sequences, hidden], with "all" every row  # [num_tokens, hidden].
    """

    def __init__(self, plan: NetworkPlan, weights: Weights, pooled: Pooled) -> None:
        self._causal = weights.operations.causal if plan.causal else None
        self._pooled = pooled
        self._read_tables(plan, weights)
        # On the device: what a pass copied to it from the host would let the host wait.
        self._frequencies = {
            layer.rotation: torch.tensor(layer.rotation.frequencies, device=self._words.device)
            for layer in plan.layers
            if layer.rotation is not None
        }
        lasts = [pooled != "all" and number == len(plan.layers) for number in range(1, len(plan.layers) + 1)]
        attentions = DecoderAttention if plan.causal else EncoderAttention
        self._layers = [
            Layer(layer, weights, attentions(layer, index, weights, plan.hidden, picks=last), plan)
            for index, (layer, last) in enumerate(zip(plan.layers, lasts, strict=True))
        ]
        self._last = weights.norm(plan.last)

    def _read_tables(self, plan: NetworkPlan, weights: Weights) -> None:
        self._words = weights.table(plan.words, plan.vocabulary)
        if plan.scale != 1.0:
            self._words *= self._words.new_tensor(plan.scale)  # rounded as the table is
        self._positions: Tensor | None = None
        if plan.positions is not None:
            rows = plan.first_position + plan.max_positions
            self._positions = weights.table(plan.positions, rows)[plan.first_position :]
        self._segments: Tensor | None = None
        if plan.segments is not None:
            self._segments = weights.table(plan.segments, plan.num_segments)
            if plan.num_segments == 1:
                self._words += self._segments[0]
                self._segments = None

    def __call__(self, packed: PackedTokens) -> Tensor:
        residual = embedding(packed.input_ids, self._words)
        if self._segments is not None:
            residual += embedding(packed.token_type_ids, self._segments)
        added = None
        if self._positions is not None:
            added = embedding(packed.position_ids, self._positions)
        state = self._begin(packed)
        for layer in self._layers:
            added, residual = layer(added, residual, state)
        return self._last(added, residual)[0]

    @property
    def windows(self) -> list[int]:
        """The windows of its layers, where they have one."""
        return [layer.attention.heads.window for layer in self._layers if layer.attention.heads.window]

    @contextmanager
    def narrowed(self, surplus: int) -> Iterator[None]:
        """Makes windows smaller by so many places, for a check with short sequences."""
        attentions = [layer.attention for layer in self._layers if layer.attention.heads.window]
        before = [attention.heads for attention in attentions]
        for attention, heads in zip(attentions, before, strict=True):
            assert heads.window is not None
            attention.heads = replace(heads, window=max(2, heads.window - surplus))
        try:
            yield
        finally:
            for attention, heads in zip(attentions, before, strict=True):
                attention.heads = heads

    def _begin(self, packed: PackedTokens) -> Pass:
        places = packed.position_ids[:, None].float()
        turns = {}
        for plan, frequencies in self._frequencies.items():
            angles = places * frequencies
            turns[plan] = Angles(angles.cos() * plan.factor, angles.sin() * plan.factor)
        causal = None
        if self._causal is not None:
            causal = self._causal(packed.contexts, packed.prefixes, packed.layout)
        picked = None
        if self._pooled == "first":
            picked = packed.layout.firsts
        elif self._pooled == "last":
            picked = packed.layout.lasts(len(packed.prefixes))
        return Pass(packed, turns, causal, picked)


class Layer:
    """A norm, attention, a norm, a feed-forward."""

    def __init__(
        self, plan: LayerPlan, weights: Weights, attention: EncoderAttention, network: NetworkPlan
    ) -> None:
        self._before = weights.norm(plan.before)
        self.attention = attention
        self._out = weights.linear(plan.out, (network.hidden,), plan.heads.width)
        self._between = weights.norm(plan.between)
        self._up, self._between_products, self._down = weights.feed_forward(
            plan, network.width, causal=network.causal
        )

    def __call__(self, added: Tensor | None, residual: Tensor, state: Pass) -> tuple[Tensor, Tensor]:
        """[num_tokens, hidden] twice → what this layer adds, and to what; of picked rows in a last layer."""
        rows, residual = self._before(added, residual)
        mixed = self.attention(rows, state)
        if self.attention.picks and state.picked is not None:
            residual = residual.index_select(0, state.picked)
        rows, residual = self._between(self._out(mixed), residual)
        wide = self._up(rows)
        if self._between_products is not None:
            wide = self._between_products(wide)
        return self._down(wide), residual


class EncoderAttention:
    """Attention both ways; one that `picks` has queries for the picked rows only."""

    def __init__(self, plan: LayerPlan, index: int, weights: Weights, hidden: int, *, picks: bool) -> None:
        self.picks = picks
        self._index = index
        self._rotation = plan.rotation
        self.heads = heads = plan.heads
        self._attend = weights.operations.attend
        self._widths = sizes = (heads.width, heads.key_width, heads.key_width)
        weight, bias = weights.rows(plan.merged, sizes, hidden)
        linear = weights.operations.linear
        if not picks:
            self._merged = linear(weight, bias)
            return
        width = heads.width
        self._query = linear(weight[:width].clone(), None if bias is None else bias[:width].clone())
        self._merged = linear(weight[width:].clone(), None if bias is None else bias[width:].clone())

    def __call__(self, rows: Tensor, state: Pass) -> Tensor:
        """[num_tokens, hidden] → [num_tokens or num_picked, heads · size]."""
        query, key, value = self._project(rows, state)
        layout = state.packed.layout
        queries = layout.singles() if self.picks else layout
        keys = layout
        if layout.keys is not None:
            key, value, keys = layout.seen(key, value)
        turns = None
        if self._rotation is not None:
            turned = state.turned(self._rotation, state.picked if self.picks else None)
            turns = turned, state.turned(self._rotation, None if keys is layout else layout.key_rows)
        return self._attend(query, key, value, queries, keys, self.heads, turns)

    def _project(self, rows: Tensor, state: Pass) -> tuple[Tensor, Tensor, Tensor]:
        merged = self._merged(rows)
        if not self.picks or state.picked is None:
            query, key, value = merged.split(self._widths, dim=1)
            return query, key, value
        key, value = merged.split(self._widths[1:], dim=1)
        return self._query(rows.index_select(0, state.picked)), key, value


class DecoderAttention(EncoderAttention):
    """Attention to what stands before, whose keys others may continue."""

    def __init__(self, plan: LayerPlan, index: int, weights: Weights, hidden: int, *, picks: bool) -> None:
        super().__init__(plan, index, weights, hidden, picks=picks)
        self._turn_query, self._turn_key = weights.turns(plan)

    def __call__(self, rows: Tensor, state: Pass) -> Tensor:
        """[num_tokens, hidden] → [num_tokens or num_picked, heads · size]."""
        query, key, value = self._project(rows, state)
        if self._rotation is not None:
            turned = state.turned(self._rotation, state.picked if self.picks else None)
            query = self._turn_query(query, turned)
            key = self._turn_key(key, state.turned(self._rotation, None))
        assert state.causal is not None
        return state.causal.attend(self._index, query, key, value, self.heads, last_only=self.picks)
