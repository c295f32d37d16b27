"""BERT, RoBERTa and XLM-RoBERTa: post-norm layers behind learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_grpc.kernels.base import Heads
from rerank_grpc.models.bodies.config import Config
from rerank_grpc.models.bodies.plan import (
    ActivationStep,
    ClassifierPlan,
    DenseStep,
    LayerPlan,
    LinearPlan,
    NetworkPlan,
    NormPlan,
    activation_named,
)

# The values that transformers' config has where the file says nothing
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
}
# By family: the prefix of a body's weights, and the padding id where the file names none
PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}
PADDING = {"bert": 0, "roberta": 1, "xlm-roberta": 1}


def network_plan(family: str, values: Mapping[str, Any]) -> NetworkPlan:
    """Describes a body; raises NoPlan."""
    config = Config(values, {**DEFAULTS, "pad_token_id": PADDING[family]})
    config.only(is_decoder=False, add_cross_attention=False)
    # RoBERTa's table of positions reserves the rows up to the padding id's.
    first = 0 if family == "bert" else config.number("pad_token_id", least=0) + 1
    layers = range(config.number("num_hidden_layers"))
    norms = [_norm(config, "embeddings.LayerNorm")]
    norms += [_norm(config, f"encoder.layer.{index}.output.LayerNorm") for index in layers]
    return NetworkPlan(
        hidden=config.number("hidden_size"),
        width=config.number("intermediate_size"),
        vocabulary=config.number("vocab_size"),
        max_positions=config.number("max_position_embeddings", least=first + 1) - first,
        causal=False,
        words="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        first_position=first,
        segments="embeddings.token_type_embeddings",
        # RoBERTa has one segment, whatever the tokenizer says.
        num_segments=config.number("type_vocab_size") if family == "bert" else 1,
        layers=tuple(_layer(config, f"encoder.layer.{index}", norms[index]) for index in layers),
        last=norms[-1],
    )


def classifier_plan(family: str) -> ClassifierPlan:
    """Describes what follows the first row."""
    if family == "bert":
        return DenseStep("bert.pooler.dense"), ActivationStep("tanh"), DenseStep("classifier")
    return DenseStep("classifier.dense"), ActivationStep("tanh"), DenseStep("classifier.out_proj")


def _norm(config: Config, name: str) -> NormPlan:
    return NormPlan(name, config.real("layer_norm_eps"))


def _layer(config: Config, name: str, before: NormPlan) -> LayerPlan:
    heads, size = config.number("num_attention_heads"), config.head_size()
    merged = tuple(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
    return LayerPlan(
        before=before,
        heads=Heads(heads, heads, size, size**-0.5),
        merged=LinearPlan(merged, bias=True),
        out=LinearPlan((f"{name}.attention.output.dense",), bias=True),
        between=_norm(config, f"{name}.attention.output.LayerNorm"),
        up=LinearPlan((f"{name}.intermediate.dense",), bias=True),
        down=LinearPlan((f"{name}.output.dense",), bias=True),
        activation=activation_named(config.get("hidden_act")),
        gated=False,
    )
