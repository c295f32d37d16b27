"""The short way through the tokenizer gives ASCII texts the tokens that the long one gives."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from rerank_grpc.checkpoints.lookup import find_package
from rerank_grpc.tokenizer.shortcuts import AsciiTokenizer, ascii_tokenizer
from rerank_grpc.tokenizer.vocabulary import read_tokenizer
from tests import random_models as checkpoints


def unigram_like_bge() -> Tokenizer:
    """One whose later normalizers look at more than one character."""
    tokenizer = checkpoints.unigram()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("  ", " "), normalizers.Strip()]
    )
    return tokenizer


def unigram_with_spaces_joined() -> Tokenizer:
    """One whose later normalizers leave words with one space between them as they are."""
    tokenizer = checkpoints.unigram()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    return tokenizer


def unigram_with_a_written_pattern() -> Tokenizer:
    """One that replaces the four characters of a pattern, where others replace what it stands for."""
    tokenizer = checkpoints.unigram()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(r"\s+", " ")])
    return tokenizer


def unigram_marked_by_ascii() -> Tokenizer:
    """One whose mark is a character of texts."""
    tokenizer = checkpoints.unigram()
    marking = pre_tokenizers.Metaspace("_", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marking])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": checkpoints.wordpiece,
    "unigram": checkpoints.unigram,
    "unigram like bge's": unigram_like_bge,
    "unigram with spaces joined": unigram_with_spaces_joined,
    "unigram with a written pattern": unigram_with_a_written_pattern,
    "unigram marked by ASCII": unigram_marked_by_ascii,
    "byte level with NFC": checkpoints.qwen_tokenizer,
}


@pytest.fixture(params=KINDS)
def short(request: pytest.FixtureRequest) -> AsciiTokenizer:
    found = ascii_tokenizer(KINDS[request.param]())
    assert found.short is not found.whole
    return found


def hostile() -> list[str]:
    """Every ASCII character alone and between letters, and random strings of them."""
    chance = random.Random(3)
    single = [chr(code) for code in range(128)]
    strings = ["".join(chance.choices(single, k=chance.randrange(40))) for _ in range(2_000)]
    spaced = ["".join(chance.choices(" \t\n\r\0aZ.", k=chance.randrange(12))) for _ in range(2_000)]
    return ["", *single, *(f"Ab{character}Cd" for character in single), *strings, *spaced]


def test_texts_of_all_kinds_get_the_tokens_of_the_long_way(short: AsciiTokenizer) -> None:
    texts = [
        *checkpoints.texts()[:200],
        *hostile(),
        r"a \s+ b",
        "a _b",
        "a __init__ b",
        "naïve café",
        "中文 and English",
        "Ⅷ ﬁne",
        "e\u0301",
    ]
    expected = short.whole.encode_batch_fast(texts, add_special_tokens=False)
    found = short.encode_batch(texts)
    assert [each.ids for each in found] == [each.ids for each in expected]


def test_a_wrong_table_is_noticed(short: AsciiTokenizer) -> None:
    wrong = AsciiTokenizer(short.whole, short.short, {**short.table, ord("e"): "a"})
    texts = checkpoints.texts()[:50]
    expected = short.whole.encode_batch_fast(texts, add_special_tokens=False)
    assert [each.ids for each in wrong.encode_batch(texts)] != [each.ids for each in expected]


def test_only_texts_of_which_the_table_tells_all_go_the_short_way(short: AsciiTokenizer) -> None:
    short.whole.normalizer = normalizers.Replace("x", "y")  # the long way shows itself
    for text, is_short in (("x", True), ("x\r\n", False), ("x é", False)):
        (found,) = short.encode_batch([text])
        (whole,) = short.whole.encode_batch_fast([text], add_special_tokens=False)
        assert (found.ids != whole.ids) is is_short


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        normalizers.Prepend("_"),
        normalizers.Sequence([normalizers.Replace("ab", "c"), normalizers.Lowercase()]),
    ],
    ids=["none", "one that looks further", "one that looks further first"],
)
def test_a_tokenizer_whose_first_normalizer_looks_further_has_no_short_way(
    normalizer: normalizers.Normalizer | None,
) -> None:
    tokenizer = checkpoints.wordpiece()
    tokenizer.normalizer = normalizer
    found = ascii_tokenizer(tokenizer)
    assert found.short is found.whole is tokenizer
    texts = ["", "ab xy", "a\r\nb", "naïve", *hostile()]
    expected = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    assert [each.ids for each in found.encode_batch(texts)] == [each.ids for each in expected]


@pytest.mark.parametrize(
    ("kind", "spaced"),
    [
        ("wordpiece", False),
        ("unigram", True),
        ("unigram like bge's", False),
        ("unigram with spaces joined", True),
    ],
)
def test_words_are_split_the_short_way_where_marking_them_is_all_that_is_left(
    kind: str, spaced: bool
) -> None:
    assert ascii_tokenizer(KINDS[kind]()).spaced is spaced


@pytest.mark.parametrize(
    "marking",
    [
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
        pre_tokenizers.Metaspace("_", prepend_scheme="always"),
    ],
    ids=["first", "never", "no split", "a mark that texts hold"],
)
def test_words_are_split_the_long_way_where_marking_them_does_not_split(
    marking: pre_tokenizers.Metaspace,
) -> None:
    tokenizer = checkpoints.unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marking])
    assert not ascii_tokenizer(tokenizer).spaced


def test_the_embedded_model_takes_the_short_way() -> None:
    package = find_package()
    assert package is not None
    batches = read_tokenizer(package / "tokenizer.json").vocabulary().batches
    assert batches.short is not batches.whole


def test_a_tokenizer_with_words_of_its_users_takes_the_long_way(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer = checkpoints.wordpiece()
    tokenizer.add_tokens(["RAG"])
    tokenizer.save(str(path))
    batches = read_tokenizer(path).vocabulary().batches
    assert batches.short is batches.whole
