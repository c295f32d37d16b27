"""ModernBERT: pre-norm layers with rotary places, gated feed-forwards, and windows in most layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_grpc.kernels.base import Heads
from rerank_grpc.models.bodies.config import Config, real
from rerank_grpc.models.bodies.plan import (
    ActivationStep,
    ClassifierPlan,
    DenseStep,
    LayerPlan,
    LinearPlan,
    NetworkPlan,
    NoPlan,
    NormPlan,
    RotationPlan,
    activation_named,
)
from rerank_grpc.models.bodies.rotations import rotation

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1_152,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8_192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}
FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
PREFIX = "model."


def network_plan(values: Mapping[str, Any]) -> NetworkPlan:
    """Describes a body; raises NoPlan."""
    config = Config(values, DEFAULTS)
    config.only(rope_scaling=None)  # which transformers merges into both rotations
    turns = {kind: _rotation(config, kind) for kind in THETAS}
    kinds = _layer_kinds(config)
    # The embeddings' norm is the first layer's, too.
    first = _norm(config, "embeddings.norm", keeps_sum=False)
    return NetworkPlan(
        hidden=config.number("hidden_size"),
        width=config.number("intermediate_size"),
        vocabulary=config.number("vocab_size"),
        max_positions=config.number("max_position_embeddings"),
        causal=False,
        words="embeddings.tok_embeddings",
        layers=tuple(
            _layer(config, index, kind, turns[kind], first if index == 0 else None)
            for index, kind in enumerate(kinds)
        ),
        last=_norm(config, "final_norm"),
    )


def classifier_plan(values: Mapping[str, Any]) -> ClassifierPlan:
    """Describes what follows the pooled row."""
    config = Config(values, DEFAULTS)
    return (
        DenseStep("head.dense", bias=bool(config.get("classifier_bias"))),
        ActivationStep(activation_named(config.get("classifier_activation"))),
        _norm(config, "head.norm"),
        DenseStep("classifier"),
    )


def _layer_kinds(config: Config) -> list[str]:
    count, stated = config.number("num_hidden_layers"), config.get("layer_types")
    every = config.number("global_attn_every_n_layers")
    kinds = stated or [SLIDING if index % every else FULL for index in range(count)]
    if len(kinds) != count or not set(kinds) <= set(THETAS):
        raise NoPlan("layer_types")
    return list(kinds)


def _rotation(config: Config, kind: str) -> RotationPlan:
    by_kind = config.get("rope_parameters") or {}
    parameters = by_kind.get(kind) or {}
    # transformers reads this one beside the kinds, and ignores it within them.
    if "truncate" in {*by_kind, *parameters}:
        raise NoPlan("rope_parameters with truncate")
    stated = parameters.get("rope_theta")
    theta = config.real(THETAS[kind]) if stated is None else real("rope_theta", stated)
    return rotation(config.head_size(), theta, parameters, config.number("max_position_embeddings"))


def _window(config: Config) -> int:
    """Counts the places that a token sees on one side, its own among them."""
    if config.get("sliding_window") is not None:  # one side, which overrides the whole
        return config.number("sliding_window") + 1
    return config.number("local_attention") // 2 + 1


def _norm(config: Config, name: str, *, keeps_sum: bool = True) -> NormPlan:
    return NormPlan(name, config.real("norm_eps"), bool(config.get("norm_bias")), keeps_sum=keeps_sum)


def _layer(config: Config, index: int, kind: str, turns: RotationPlan, before: NormPlan | None) -> LayerPlan:
    name, heads = f"layers.{index}", config.number("num_attention_heads")
    size, window = config.head_size(), _window(config) if kind == SLIDING else None
    attention, feeding = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    return LayerPlan(
        before=before or _norm(config, f"{name}.attn_norm"),
        heads=Heads(heads, heads, size, size**-0.5, window),
        merged=LinearPlan((f"{name}.attn.Wqkv",), attention),
        out=LinearPlan((f"{name}.attn.Wo",), attention),
        between=_norm(config, f"{name}.mlp_norm"),
        up=LinearPlan((f"{name}.mlp.Wi",), feeding),
        down=LinearPlan((f"{name}.mlp.Wo",), feeding),
        activation=activation_named(config.get("hidden_activation")),
        gated=True,
        rotation=turns,
    )
