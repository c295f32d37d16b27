"""Decoders of our own give transformers' rows: any length, any prefix, every precision, kernels or none."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rerank_grpc.kernels import cpu
from rerank_grpc.kernels.base import KeysValues, Layout
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.models.bodies.families import plan_of
from rerank_grpc.models.bodies.llama import FAMILIES
from rerank_grpc.models.bodies.plan import NoPlan
from rerank_grpc.models.bodies.weights import Weights
from tests.kernels.at_level import EXACT_INT8
from tests.models.decoders import VOCABULARY, WINDOW, decoder

CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma": transformers.GemmaConfig,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 8.0}
# Names of tests.models.decoders, and what the config has besides
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in (*FAMILIES, "qwen2 sliding")),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    *(
        ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "original_max_position_embeddings": 128} | kind})
        for kind in (LLAMA3, YARN, YARN | {"truncate": False, "mscale": 1.0, "mscale_all_dim": 0.5})
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    # Windows that transformers ignores, and one of all layers
    ("llama", {"sliding_window": WINDOW}),
    ("gemma", {"sliding_window": WINDOW, "use_sliding_window": True}),
    ("mistral", {"use_sliding_window": False}),
    ("qwen2 sliding", {"max_window_layers": 0}),
]
NAMES = [f"{family} {'+'.join(changes)}".strip() for family, changes in CASES]
SYSTEM, QUERY, DOCUMENTS = 11, 26, (1, 90, 5, WINDOW + 1, 40)
# Of the deviation of transformers' rows: the largest difference in fp32, else the root of the mean square
BOUNDS = {"fp32": 1e-5, "bf16": 7e-2}
if EXACT_INT8:
    BOUNDS["int8"] = 2e-1


@pytest.fixture(params=["kernels", "no kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels in C where the machine has them, and torch's own operations."""
    if request.param == "no kernels":
        monkeypatch.setattr(cpu, "kernels", lambda: None)


def values(config: Any, *, whole: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=not whole))
    return found


def own_body(network: Any, precision: str) -> OwnBody:
    weights = network.model.state_dict()
    plan = plan_of(network.config.model_type, values(network.config))

    def take(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert weights[name].shape == shape
        return weights[name].to(dtype, copy=True)  # type: ignore[no-any-return]

    body = OwnBody(plan, Weights(take, "", plan.hidden, cpu.cpu_operations(precision)), "last")
    body(pack(drawn((WINDOW,) * 4)))  # by whose rows int8 products are corrected
    return body


def drawn(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def pack(
    parts: Sequence[Tensor],
    contexts: Sequence[KeysValues | None] = (),
    prefixes: Sequence[KeysValues] = (),
    shift: int = 0,
) -> PackedTokens:
    """Packs parts behind their contexts, `shift` places too far."""
    before = [0 if each is None else each.tokens + shift for each in contexts] or [0] * len(parts)
    places = [torch.arange(len(part)) + start for part, start in zip(parts, before, strict=True)]
    ids = torch.cat(list(parts))
    layout = Layout.of(tuple(map(len, parts)))
    return PackedTokens(
        ids, torch.cat(places), torch.zeros_like(ids), layout, tuple(contexts), tuple(prefixes)
    )


def behind_prefixes(body: OwnBody, parts: Sequence[Tensor], shift: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of documents behind a system's part and a query, made in the pass, and then kept."""
    system, query = KeysValues(SYSTEM), KeysValues(SYSTEM + QUERY)
    documents = parts[2:]
    made = body(pack(parts, (None, system, *[query] * len(documents)), (system, query), shift))
    kept = body(pack(documents, [query] * len(documents), (), shift))
    return made, kept


def expected_rows(network: Any, sequences: Sequence[Tensor]) -> Tensor:
    """The last row of each sequence, each by itself."""
    return torch.stack([network.model(ids[None]).last_hidden_state[0, -1] for ids in sequences])


def error(found: Tensor, expected: Tensor, precision: str = "fp32") -> float:
    apart = (found.float() - expected) / expected.std()
    return float(apart.abs().max() if precision == "fp32" else apart.square().mean().sqrt())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_says_nothing_means_what_it_means_to_transformers(family: str) -> None:
    config, plan = CONFIGS[family](), plan_of(family, {})
    assert plan == plan_of(family, values(config))
    assert (plan.hidden, plan.width, plan.vocabulary) == (
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
    )
    assert (plan.max_positions, len(plan.layers)) == (
        config.max_position_embeddings,
        config.num_hidden_layers,
    )
    heads = plan.layers[0].heads
    assert (heads.count, heads.groups) == (config.num_attention_heads, config.num_key_value_heads)
    assert heads.window == getattr(config, "sliding_window", None)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_a_saved_config_says_the_same_as_all_of_its_values(family: str, changes: dict[str, Any]) -> None:
    config = decoder(family, **changes).config
    assert plan_of(config.model_type, values(config, whole=False)) == plan_of(
        config.model_type, values(config)
    )


@pytest.mark.parametrize("truncate", [True, False, None])
def test_columns_are_rounded_as_by_transformers(truncate: bool | None) -> None:
    stated: dict[str, Any] = {"rope_parameters": YARN | {"rope_theta": 1e4, "truncate": truncate}}
    turns = plan_of("llama", stated).layers[0].rotation
    expected = LlamaRotaryEmbedding(transformers.LlamaConfig(**stated)).inv_freq
    assert turns is not None
    torch.testing.assert_close(torch.tensor(turns.frequencies), expected, rtol=1e-6, atol=0)


def test_null_is_no_window_and_as_many_key_heads_as_heads() -> None:
    heads = plan_of("mistral", {"sliding_window": None, "num_key_value_heads": None}).layers[0].heads
    assert (heads.window, heads.groups) == (None, 32)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "llama3"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"is_causal": False}, "is_causal"),
        ("llama", {"hidden_act": "mish"}, "mish"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen3", {"use_sliding_window": True, "layer_types": ["sliding_attention"]}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "layer_types": 5}, "odd"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers"),
        ("llama", {"num_attention_heads": 5_000}, "5000 heads"),
        ("llama", {"hidden_size": 1 << 70}, "hidden_size"),
        ("llama", {"head_dim": 1 << 40}, "head_dim"),
        ("llama", {"head_dim": 1 << 30}, "columns"),
        ("llama", {"head_dim": 15}, "15 columns"),
        *(("llama", {"rope_theta": value}, "rope_theta") for value in ("abc", [1], 10**400, math.nan)),
        *(
            ("llama", {"rope_parameters": {"original_max_position_embeddings": 128} | kind}, "rotary")
            for kind in (
                YARN | {"beta_slow": 1e-320},
                YARN | {"original_max_position_embeddings": math.inf},
                YARN | {"attention_factor": 10**400},
                YARN | {"attention_factor": math.inf},
                {"rope_type": "linear", "factor": 10**400},
                {"rope_type": "linear", "factor": 0},
                LLAMA3 | {"high_freq_factor": 1.0, "low_freq_factor": 4.0},
                LLAMA3 | {"low_freq_factor": -1.0},
            )
        ),
    ],
)
def test_what_no_own_body_computes_is_left_to_transformers(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NoPlan, match=reason):
        plan_of(family, changes)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
