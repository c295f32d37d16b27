"""ModernBERT: windows, rotations and both ways of pooling give transformers' own scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels import cpu
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.causal import WINDOW_ROWS, attend_window
from rerank_grpc.models.base import Model, PackedTokens
from tests import random_models as checkpoints
from tests.conftest import load

LONGEST = 1_024
WINDOW = 64  # each side sees half of it
BOUND = 1e-5


def write(path: Path, pooling: str, **changes: Any) -> Path:
    """Writes a ModernBERT with one label whose window is far smaller than its sequences."""
    config = transformers.ModernBertConfig(
        vocab_size=checkpoints.VOCABULARY,
        hidden_size=64,
        num_hidden_layers=6,
        max_position_embeddings=LONGEST,
        local_attention=WINDOW,
        **checkpoints.MODERNBERT | changes | {"classifier_pooling": pooling, "num_labels": 1},
    )
    torch.manual_seed(0)
    network = transformers.ModernBertForSequenceClassification(config).eval()
    with torch.no_grad():
        network.classifier.weight *= 6
    network.save_pretrained(path)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=checkpoints.byte_level(),
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["mean", "cls"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("modernbert") / request.param, request.param)


def sequences() -> list[list[int]]:
    """From one token to the longest, several of them beyond the window and the block."""
    generator = torch.Generator().manual_seed(3)
    lengths = [5, WINDOW // 2, WINDOW, 200, WINDOW_ROWS, WINDOW_ROWS + 1, 700, LONGEST, 1]
    return [torch.randint(10, 1_900, (length,), generator=generator).tolist() for length in lengths]


def pack(batch: list[list[int]]) -> PackedTokens:
    ids = torch.tensor([token for sequence in batch for token in sequence])
    places = torch.tensor([place for sequence in batch for place in range(len(sequence))])
    return PackedTokens(ids, places, torch.zeros_like(ids), Layout.of(tuple(map(len, batch))))


def reference(directory: Path, batch: list[list[int]]) -> torch.Tensor:
    """Transformers' own logits, padded, in fp32."""
    network: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    longest = max(map(len, batch))
    ids = torch.tensor([sequence + [1] * (longest - len(sequence)) for sequence in batch])
    mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in batch])
    with torch.inference_mode():
        logits: torch.Tensor = network(input_ids=ids, attention_mask=mask).logits[:, 0]
    return logits


def test_logits_beyond_the_window_equal_those_of_transformers(directory: Path) -> None:
    model, expected = load(directory), reference(directory, sequences())
    assert expected.std() >= 1, "scores this close together would prove nothing"
    assert (model.card.family, model.card.attention) == ("modernbert", Attention.SDPA)
    found = model.forward(pack(sequences()))[:, 0]
    assert float((found - expected).abs().max() / expected.std()) <= BOUND


def test_ignoring_the_window_would_be_noticed(directory: Path) -> None:
    model: Any = load(directory)
    expected = reference(directory, sequences())
    assert model.body.windows == [WINDOW // 2 + 1] * 4
    with model.body.narrowed(-LONGEST):
        found = model.forward(pack(sequences()))[:, 0]
    assert float((found - expected).abs().max() / expected.std()) > 100 * BOUND


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 7e-2), ("int8", 2e-1)])
def test_few_bits_round_within_their_bounds(
    directory: Path, precision: str, bound: float, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(cpu, "kernels", lambda: None)  # as without a compiler
    model: Any = load(directory, precision=precision)
    expected = reference(directory, sequences())
    found = model.forward(pack(sequences()))[:, 0]
    assert float((found - expected).square().mean().sqrt() / expected.std()) <= bound
    with model.body.narrowed(LONGEST):
        found = model.forward(pack(sequences()))[:, 0]
    assert float((found - expected).square().mean().sqrt() / expected.std()) > 1.5 * bound


def test_each_sequence_scores_the_same_alone_and_among_others(directory: Path) -> None:
    model: Model = load(directory)
    together = model.forward(pack(sequences()))
    alone = torch.cat([model.forward(pack([sequence])) for sequence in sequences()])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_bf16_keeps_the_rotations_and_the_head_in_fp32(directory: Path) -> None:
    model: Any = load(directory, precision="bf16")
    assert model.body._words.dtype is torch.bfloat16
    assert {each.dtype for each in model.body._frequencies.values()} == {torch.float32}
    assert {weight.dtype for weight in model.head.parameters()} == {torch.float32}
    found, expected = model.forward(pack(sequences()))[:, 0], reference(directory, sequences())
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9


@pytest.mark.parametrize(
    "length", [1, 64, 65, WINDOW_ROWS - 1, WINDOW_ROWS, WINDOW_ROWS + 1, 3 * WINDOW_ROWS + 7]
)
@pytest.mark.parametrize("window", [1, 2, 65, 1_000])
def test_windows_computed_in_blocks_equal_one_large_mask(length: int, window: int) -> None:
    torch.manual_seed(length)
    query, key, value = torch.randn(3, 1, 2, length, 8).unbind(0)
    places = torch.arange(length)
    near = (places[:, None] - places[None]).abs() < window
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=near)
    torch.testing.assert_close(attend_window(query, key, value, None, window), expected, atol=1e-5, rtol=1e-5)


def test_what_the_catalogue_knows_otherwise_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "gte-reranker-modernbert-base", "cls")
    for source in ("gte-reranker-modernbert-base", "Alibaba-NLP/gte-reranker-modernbert-base"):
        with pytest.raises(ModelLoadError, match=r"its pooling is first, and Alibaba-NLP.* has mean"):
            load(source, models_dir=tmp_path)
    write(tmp_path / "gte-reranker-modernbert-base", "mean")
    card = load("GTE-reranker-modernbert-base", models_dir=tmp_path).card
    assert card.max_tokens == LONGEST
