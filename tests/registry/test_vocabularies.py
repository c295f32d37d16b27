"""A large vocabulary is cut down so that what is done to texts before and after it stays the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Kind, Reading
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import ModelCard
from rerank_grpc.registry.probes import DOCUMENTS, QUERY, checked_tokenizer
from rerank_grpc.registry.vocabularies import KEPT, SMALL, cut_down, small_vocabulary
from rerank_grpc.types import Scoring
from tests import random_models as checkpoints

TEXTS = (
    *(QUERY, *DOCUMENTS),
    *("a <mask> b</s>", "x<|im_end|>\n<think>\n\n</think>", "[MASK] [SEP]", "😀 ۞ ᚠ", ""),
)
BACKEND = "PreTrainedTokenizerFast"
# The class that transformers has for each algorithm's best known family.
CLASSES = {"unigram": "XLMRobertaTokenizer", "bpe": "Qwen2Tokenizer", "wordpiece": "BertTokenizer"}
FAMILIES = {"unigram": "xlm-roberta", "bpe": "qwen3", "wordpiece": "bert"}


def unigram() -> dict[str, Any]:
    """XLM-RoBERTa's size: 250,000 pieces, and <mask> behind them."""
    data = json.loads(checkpoints.unigram().to_str())
    data["normalizer"] = None  # as the class has it without SentencePiece's table
    pieces = data["model"]["vocab"]
    pieces += [[f"▁zq{number}", -20 - number * 1e-6] for number in range(250_000 - len(pieces))]
    return moved(data, 250_000)


def bpe() -> dict[str, Any]:
    """Qwen's size: 151,643 tokens with merges, and all its special tokens behind them."""
    data = json.loads(checkpoints.qwen_tokenizer().to_str())
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    for left, right in product(list(vocabulary)[256:], repeat=2):
        if len(vocabulary) == 151_643:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    return moved(data, 151_643)


def wordpiece() -> dict[str, Any]:
    """A multilingual BERT's size, its control tokens at the beginning and one of its user's at the end."""
    data: dict[str, Any] = json.loads(checkpoints.wordpiece().to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary |= {f"zq{number}": number for number in range(len(vocabulary), 105_000)}
    vocabulary["[LAST]"] = 105_000
    data["added_tokens"].append({**data["added_tokens"][0], "id": 105_000, "content": "[LAST]"})
    return data


def moved(data: dict[str, Any], size: int) -> dict[str, Any]:
    """Moves the added tokens that are not in the vocabulary behind it."""
    vocabulary = data["model"]["vocab"]
    pieces = {each[0] for each in vocabulary} if isinstance(vocabulary, list) else vocabulary
    for number, token in enumerate(each for each in data["added_tokens"] if each["content"] not in pieces):
        token["id"] = size + number
    return data


BUILDERS: dict[str, Callable[[], dict[str, Any]]] = {"unigram": unigram, "bpe": bpe, "wordpiece": wordpiece}


@pytest.fixture(scope="module")
def large() -> dict[str, dict[str, Any]]:
    return {name: build() for name, build in BUILDERS.items()}


def write(data: dict[str, Any], path: Path, name: str, tokenizer_class: str, **settings: Any) -> Path:
    """Writes a tokenizer's files as transformers 4 does, with the ids of added tokens among the settings."""
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in data["added_tokens"]
    }
    roles = {
        "unigram": {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"},
        "bpe": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "wordpiece": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    }[name]
    settings = {"added_tokens_decoder": decoder, "tokenizer_class": tokenizer_class} | roles | settings
    (path / "tokenizer.json").write_text(json.dumps(data))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"model_type": FAMILIES[name]}))
    return path / "tokenizer.json"


def card(file: Path, name: str) -> ModelCard:
    return ModelCard(
        source=str(file.parent),
        revision="",
        family=FAMILIES[name],
        scoring=Scoring.SIGMOID,
        kind=Kind.CROSS_ENCODER,
        max_tokens=checkpoints.MAX_TOKENS,
        device="cpu",
        precision="fp32",
        attention=Attention.SDPA,
        tokenizer_file=file,
        reading=Reading(),
    )


