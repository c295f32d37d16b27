"""Scores of language models equal transformers' own, shared prefix or not, and the tests would notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.kernels import causal
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import Model, PackedTokens
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.runner.prefixes import MAX_KEPT_TOKENS, PrefixCache, Prefixes
from rerank_grpc.runner.runner import CpuRunner
from rerank_grpc.sequence import Sequence as Tokens
from rerank_grpc.types import Scoring
from tests import prompts
from tests import random_models as checkpoints
from tests.conftest import load
from tests.prompts import QUERY
from tests.texts import tokenized

FAMILIES = sorted(prompts.WRITERS)
# Of the standard deviation of the reference's own logits.
BOUND = 1e-5


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language models")
    return {family: write(root / family) for family, write in prompts.WRITERS.items()}


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> dict[str, Model]:
    return {family: load(path, precision="fp32") for family, path in directories.items()}


def documents() -> list[str]:
    """From nothing to almost all that fits, in no order of length."""
    joined = " ".join(checkpoints.texts()[100:300])
    lengths = [0, 1, 400, 2, 5, 10, 300, 20, 33, 47, 60, 250, 75, 90, 120, 150, 200]
    return [joined[97 * place : 97 * place + length] for place, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def references(directories: dict[str, Path]) -> dict[str, torch.Tensor]:
    return {
        family: prompts.own_logits(path, family, prompts.own_ids(path, family, QUERY, documents()))
        for family, path in directories.items()
    }


def sequences(model: Model, query: str = QUERY, instruction: str = "") -> tuple[Tokens, ...]:
    return tokenized(model.card, query, documents(), instruction=instruction).sequences


def score(model: Model, batch: Sequence[Tokens], runner: CpuRunner | None = None) -> torch.Tensor:
    return torch.tensor((runner or CpuRunner(model)).launch(tuple(batch))())


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the reference's standard deviation."""
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_model_cards_shared_or_not(
    family: str, loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    expected, model = references[family], loaded[family]
    assert expected.std() >= 1, "scores this close together would prove nothing"
    runner, batch = CpuRunner(model), sequences(model)
    assert error(score(model, batch, runner), expected) <= BOUND  # computes the prefix
    assert error(score(model, batch, runner), expected) <= BOUND  # finds it kept
    assert error(score(model, [each.whole() for each in batch]), expected) <= BOUND  # has none


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_spread_over_batches_score_the_same_and_compute_their_prefix_once(
    family: str,
    loaded: dict[str, Model],
    references: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = loaded[family]
    forward: Callable[[PackedTokens], torch.Tensor] = model.forward
    tokens: list[int] = []

    def counting(_: object, packed: PackedTokens) -> torch.Tensor:
        tokens.append(sum(packed.layout.lengths))
        return forward(packed)

    monkeypatch.setattr(type(model), "forward", counting)
    runner, batch = CpuRunner(model), sequences(model)
    found = torch.cat([score(model, [each], runner) for each in batch])
    assert error(found, references[family]) <= BOUND
    prefix = batch[0].prefix
    assert prefix is not None
    assert sum(tokens) == sum(map(len, batch)) + sum(map(len, prefix.chain()))
    other = sequences(model, "another query")  # the system's part is there already
    score(model, other[:1], runner)
    assert other[0].prefix is not None
    assert tokens[-1] == len(other[0]) + len(other[0].prefix)


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_in_one_batch_score_as_they_do_alone(family: str, loaded: dict[str, Model]) -> None:
    model, runner = loaded[family], CpuRunner(loaded[family])
    requests = [sequences(model, query)[:6] for query in ("one", "two " * 30, QUERY, "深度学习")]
    alone = torch.cat([score(model, [each]) for request in requests for each in request])
    mixed = [request[place] for place in range(6) for request in requests]
    order = [6 * request + place for place in range(6) for request in range(len(requests))]
    score(model, requests[1], runner)  # one of the prefixes is kept, the others are not
    assert error(score(model, mixed, runner), alone[order]) <= BOUND


def test_parity_would_notice_a_prefix_that_leaks_between_requests(
    loaded: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runner = loaded["qwen3"], CpuRunner(loaded["qwen3"])
    first, second = sequences(model), sequences(model, "what is a tuple for, and a list?")
    expected = score(model, second)
    score(model, first, runner)
    assert first[0].prefix is not None
    kept = runner._prefixes.take(first).used[first[0].prefix]
    used = {sequence.prefix: kept for sequence in second if sequence.prefix is not None}
    monkeypatch.setattr(PrefixCache, "take", lambda *_: Prefixes(used, []))
    assert error(score(model, second, runner), expected) > 100 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_would_notice_a_suffix_that_is_cut(
    family: str, loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    cut = [Tokens(each.ids[:-4], prefix=each.prefix) for each in sequences(loaded[family])]
    found = score(loaded[family], cut)
    assert error(found, references[family]) > 100 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", ["shifted", "from 0"])
def test_parity_would_notice_other_positions_after_the_prefix(
    family: str,
    change: str,
    loaded: dict[str, Model],
    references: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = loaded[family]
    forward: Callable[[PackedTokens], torch.Tensor] = model.forward

    def moved(_: object, packed: PackedTokens) -> torch.Tensor:
        places = packed.position_ids.clone()
        start = sum(packed.layout.lengths[: len(packed.prefixes)])
        first = int(places[start])
        places[start:] += 1 if change == "shifted" else -first
        return forward(replace(packed, position_ids=places))

    monkeypatch.setattr(type(model), "forward", moved)
    assert error(score(model, sequences(model)), references[family]) > 100 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_would_notice_a_dropped_document_and_attention_to_what_comes_after(
    family: str,
    loaded: dict[str, Model],
    references: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded[family]
    nothing = tokenized(model.card, QUERY, [""]).sequences * len(documents())
    assert error(score(model, nothing), references[family]) > 100 * BOUND
    monkeypatch.setattr(
        causal.CausalParts, "_mask", lambda self, rows, columns, *rest: rest[-1].new_zeros(1, columns)
    )
    assert error(score(model, sequences(model)), references[family]) > 100 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_long_parts_attend_in_blocks_of_rows(
    family: str,
    loaded: dict[str, Model],
    references: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(causal, "MASK_ROWS", 7)
    assert error(score(loaded[family], sequences(loaded[family])), references[family]) <= BOUND


def test_r15_control_tokens_of_a_neighbour_change_no_score(
    loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    model = loaded["qwen3"]
    hostile = [*checkpoints.QWEN_SPECIAL, *checkpoints.QWEN_UNMARKED, "</s>", prompts.SUFFIX + "yes"]
    among = tokenized(
        model.card, QUERY, [text for pair in zip(hostile, documents(), strict=False) for text in pair]
    )
    count = len(among.documents) // 2
    found = score(model, among.sequences)[1::2]
    assert error(found, references["qwen3"][:count]) <= BOUND


def test_a_language_model_says_what_it_is(loaded: dict[str, Model]) -> None:
    qwen3, gemma = loaded["qwen3"].card, loaded["gemma"].card
    assert (qwen3.family, qwen3.scoring, qwen3.accepts_instruction) == ("qwen3", Scoring.SOFTMAX, True)
    assert (gemma.family, gemma.scoring, gemma.accepts_instruction) == ("gemma", Scoring.SIGMOID, False)
    assert qwen3.max_tokens == checkpoints.PROMPT_TOKENS
    assert qwen3.prefix_token_bytes == 2 * 3 * 2 * 16 * 4  # key and value, layers, heads, size, fp32


def test_bf16_rounds_neither_the_head_nor_the_positions(
    directories: dict[str, Path], references: dict[str, torch.Tensor]
) -> None:
    model: Any = load(directories["qwen3"], precision="bf16")
    assert model.body._words.dtype is torch.bfloat16
    assert model.head.rows.dtype is torch.float32
    assert {each.dtype for each in model.body._frequencies.values()} == {torch.float32}
    found = score(model, sequences(model))
    # Weights this wild amplify rounding far beyond a trained model's.
    assert torch.corrcoef(torch.stack([found, references["qwen3"]]))[0, 1] > 0.9


def test_a_head_of_its_own_is_not_kept_but_for_the_answers(tmp_path: Path) -> None:
    path = prompts.WRITERS["qwen3"](tmp_path, tie_word_embeddings=False)
    model: Any = load(path, precision="fp32")
    assert model.head.rows.shape == (2, 64)
    expected = prompts.own_logits(path, "qwen3", prompts.own_ids(path, "qwen3", QUERY, documents()))
    assert error(score(model, sequences(model)), expected) <= BOUND


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["Qwen3Model"]}, "Qwen3Model"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "2 labels"),
        (
            {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
            "do not say how it is asked",
        ),
    ],
)
def test_a_language_model_under_another_name_is_refused(
    changes: dict[str, Any], reason: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load(changed(directories["qwen3"], tmp_path, changes))


def changed(directory: Path, tmp_path: Path, changes: dict[str, Any]) -> Path:
    """A copy with another config, under the name that the catalogue knows."""
    path = Path(shutil.copytree(directory, tmp_path / checkpoints.QWEN3_NAME))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


STRETCHED = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 3}


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        (SLIDING, Attention.SDPA),
        ({"rope_parameters": STRETCHED, "max_position_embeddings": 128}, Attention.PADDED),
    ],
)
def test_a_window_is_packed_and_a_rotation_that_stretches_is_padded(
    changes: dict[str, Any],
    attention: Attention,
    directories: dict[str, Path],
    references: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    path = changed(directories["qwen3"], tmp_path, changes)
    model = load(path)
    assert model.card.attention is attention
    fitting = [text for text in documents() if len(text) < 60]
    rows = prompts.own_ids(path, "qwen3", QUERY, fitting)
    assert max(map(len, rows)) <= model.card.max_tokens
    expected = torch.cat([prompts.own_logits(path, "qwen3", [row]) for row in rows])
    found = score(model, tokenized(model.card, QUERY, fitting).sequences)
    assert error(found, expected) <= BOUND


def test_a_window_wider_than_the_checks_sequences_is_narrowed_for_it(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    model: Any = load(changed(directories["qwen3"], tmp_path, SLIDING | {"sliding_window": 300}))
    assert isinstance(model.body, OwnBody)
    assert model.body.windows == [300] * 3


def test_a_language_model_without_its_control_tokens_is_refused_at_load(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    path = changed(directories["qwen3"], tmp_path, {})
    checkpoints.byte_level().save(str(path / "tokenizer.json"))
    with pytest.raises(ModelLoadError, match="has no control token"):
        load(path)


def test_what_prefixes_may_take_is_counted_in_the_models_memory(directories: dict[str, Path]) -> None:
    loader = ModelLoader(ServerSettings(device="cpu", precision="fp32"))
    for family, heads in (("qwen3", 2), ("gemma", 1)):
        path = directories[family]
        found = loader.prepare(ModelSpec(family, str(path)))
        weights = sum(weight.numel() for weight in load_file(path / "model.safetensors").values())
        assert found == 4 * weights + MAX_KEPT_TOKENS * 2 * 3 * heads * 16 * 4


def test_the_catalogue_knows_a_language_model_as_a_cross_encoder(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "Qwen3-Reranker-0.6B").symlink_to(directories["qwen3"])
    card = load("Qwen3-Reranker-0.6B", models_dir=tmp_path).card
    assert card.kind is Kind.CROSS_ENCODER
    assert card.reading.prompt is not None
    assert card.reading.prompt.source == "catalogue.toml"
