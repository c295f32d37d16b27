"""The check at load tells rounding from every fault, in any precision, and leaves a network as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from rerank_grpc.kernels import causal
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.causal import CausalParts
from rerank_grpc.models import hooked
from rerank_grpc.models.base import PackedTokens
from rerank_grpc.models.encoders import CrossEncoder, first_rows, last_rows
from rerank_grpc.models.heads import AnswerHead
from rerank_grpc.models.hooked import HOOK, HookedBody, NotPackable, attends_causally
from rerank_grpc.models.padded import Padded, PaddedBody, own_attention
from rerank_grpc.models.reference import BOUND, Agreement
from rerank_grpc.models.selfcheck import (
    AnswersReference,
    check_against_reference,
    classifier_reference,
    draw_probes,
    narrowed_windows,
    pooled_reference,
)
from tests import random_models
from tests.models.decoders import FAMILIES, LEFT_OUT, PACKED, WINDOWED, decoder

ANSWERS = (7, 9)
# Far below the bound: that which honest passes must keep, so that the bound is no close call.
HONEST = BOUND / 20


def card(precision: str) -> Any:
    return SimpleNamespace(device="cpu", precision=precision, source="model", family="family")


def packed_model(network: Any, precision: str = "fp32", answers: tuple[int, ...] = ANSWERS) -> CrossEncoder:
    network.set_attn_implementation(HOOK)
    head = AnswerHead.of(network.lm_head, answers, network.config)
    body = HookedBody(network.model, Attention.SDPA, causal=attends_causally(network.model))
    return CrossEncoder(card(precision), body, last_rows, head)


def check(network: Any, precision: str = "fp32", answers: tuple[int, ...] = ANSWERS) -> Agreement:
    reference = AnswersReference(network, answers)
    model = packed_model(network, precision, answers)
    return check_against_reference(model, network, reference, shares_prefixes=True)


@pytest.mark.parametrize("answers", [(7,), ANSWERS])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", PACKED)
def test_a_packed_decoder_agrees(family: str, precision: str, answers: tuple[int, ...]) -> None:
    found = check(decoder(family), precision, answers)
    assert found.agrees
    assert found.difference < HONEST


@pytest.mark.parametrize("family", LEFT_OUT)
def test_a_decoder_of_which_the_packed_pass_leaves_something_out_is_told_apart(family: str) -> None:
    found = check(decoder(family))
    assert (found.agrees, found.reason) == (False, LEFT_OUT[family])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_decoder_agrees_padded(family: str, precision: str) -> None:
    network = decoder(family)
    assert own_attention(network) == ("eager" if family in ("gemma2", "gpt-oss") else "sdpa")
    model = Padded(card(precision), network, answers=ANSWERS, causal=True)
    found = check_against_reference(model, network, AnswersReference(network, (0, 1)))
    assert found.agrees
    assert found.difference < HONEST


def ignore_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(self: CausalParts, *given: Any) -> Tensor:
        rows: Tensor = honest(self, *given[:-1], None)
        return rows

    honest: Any = CausalParts.attend_causal
    monkeypatch.setattr(CausalParts, "attend_causal", attend)


def change_passes(monkeypatch: pytest.MonkeyPatch, change: Callable[[PackedTokens], PackedTokens]) -> None:
    honest = HookedBody.__call__
    monkeypatch.setattr(HookedBody, "__call__", lambda self, packed: honest(self, change(packed)))


@pytest.mark.parametrize("window", [16, 400])
@pytest.mark.parametrize("family", sorted(set(WINDOWED) & set(PACKED)))
def test_an_ignored_window_is_found(family: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(decoder(family, sliding_window=window)).agrees
    ignore_windows(monkeypatch)
    assert check(decoder(family, sliding_window=window)).difference > 30 * BOUND


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_leak_between_neighbours_is_found(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens of a pass as one part, of which the pool still takes the right rows."""

    def leak(packed: PackedTokens) -> PackedTokens:
        layout = Layout.of((sum(packed.layout.lengths),))
        return replace(packed, layout=layout, contexts=(), prefixes=())

    change_passes(monkeypatch, leak)
    network = decoder("qwen3")
    model = packed_model(network, precision)
    found = check_against_reference(model, network, AnswersReference(network, ANSWERS))
    assert found.difference > 30 * BOUND


