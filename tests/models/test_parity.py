"""Scores equal transformers' own, and the tests would notice if they did not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rerank_grpc.kernels.base import Angles, Heads, Layout
from rerank_grpc.kernels.cpu import CpuOperations
from rerank_grpc.models.base import Model, PackedTokens
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.models.reference import Agreement
from rerank_grpc.sequence import TokenizedRequest
from tests import random_models as checkpoints
from tests.conftest import WRITERS, load
from tests.support import token_ids
from tests.texts import tokenized

QUERY = "how does a coroutine wait for a future?"
FAMILIES = sorted(WRITERS)
PACKED = ["bert", "roberta", "xlm_roberta"]
# Of the standard deviation of the reference's own scores.
BOUND = 1e-5


def documents() -> list[str]:
    """From nothing and a single token to more than fits, in no order of length."""
    source = checkpoints.texts()
    joined = " ".join(source[100:300])
    lengths = [0, 1, 900, 2, 5, 10, 700, 20, 33, 47, 60, 300, 75, 90, 120, 2_000, 150, 200, 250, 400]
    return [joined[97 * place : 97 * place + length] for place, length in enumerate(lengths)]


def pack(sequences: list[tuple[list[int], int]]) -> PackedTokens:
    """Lays (ids, split) end to end."""
    ids = [token for tokens, _ in sequences for token in tokens]
    places = [place for tokens, _ in sequences for place in range(len(tokens))]
    types = [int(0 < split <= place) for tokens, split in sequences for place in range(len(tokens))]
    return PackedTokens(
        torch.tensor(ids),
        torch.tensor(places),
        torch.tensor(types),
        Layout.of(tuple(len(tokens) for tokens, _ in sequences)),
    )


def pack_request(request: TokenizedRequest) -> PackedTokens:
    chosen = [request.sequences[document.chunks[0].sequence] for document in request.documents]
    return pack([(token_ids(sequence), sequence.segment_start) for sequence in chosen])


def score(model: Model, texts: list[str], query: str = QUERY) -> torch.Tensor:
    return model.forward(pack_request(tokenized(model.card, query, texts)))[:, 0]


def reference(directory: Path, texts: list[str], query: str = QUERY) -> torch.Tensor:
    """Transformers' logits, padded, in fp32, from its own tokenizer's pairs."""
    network = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        [query] * len(texts),
        texts,
        truncation="only_second",
        max_length=checkpoints.MAX_TOKENS,
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits: torch.Tensor = network.eval()(**batch).logits[:, 0]
    return logits


@pytest.fixture(scope="module")
def references(directories: dict[str, Path]) -> dict[str, torch.Tensor]:
    return {family: reference(path, documents()) for family, path in directories.items()}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the reference's standard deviation."""
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(
    family: str, loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    expected = references[family]
    assert expected.std() >= 1, "scores this close together would prove nothing"
    found = score(loaded[family], documents())
    assert found.dtype is torch.float32
    assert error(found, expected) <= BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_would_notice_a_dropped_document(
    family: str, loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    found = score(loaded[family], [""] * len(documents()))
    assert error(found, references[family]) > 100 * BOUND


@pytest.mark.parametrize("family", PACKED)
def test_parity_would_notice_shifted_positions(
    family: str, loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    model = loaded[family]
    packed = pack_request(tokenized(model.card, QUERY, documents()))
    shifted = PackedTokens(
        packed.input_ids,
        (packed.position_ids + 1).clamp(max=checkpoints.MAX_TOKENS - 1),
        packed.token_type_ids,
        packed.layout,
    )
    assert error(model.forward(shifted)[:, 0], references[family]) > 100 * BOUND


@pytest.mark.parametrize("family", PACKED)
def test_parity_would_notice_neighbours_leaking(
    family: str,
    directories: dict[str, Path],
    references: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend = CpuOperations.attend

    def leaking(
        self: CpuOperations,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        heads: Heads,
        turns: tuple[Angles, Angles] | None = None,
    ) -> torch.Tensor:
        whole, whole_keys = (Layout.of((sum(layout.lengths),)) for layout in (queries, keys))
        return attend(self, query, key, value, whole, whole_keys, heads, turns)

    monkeypatch.setattr(CpuOperations, "attend", leaking)
    borrowed = load(directories[family])
    assert not isinstance(getattr(borrowed, "body", None), OwnBody)
    assert error(score(borrowed, documents()), references[family]) <= BOUND
    monkeypatch.setattr("rerank_grpc.models.loader.check_own", lambda *_: Agreement(0.0))
    assert error(score(load(directories[family]), documents()), references[family]) > 100 * BOUND


def test_parity_would_notice_padding_leaking(
    loaded: dict[str, Model], references: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = loaded["deberta"]
    network: Callable[..., SimpleNamespace] = model._network

    def leaking(**inputs: Any) -> SimpleNamespace:
        return network(**inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])})

    monkeypatch.setattr(model, "_network", leaking)
    assert error(score(model, documents()), references["deberta"]) > 100 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_every_length_up_to_the_maximum_scores_the_same_alone_and_among_others(
    family: str, loaded: dict[str, Model]
) -> None:
    model = loaded[family]
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 128, 2, 3, 127, 64, 17, 4, 100, 8, 33, 126, 1]
    sequences = [
        (torch.randint(10, 1_000, (length,), generator=generator).tolist(), length // 2) for length in lengths
    ]
    together = model.forward(pack(sequences))
    alone = torch.cat([model.forward(pack([sequence])) for sequence in sequences])
    assert together.std() >= 1
    assert error(alone, together) <= 1e-5
    assert model.card.max_tokens == checkpoints.MAX_TOKENS


@pytest.mark.parametrize("family", PACKED)
def test_bf16_stays_close_and_its_head_computes_in_fp32(
    family: str, directories: dict[str, Path], references: dict[str, torch.Tensor]
) -> None:
    model: Any = load(directories[family], precision="bf16")
    assert model.card.precision == "bf16"
    assert model.body._words.dtype is torch.bfloat16
    assert {weight.dtype for weight in model.head.parameters()} == {torch.float32}
    found = score(model, documents())
    assert found.dtype is torch.float32
    # Weights this wild amplify rounding far beyond a trained model's.
    correlation = torch.corrcoef(torch.stack([found, references[family]]))[0, 1]
    assert correlation > 0.9
    assert error(found, references[family]) > 1e-3


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_a_padded_model_that_is_stored_in_16_bits_scores_as_transformers_does(
    stored: torch.dtype, norm: str, tmp_path: Path
) -> None:
    """As mxbai-rerank's first version is, whose table of relative positions is read without a lookup."""
    path = checkpoints.deberta(tmp_path / "model", norm_rel_ebd=norm)
    weights = load_file(path / "model.safetensors")
    save_file({name: weight.to(stored) for name, weight in weights.items()}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"dtype": str(stored).removeprefix("torch.")}))
    found = score(load(path, precision="fp32"), documents())
    assert error(found, reference(path, documents())) <= BOUND


