"""Configs of BERT and its like mean what they mean to transformers, or are left to it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import transformers

from rerank_grpc.models.bodies.bert import PREFIXES
from rerank_grpc.models.bodies.families import plan_of
from rerank_grpc.models.bodies.plan import NoPlan

CONFIGS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
NO_SIZES = (0, -1, True, 1.5, 1 << 31, 1 << 70, "abc", [1], {"a": 1})
NO_NUMBERS = (-1e-5, True, 10**400, math.inf, math.nan, "abc", [1], {"a": 1})


@pytest.mark.parametrize("family", PREFIXES)
def test_a_config_that_says_nothing_but_its_vocabulary_means_what_it_means_to_transformers(
    family: str,
) -> None:
    config = CONFIGS[family]()
    whole = json.loads(config.to_json_string(use_diff=False))
    assert plan_of(family, {"vocab_size": config.vocab_size}) == plan_of(family, whole)


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_none_are_left_to_transformers(family: str, name: str) -> None:
    for value in NO_SIZES:
        with pytest.raises(NoPlan, match=name):
            plan_of(family, {name: value})


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        *(("bert", {"layer_norm_eps": value}, "layer_norm_eps") for value in NO_NUMBERS),
        *(("roberta", {"pad_token_id": value}, "pad_token_id") for value in ("abc", [1], -5, True, 1 << 31)),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings"),
        ("bert", {"num_attention_heads": 1_000}, "1000 heads"),
        ("bert", {"num_attention_heads": 7}, "7 heads"),
        ("bert", {"hidden_size": 36}, "3 columns"),
        ("bert", {"hidden_size": 1 << 30, "num_attention_heads": 2}, "columns"),
        ("bert", {"hidden_act": ["gelu"]}, "activation"),
    ],
)
def test_what_no_own_body_computes_is_left_to_transformers(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NoPlan, match=reason):
        plan_of(family, changes)