def tokenizer_of(data: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(data))


@pytest.mark.parametrize("name", BUILDERS)
def test_added_tokens_stay_with_ids_of_their_own(name: str, large: dict[str, dict[str, Any]]) -> None:
    data, cut = large[name], cut_down(large[name])
    small = tokenizer_of(cut)
    assert KEPT // 2 < small.get_vocab_size() <= KEPT + 400
    assert {token["content"] for token in cut["added_tokens"]} == {
        token["content"] for token in data["added_tokens"]
    }
    for token in cut["added_tokens"]:
        assert small.token_to_id(token["content"]) == token["id"]
        text = f"word{token['content']}word"
        assert token["id"] in small.encode(text, add_special_tokens=False).ids
    assert len(set(small.get_vocab().values())) == small.get_vocab_size()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_template_puts_the_same_tokens_around_texts(name: str, large: dict[str, dict[str, Any]]) -> None:
    before, after = tokenizer_of(large[name]), tokenizer_of(cut_down(large[name]))
    for texts in (("a",), ("a", "b")):
        full, small = before.encode(*texts), after.encode(*texts)
        assert small.tokens == full.tokens
        assert small.type_ids == full.type_ids
        assert small.ids == [after.token_to_id(token) for token in small.tokens]


@pytest.mark.parametrize(("name", "own"), [(name, own) for name in BUILDERS for own in (True, False)])
def test_texts_have_the_tokens_of_the_tokenizers_class(
    name: str, own: bool, large: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    file = write(large[name], tmp_path, name, CLASSES[name] if own else BACKEND)
    with small_vocabulary(file, read_json(file)) as small:
        assert small != file
        read, reference = Tokenizer.from_file(str(small)), AutoTokenizer.from_pretrained(small.parent)
        for text in TEXTS:
            assert read.encode(text).ids == reference(text)["input_ids"], text
            assert read.encode("a", text).ids == reference(["a"], [text])["input_ids"][0], text
    assert not small.exists()


def test_a_piece_for_unknown_characters_is_kept_wherever_it_stands(large: dict[str, dict[str, Any]]) -> None:
    data = json.loads(json.dumps(large["unigram"]))
    unknown = data["model"]["vocab"].pop(data["model"]["unk_id"])
    data["model"] |= {"vocab": [*data["model"]["vocab"], unknown], "unk_id": 249_999}
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] == "<mask>"]
    data["post_processor"] = None
    small = tokenizer_of(cut_down(data))
    assert small.encode("ᚠ").tokens == tokenizer_of(data).encode("ᚠ").tokens
    assert small.encode("ᚠ").ids[-1] == small.token_to_id("<unk>")


def test_letters_of_bytes_are_kept_in_a_vocabulary_by_frequency(large: dict[str, dict[str, Any]]) -> None:
    data = json.loads(json.dumps(large["bpe"]))
    listed = sorted(data["model"]["vocab"], key=lambda token: len(token) == 1)
    data["model"]["vocab"] = {token: number for number, token in enumerate(listed)}
    small, text = tokenizer_of(cut_down(data)), "😀 ۞ ᚠ"
    assert small.decode(small.encode(text).ids) == text


LOWERED = {"type": "Lowercase"}
# Steps of a tokenizer.json that the class does not have, and settings of the class that the file does not.
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unigram": ({"normalizer": LOWERED}, {}),
    "bpe": ({"normalizer": LOWERED}, {}),
    "wordpiece": ({}, {"do_lower_case": False}),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_class_that_reads_texts_in_another_way_is_noticed(
    name: str, large: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    steps, settings = OTHERS[name]
    file = write(large[name] | steps, tmp_path, name, CLASSES[name], **settings)
    with pytest.raises(ModelLoadError, match=r"tokenizer.json gives other tokens than"):
        checked_tokenizer(card(file, name))


def test_a_small_vocabulary_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    checkpoints.wordpiece().save(str(file))
    assert len(json.loads(file.read_bytes())["model"]["vocab"]) < SMALL
    with small_vocabulary(file, read_json(file)) as small:
        assert small == file