def test_a_padded_model_in_bf16_keeps_its_head_in_fp32(
    directories: dict[str, Path], references: dict[str, torch.Tensor]
) -> None:
    model: Any = load(directories["deberta"], precision="bf16")
    found = score(model, documents())
    assert {weight.dtype for weight in model._network.classifier.parameters()} == {torch.float32}
    assert torch.corrcoef(torch.stack([found, references["deberta"]]))[0, 1] > 0.9


def test_two_models_in_one_process_do_not_disturb_each_other(
    loaded: dict[str, Model], references: dict[str, torch.Tensor]
) -> None:
    for first, second in pairwise([*FAMILIES, *reversed(FAMILIES)]):
        for family in (first, second):
            assert error(score(loaded[family], documents()), references[family]) <= BOUND


def test_embedded_cosines_equal_those_of_sentence_transformers(embedded: Model) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [text for text in documents() if text] + ["x " * 1_000, "深度学习", "!"]
    theirs = SentenceTransformer(str(embedded.card.tokenizer_file.parent), device="cpu")
    expected = theirs.encode([QUERY], convert_to_tensor=True) @ theirs.encode(texts, convert_to_tensor=True).T
    request = tokenized(embedded.card, QUERY, texts)
    assert request.query == 0
    vectors = embedded.forward(pack([(token_ids(sequence), 0) for sequence in request.sequences]))
    places = [document.chunks[0].sequence for document in request.documents]
    found = vectors[places] @ vectors[request.query]
    assert float((found - expected[0]).abs().max()) <= 1e-5
    assert float(expected.std()) > 0.03
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