def test_shifted_positions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind a prefix, which begin at its end: rotations see differences only."""

    def shift(packed: PackedTokens) -> PackedTokens:
        behind = packed.layout.starts[-2] if packed.prefixes else len(packed.position_ids)
        places = packed.position_ids.clone()
        places[behind:] += 1
        return replace(packed, position_ids=places)

    change_passes(monkeypatch, shift)
    assert check(decoder("qwen3")).difference > 10 * BOUND


@pytest.mark.parametrize("name", ["softcap", "s_aux", "head_mask", "position_bias", "unheard_of"])
def test_an_argument_whose_effect_is_not_known_is_refused(name: str) -> None:
    call = hooked.AttentionCall(Layout.of((3,)), None, None)
    query = torch.randn(1, 2, 3, 8)
    options: dict[str, Any] = {"call": call, "dropout": 0.0, "position_ids": torch.arange(3)[None]}
    hooked.attend(None, query, query, query, None, **options | {name: None})
    with pytest.raises(NotPackable, match=name):
        hooked.attend(None, query, query, query, None, **options | {name: torch.ones(1)})
    with pytest.raises(NotPackable, match="attention_mask"):
        hooked.attend(None, query, query, query, torch.ones(3, 3), **options)
    with pytest.raises(NotPackable, match="is_causal"):
        hooked.attend(None, query, query, query, None, **options, is_causal=True)


def test_a_body_that_attends_by_itself_cannot_be_packed(directories: dict[str, Path]) -> None:
    network: Any = transformers.AutoModel.from_pretrained(directories["deberta"]).eval()
    network.set_attn_implementation(HOOK)
    model = CrossEncoder(card("fp32"), HookedBody(network, Attention.SDPA), first_rows, lambda row: row)
    found = check_against_reference(model, network, pooled_reference(network, first_rows, None, unit=False))
    assert (found.agrees, found.reason) == (False, "attention of its own")


def test_a_rotation_that_stretches_cannot_be_packed_and_is_padded_alone() -> None:
    factors = [1.0] * 8
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": factors,
        "long_factor": [3.0] * 8,
        "original_max_position_embeddings": 32,
    }
    network = decoder("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    with pytest.raises(NotPackable, match="longrope"):
        packed_model(network)
    own_attention(network)
    model = CrossEncoder(
        card("fp32"),
        PaddedBody(network.model, causal=True),
        last_rows,
        AnswerHead.of(network.lm_head, ANSWERS, network.config),
    )
    with narrowed_windows(network):
        lengths = tuple(len(probe.ids) for probe in draw_probes(network, 32))
    assert lengths[0] < 32 < lengths[1]
    assert check_against_reference(model, network, AnswersReference(network, ANSWERS)).agrees


def modernbert(**changes: Any) -> Any:
    torch.manual_seed(0)
    configuration: Any = transformers.ModernBertConfig
    config = configuration(
        vocab_size=400,
        hidden_size=64,
        num_hidden_layers=6,
        local_attention=32,
        num_labels=1,
        **random_models.MODERNBERT | {"initializer_range": 0.3} | changes,
    )
    network = transformers.ModernBertForSequenceClassification(config).eval().requires_grad_(False)
    network.set_attn_implementation(HOOK)
    return network


def check_modernbert(precision: str) -> Agreement:
    network = modernbert(classifier_pooling="cls")
    head = torch.nn.Sequential(network.head, network.classifier)
    body = HookedBody(network.model, Attention.SDPA, causal=attends_causally(network.model))
    model = CrossEncoder(card(precision), body, first_rows, head.float())
    return check_against_reference(model, network, classifier_reference(network))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_modernbert_agrees_and_an_ignored_window_is_found(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_modernbert(precision).difference < HONEST
    honest: Any = causal.attend_window
    monkeypatch.setattr(hooked, "attend_window", lambda *given: honest(*given[:-1], None))
    assert check_modernbert(precision).difference > 10 * BOUND


def test_a_decoder_made_to_read_both_ways_agrees() -> None:
    network = decoder("llama", is_causal=False)
    assert not attends_causally(network.model)
    model = packed_model(network)
    assert check_against_reference(model, network, AnswersReference(network, ANSWERS)).difference < HONEST


def test_a_check_leaves_a_network_as_it_was() -> None:
    network = decoder("gemma3", sliding_window=400)
    reference = AnswersReference(network, ANSWERS)
    model = packed_model(network, "bf16")
    head, weights = network.lm_head, [(id(each), each.dtype) for each in network.parameters()]
    assert check_against_reference(model, network, reference).agrees
    assert network.config._attn_implementation == HOOK
    assert network.config.sliding_window == 400
    assert {layer.self_attn.sliding_window for layer in network.model.layers} == {None, 400}
    assert network.lm_head is head
    assert [(id(each), each.dtype) for each in network.parameters()] == weights
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_windows_are_narrowed_by_as_much_in_config_and_modules() -> None:
    network = modernbert()
    network.config.sliding_window = 500
    for layer in network.model.layers:
        if layer.attn.sliding_window is not None:
            layer.attn.sliding_window = 501
    with narrowed_windows(network) as widest:
        assert widest == 64
        assert network.config.sliding_window == 63
        assert {layer.attn.sliding_window for layer in network.model.layers} == {None, 64}
    assert network.config.sliding_window == 500
    with narrowed_windows(decoder("qwen3")) as widest:
        assert widest is None


def test_no_probe_holds_a_token_that_the_config_names() -> None:
    network = decoder("qwen3", eos_token_id=[2, 3], image_token_id=5)
    network.resize_token_embeddings(12)
    drawn = {int(each) for probe in draw_probes(network, 400) for each in probe.ids}
    assert drawn == {4, 6, 7, 8, 9, 10, 11}
