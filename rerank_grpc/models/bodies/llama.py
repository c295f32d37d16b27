"""Llama and its like: causal pre-norm layers with RMS norms, rotary places, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank_grpc.kernels.base import Heads
from rerank_grpc.models.bodies.config import Config, rotation
from rerank_grpc.models.bodies.plan import (
    HeadNorms,
    LayerPlan,
    LinearPlan,
    NetworkPlan,
    NormPlan,
    RotationPlan,
    activation_named,
)

PREFIX = "model."


@dataclass(frozen=True, slots=True)
class Family:
    """How a family differs from Llama."""

    defaults: Mapping[str, Any]
    merged_bias: bool | None = None  # of queries, keys and values; None where the config says it
    out_bias: bool | None = False
    head_norms: bool = False
    scales_embeddings: bool = False  # by the square root of their width
    norm_offset: float = 0.0


COMMON: Mapping[str, Any] = {
    "hidden_size": 4_096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
QWEN: Mapping[str, Any] = {
    **COMMON,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "max_position_embeddings": 32_768,
}
FAMILIES: Mapping[str, Family] = {
    "qwen3": Family({**QWEN, "head_dim": 128}, out_bias=None, head_norms=True),
    "qwen2": Family(QWEN, merged_bias=True),
    "llama": Family(
        {**COMMON, "vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2_048},
        out_bias=None,
    ),
}


def network_plan(family: str, values: Mapping[str, Any]) -> NetworkPlan:
    """Describes a body; raises NoPlan."""
    own = FAMILIES[family]
    config = Config(values, own.defaults)
    config.only(use_sliding_window=False)
    size = _head_size(config)
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or config.real("rope_theta")
    turns = rotation(size, float(theta), parameters)
    hidden = config.number("hidden_size")
    return NetworkPlan(
        hidden=hidden,
        width=config.number("intermediate_size"),
        vocabulary=config.number("vocab_size"),
        max_positions=config.number("max_position_embeddings"),
        causal=True,
        words="embed_tokens",
        scale=hidden**0.5 if own.scales_embeddings else 1.0,
        layers=tuple(
            _layer(own, config, f"layers.{index}", turns)
            for index in range(config.number("num_hidden_layers"))
        ),
        last=_norm(own, config, "norm"),
    )


def _head_size(config: Config) -> int:
    if config.get("head_dim") is not None:
        return config.number("head_dim")
    return config.number("hidden_size") // config.number("num_attention_heads")


def _norm(own: Family, config: Config, name: str) -> NormPlan:
    epsilon = config.real("rms_norm_eps")
    return NormPlan(name, epsilon, bias=False, rms=True, keeps_sum=True, offset=own.norm_offset)


def _layer(own: Family, config: Config, name: str, turns: RotationPlan) -> LayerPlan:
    count, size = config.number("num_attention_heads"), _head_size(config)
    groups = config.number("num_key_value_heads") if config.get("num_key_value_heads") else count
    stated = bool(config.get("attention_bias"))
    attention, feeding = f"{name}.self_attn", bool(config.get("mlp_bias"))
    norms = HeadNorms(f"{attention}.q_norm", f"{attention}.k_norm", config.real("rms_norm_eps"))
    merged = tuple(f"{attention}.{part}_proj" for part in "qkv")
    return LayerPlan(
        before=_norm(own, config, f"{name}.input_layernorm"),
        heads=Heads(count, groups, size, size**-0.5),
        merged=LinearPlan(merged, stated if own.merged_bias is None else own.merged_bias),
        out=LinearPlan((f"{attention}.o_proj",), stated if own.out_bias is None else own.out_bias),
        between=_norm(own, config, f"{name}.post_attention_layernorm"),
        up=LinearPlan((f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"), feeding),
        down=LinearPlan((f"{name}.mlp.down_proj",), feeding),
        activation=activation_named(config.get("hidden_act")),
        gated=True,
        rotation=turns,
        head_norms=norms if own.head_norms else None,
    )
