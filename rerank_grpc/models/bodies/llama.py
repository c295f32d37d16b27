"""Llama and its like: causal pre-norm layers with RMS norms, rotary places, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rerank_grpc.kernels.base import Heads
from rerank_grpc.models.bodies.config import Config, checked_head, real
from rerank_grpc.models.bodies.plan import (
    HeadNorms,
    LayerPlan,
    LinearPlan,
    NetworkPlan,
    NoPlan,
    NormPlan,
    RotationPlan,
    activation_named,
)
from rerank_grpc.models.bodies.rotations import rotation

PREFIX = "model."

COMMON: Mapping[str, Any] = {
    "hidden_size": 4_096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "is_causal": True,
    "use_bidirectional_attention": False,
}
LLAMA: Mapping[str, Any] = {
    **COMMON,
    "vocab_size": 32_000,
    "intermediate_size": 11_008,
    "max_position_embeddings": 2_048,
}
MISTRAL: Mapping[str, Any] = {
    **COMMON,
    "vocab_size": 32_000,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "max_position_embeddings": 131_072,
    "sliding_window": 4_096,
}
QWEN2: Mapping[str, Any] = {
    **COMMON,
    "vocab_size": 151_936,
    "num_key_value_heads": 32,
    "intermediate_size": 22_016,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4_096,
    "max_window_layers": 28,
}
GEMMA: Mapping[str, Any] = {
    **COMMON,
    "vocab_size": 256_000,
    "hidden_size": 3_072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "intermediate_size": 24_576,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8_192,
}


@dataclass(frozen=True, slots=True)
class Family:
    """How a family differs from Llama."""

    defaults: Mapping[str, Any]
    # Whether layers have a window, and products a bias: the value, or the name of the setting that says it
    sliding: bool | str = False
    merged_bias: bool | str = "attention_bias"  # of queries, keys and values
    out_bias: bool | str = "attention_bias"
    feeding_bias: bool | str = False
    head_norms: bool = False
    scales_embeddings: bool = False  # by the square root of their width
    norm_offset: float = 0.0
    activations: Mapping[str, str] = field(default_factory=dict)  # names that mean another


FAMILIES: Mapping[str, Family] = {
    "llama": Family(LLAMA, feeding_bias="mlp_bias"),
    "mistral": Family(MISTRAL, sliding=True, merged_bias=False, out_bias=False),
    "qwen2": Family(QWEN2, sliding="use_sliding_window", merged_bias=True, out_bias=False),
    "qwen3": Family({**QWEN2, "head_dim": 128}, sliding="use_sliding_window", head_norms=True),
    "gemma": Family(
        GEMMA,
        scales_embeddings=True,
        norm_offset=1.0,
        activations={"gelu": "gelu_pytorch_tanh"},  # in files of the first release
    ),
}
SLIDING = "sliding_attention"


def network_plan(family: str, values: Mapping[str, Any]) -> NetworkPlan:
    """Describes a body; raises NoPlan."""
    own = FAMILIES[family]
    config = Config(values, own.defaults)
    config.only(is_causal=True, use_bidirectional_attention=False)
    turns, hidden = _rotation(config), config.number("hidden_size")
    return NetworkPlan(
        hidden=hidden,
        width=config.number("intermediate_size"),
        vocabulary=config.number("vocab_size"),
        max_positions=config.number("max_position_embeddings"),
        causal=True,
        words="embed_tokens",
        scale=hidden**0.5 if own.scales_embeddings else 1.0,
        layers=tuple(
            _layer(own, config, f"layers.{index}", turns, window)
            for index, window in enumerate(_windows(own, config))
        ),
        last=_norm(own, config, "norm"),
    )


def _rotation(config: Config) -> RotationPlan:
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping) or any(isinstance(each, Mapping) for each in parameters.values()):
        raise NoPlan("rotary embeddings by layer")
    config.only(partial_rotary_factor=None)
    stated = parameters.get("rope_theta")
    theta = config.real("rope_theta") if stated is None else real("rope_theta", stated)
    positions = config.number("max_position_embeddings")
    original = config.get("original_max_position_embeddings")
    named = parameters if original is None else {**parameters, "original_max_position_embeddings": original}
    return rotation(_head_size(config), theta, named, positions)


def _says(config: Config, said: bool | str) -> bool:
    """Returns a value of a family, or that of the setting which it names."""
    return bool(config.get(said)) if isinstance(said, str) else said


def _windows(own: Family, config: Config) -> list[int | None]:
    """The window of each layer."""
    count = config.number("num_hidden_layers")
    if config.stated("sliding_window") is None or not _says(config, own.sliding):
        return [None] * count
    window = config.number("sliding_window")
    if own.sliding is True:
        return [window] * count
    first, stated = config.number("max_window_layers", least=0), config.get("layer_types")
    kinds = stated or [SLIDING if index >= first else "" for index in range(count)]
    if len(kinds) != count:
        raise NoPlan("layer_types")
    return [window if kind == SLIDING else None for kind in kinds]


def _head_size(config: Config) -> int:
    return config.head_size() if config.get("head_dim") is None else checked_head(config.number("head_dim"))


def _norm(own: Family, config: Config, name: str) -> NormPlan:
    epsilon = config.real("rms_norm_eps")
    return NormPlan(name, epsilon, bias=False, rms=True, keeps_sum=True, offset=own.norm_offset)


def _heads(config: Config, window: int | None) -> Heads:
    count, size = config.number("num_attention_heads"), _head_size(config)
    stated = config.stated("num_key_value_heads")
    groups = count if stated is None else config.number("num_key_value_heads")
    if count % groups:
        raise NoPlan(f"num_key_value_heads {groups}")
    return Heads(count, groups, size, size**-0.5, window)


def _layer(own: Family, config: Config, name: str, turns: RotationPlan, window: int | None) -> LayerPlan:
    attention, feeding = f"{name}.self_attn", _says(config, own.feeding_bias)
    norms = HeadNorms(f"{attention}.q_norm", f"{attention}.k_norm", config.real("rms_norm_eps"))
    merged = tuple(f"{attention}.{part}_proj" for part in "qkv")
    activation = str(config.get("hidden_act"))
    return LayerPlan(
        before=_norm(own, config, f"{name}.input_layernorm"),
        heads=_heads(config, window),
        merged=LinearPlan(merged, _says(config, own.merged_bias)),
        out=LinearPlan((f"{attention}.o_proj",), _says(config, own.out_bias)),
        between=_norm(own, config, f"{name}.post_attention_layernorm"),
        up=LinearPlan((f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"), feeding),
        down=LinearPlan((f"{name}.mlp.down_proj",), feeding),
        activation=activation_named(own.activations.get(activation, activation)),
        gated=True,
        rotation=turns,
        head_norms=norms if own.head_norms else None,
    )