@torch.inference_mode()
def test_rows_equal_transformers_with_prefixes_and_without(
    family: str, changes: dict[str, Any], kernels: None
) -> None:
    network, parts = decoder(family, **changes), drawn((SYSTEM, QUERY, *DOCUMENTS))
    sequences = [torch.cat([*parts[:2], document]) for document in parts[2:]]
    expected = expected_rows(network, sequences)
    for precision, bound in BOUNDS.items():
        body = own_body(network, precision)
        together = body(pack(sequences))
        for found in (together, *behind_prefixes(body, parts)):
            assert error(found, expected, precision) <= bound
        alone = torch.cat([body(pack([each])) for each in sequences])
        assert error(alone, together.float(), precision) <= bound / 10


@torch.inference_mode()
def test_a_prefix_keeps_copies_whose_tokens_precede_its_heads(kernels: None) -> None:
    for precision in BOUNDS:
        body, prefix = own_body(decoder("qwen3"), precision), KeysValues(SYSTEM)
        body(pack(drawn((SYSTEM, 500)), (None, prefix), (prefix,)))
        assert len(prefix.layers) == 3
        for each in (tensor for layer in prefix.layers for tensor in layer):
            assert each.shape == (1, 2, SYSTEM, 16)
            assert each.untyped_storage().nbytes() == each.nbytes
            assert each[0].transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.inference_mode()
def test_places_shifted_behind_a_prefix_would_be_noticed(precision: str, kernels: None) -> None:
    network = decoder("qwen3")
    body, parts = own_body(network, precision), drawn((SYSTEM, QUERY, *DOCUMENTS))
    expected = expected_rows(network, [torch.cat([*parts[:2], document]) for document in parts[2:]])
    for found in behind_prefixes(body, parts, shift=1):
        assert error(found, expected, precision) > 1.5 * BOUNDS[precision]


@pytest.mark.parametrize("precision", BOUNDS)
@torch.inference_mode()
def test_an_ignored_window_would_be_noticed(precision: str, kernels: None) -> None:
    network, sequences = decoder("mistral"), drawn((40, 300, 90))
    body, expected = own_body(network, precision), expected_rows(network, sequences)
    with body.narrowed(-VOCABULARY):
        assert error(body(pack(sequences)), expected, precision) > 1.5 * BOUNDS[precision]


@pytest.mark.parametrize("precision", BOUNDS)
@torch.inference_mode()
def test_a_leak_between_neighbours_would_be_noticed(precision: str, kernels: None) -> None:
    network, sequences = decoder("llama"), drawn((40, 90, 60))
    body, packed = own_body(network, precision), pack(sequences)
    for end in (130, 190):  # each as the last row of one part with all that stand before it
        leaking = replace(
            packed,
            input_ids=packed.input_ids[:end],
            position_ids=packed.position_ids[:end],
            token_type_ids=packed.token_type_ids[:end],
            layout=Layout.of((end,)),
        )
        expected = expected_rows(network, [sequences[1 if end == 130 else 2]])
        assert error(body(leaking), expected, precision) > 1.5 * BOUNDS[precision]
