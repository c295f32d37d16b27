"""Configs of ModernBERT mean what they mean to transformers, or are left to it."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
import transformers
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from rerank_grpc.models.bodies.families import plan_of
from rerank_grpc.models.bodies.modernbert import FULL, SLIDING
from rerank_grpc.models.bodies.plan import NoPlan

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1_024}


def scaled(parameters: Any, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {FULL: parameters, SLIDING: {"rope_type": "default"}}, **others}


def values(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 48}, {"local_attention": 65}, scaled(YARN)], ids=str
)
def test_a_config_means_what_it_means_to_transformers(changes: dict[str, Any]) -> None:
    plan = plan_of("modernbert", changes)
    config = transformers.ModernBertConfig(**copy.deepcopy(changes))  # which writes into them
    assert plan == plan_of("modernbert", values(config))
    assert {layer.heads.window for layer in plan.layers} == {None, config.local_attention // 2 + 1}


@pytest.mark.parametrize("parameters", [LLAMA3, YARN, {"rope_type": "yarn", "factor": 4.0}], ids=str)
def test_rotations_turn_as_those_of_transformers(parameters: dict[str, Any]) -> None:
    stated = scaled(parameters, max_position_embeddings=2_048)
    layers = plan_of("modernbert", stated).layers
    network = ModernBertRotaryEmbedding(transformers.ModernBertConfig(**copy.deepcopy(stated)))
    for layer, kind in zip(layers, (FULL, SLIDING), strict=False):
        assert layer.rotation is not None
        expected = getattr(network, f"{kind}_inv_freq")
        torch.testing.assert_close(torch.tensor(layer.rotation.frequencies), expected, rtol=1e-6, atol=0)
        assert layer.rotation.factor == getattr(network, f"{kind}_attention_scaling")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_scaling": YARN}, "rope_scaling"),
        (scaled(YARN | {"truncate": False}), "truncate"),
        ({"rope_parameters": {"truncate": False}}, "truncate"),
        ({"rope_parameters": 5}, "odd"),
        (scaled("x"), "odd"),
        (scaled({"rope_theta": "abc"}), "rope_theta"),
        (scaled({"rope_theta": math.inf}), "rope_theta"),
        ({"local_rope_theta": [1]}, "local_rope_theta"),
        ({"local_rope_theta": 0}, "infinite"),
        ({"layer_types": 5}, "odd"),
        ({"layer_types": [["x"]] * 22}, "odd"),
        ({"layer_types": ["x"] * 22}, "layer_types"),
        ({"num_attention_heads": 1_000}, "1000 heads"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ({"norm_eps": 10**400}, "norm_eps"),
        ({"hidden_size": 1 << 70}, "hidden_size"),
    ],
)
def test_what_no_own_body_computes_is_left_to_transformers(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoPlan, match=reason):
        plan_of("modernbert", changes)
