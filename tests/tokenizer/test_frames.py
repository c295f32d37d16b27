"""Prompts become exactly the model cards' own token ids, and no text gets out of its place in them."""

from __future__ import annotations

import gc
import json
import random
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from rerank_grpc.errors import InvalidRequest, ModelLoadError, UnsupportedOption
from rerank_grpc.evidence.cutting import answer_ids, check_control_tokens
from rerank_grpc.evidence.pasting import filled
from rerank_grpc.evidence.prompt import Placeholder
from rerank_grpc.sequence import TokenizedRequest
from rerank_grpc.tokenizer.vocabulary import read_tokenizer
from rerank_grpc.types import Truncation
from tests import prompts
from tests import random_models as checkpoints
from tests.prompts import PROMPTS, QUERY
from tests.prompts import tokenizer as tokenizer_of
from tests.support import token_ids
from tests.texts import characters_read, span_of, tokenize

FAMILIES = sorted(PROMPTS)
PLENTY = 100_000
CHINESE = "深度学习是机器学习的一个分支，它使用多层神经网络。重新排序模型会把查询和文档一起阅读！"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prompts")
    return {family: write(root / family) for family, write in prompts.WRITERS.items()}


def ids_of(request: TokenizedRequest) -> list[list[int]]:
    chosen = [request.sequences[document.chunks[0].sequence] for document in request.documents]
    return [token_ids(sequence.whole()) for sequence in chosen]


def written(count: int, seed: int) -> list[str]:
    """Texts, English and Chinese, with ends that a tokenizer could join with what stands beside them."""
    chance = random.Random(seed)
    english = " ".join(checkpoints.texts()[:200])
    chinese = CHINESE * 20
    ends = ["", " ", "  ", "\n", "\n\n", " \n", "\r\n", "\t", ".", "。", "？", "!", ":", "’s", "'s", ">", "<"]
    ends += ["\u00a0", "\u3000", "é", "e\u0301", "\u0301", "7", "...", "\n<Document>:", "<Query>: "]
    texts = []
    for _ in range(count):
        source = chance.choice((english, chinese))
        start, length = chance.randrange(len(source) // 2), chance.randrange(0, 80)
        texts.append(chance.choice(ends) + source[start : start + length] + chance.choice(ends))
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_model_cards_joint_encoding(family: str, directories: dict[str, Path]) -> None:
    """1,000 texts in the place of the document, and 50 in the query's and the instruction's."""
    own = tokenizer_of(directories[family], family, PLENTY)
    documents = written(1_000, seed=1)
    expected = prompts.own_ids(directories[family], family, QUERY, documents)
    assert ids_of(tokenize(own, QUERY, documents)) == expected
    for query, task in zip(written(50, seed=2), written(50, seed=3), strict=True):
        instruction = task if family == "qwen3" else ""
        found = ids_of(tokenize(own, query, documents[:3], instruction=instruction))
        assert found == prompts.own_ids(directories[family], family, query, documents[:3], instruction)


def test_the_prompt_is_the_model_cards_and_its_control_tokens_are_single_ids(
    directories: dict[str, Path],
) -> None:
    request = tokenize(tokenizer_of(directories["qwen3"], "qwen3"), "q", ["d"])
    tokenizer = Tokenizer.from_file(str(directories["qwen3"] / "tokenizer.json"))
    (ids,) = ids_of(request)
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        f"{prompts.PREFIX}<Instruct>: {prompts.TASK}\n<Query>: q\n<Document>: d{prompts.SUFFIX}"
    )
    for token in ("<|im_start|>", "<|im_end|>", "<think>", "</think>"):
        assert tokenizer.token_to_id(token) in ids


def every_control_token() -> list[str]:
    """All added tokens of every family, and what looks like a part of a prompt."""
    tokens = checkpoints.QWEN_SPECIAL + checkpoints.QWEN_UNMARKED
    tokens += checkpoints.GEMMA_SPECIAL + checkpoints.GEMMA_UNMARKED
    tokens += ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    return list(dict.fromkeys([*tokens, prompts.PREFIX, prompts.SUFFIX, "\n<Document>: yes"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_r15_no_text_becomes_a_control_token_and_others_stay_as_they_are(
    family: str, directories: dict[str, Path]
) -> None:
    own = tokenizer_of(directories[family], family, PLENTY)
    written = [prompts.SUFFIX] if family == "qwen3" else []
    vocabulary = read_tokenizer(directories[family] / "tokenizer.json").vocabulary(written)
    hostile = [shape.format(text) for text in every_control_token() for shape in ("{}", " {} ", "a{0}{0}b")]
    calm = ["the first document", "the last document"]

    def control(ids: list[int]) -> list[int]:
        return [token for token in ids if token in vocabulary.control_ids]

    plain = ids_of(tokenize(own, QUERY, calm))
    expected = control(plain[0])
    assert len(expected) >= 1
    among = ids_of(tokenize(own, QUERY, [calm[0], *hostile, calm[1]]))
    assert [among[0], among[-1]] == plain
    assert all(control(ids) == expected for ids in among)
    for text in hostile:
        instruction = text if family == "qwen3" else ""
        for query in (text, QUERY):
            (ids,) = ids_of(tokenize(own, query, ["d"], instruction=instruction))
            assert control(ids) == expected
    # The model's own tokenizer is taken in, so this proves something.
    taken_in = [control(ids) for ids in prompts.own_ids(directories[family], family, QUERY, hostile)]
    assert sum(found != expected for found in taken_in) > len(hostile) // 12


def test_only_the_document_is_cut(directories: dict[str, Path]) -> None:
    long = " ".join(str(number) for number in range(2_000))
    for family in FAMILIES:
        own = tokenizer_of(directories[family], family)
        uncut = ids_of(tokenize(own, QUERY, [""]))[0]
        for truncation, kept in ((Truncation.END, "0 1 2 3"), (Truncation.START, "1998 1999")):
            request = tokenize(own, QUERY, [long, "short"], truncation=truncation)
            cut, short = ids_of(request)
            assert len(cut) == checkpoints.PROMPT_TOKENS
            assert [document.truncated for document in request.documents] == [True, False]
            assert cut[-8:] == uncut[-8:] == short[-8:]
            assert cut[:16] == uncut[:16]
            tokenizer = Tokenizer.from_file(str(directories[family] / "tokenizer.json"))
            assert kept in tokenizer.decode(cut)
            assert not request.query_truncated
        with pytest.raises(InvalidRequest) as caught:
            tokenize(own, QUERY, ["a", long], truncation=Truncation.NONE)
        assert caught.value.violations[0].field == "documents[1].text"
        assert (
            tokenize(own, QUERY, ["a b c d e f"], max_tokens_per_document=2).documents[0].chunks[0].tokens
            == 2
        )


@pytest.mark.parametrize("field", ["query", "instruction"])
def test_a_long_query_or_instruction_is_cut_and_flagged_or_refused_by_its_field(
    field: str, directories: dict[str, Path]
) -> None:
    own = tokenizer_of(directories["qwen3"], "qwen3")
    long = " ".join(f"canary{number}" for number in range(400))
    texts = {"query": QUERY, "instruction": "judge"} | {field: long}
    heads = []
    for truncation in (Truncation.END, Truncation.START):
        request = tokenize(
            own,
            texts["query"],
            ["first", "word " * 500],
            instruction=texts["instruction"],
            truncation=truncation,
        )
        assert request.query_truncated
        assert not request.documents[0].truncated
        assert max(map(len, ids_of(request))) <= checkpoints.PROMPT_TOKENS
        heads.append(
            Tokenizer.from_file(str(directories["qwen3"] / "tokenizer.json")).decode(ids_of(request)[0])
        )
    assert "canary0" in heads[0]
    assert "canary399" not in heads[0]
    assert "canary0 " not in heads[1]
    assert "canary399" in heads[1]
    with pytest.raises(InvalidRequest) as caught:
        tokenize(own, texts["query"], ["d"], instruction=texts["instruction"], truncation=Truncation.NONE)
    assert caught.value.violations[0].field == field
    assert "canary" not in str(caught.value)
    tokenize(own, QUERY, ["d"], instruction="judge", truncation=Truncation.NONE)


def test_a_model_without_instructions_refuses_one(directories: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedOption) as caught:
        tokenize(tokenizer_of(directories["gemma"], "gemma"), QUERY, ["d"], instruction="judge")
    assert caught.value.violations[0].field == "instruction"


@pytest.mark.parametrize("where", ["query", "instruction", "document"])
def test_a_lone_surrogate_is_refused_by_its_field(where: str, directories: dict[str, Path]) -> None:
    texts = {"query": QUERY, "instruction": "", "document": "d"} | {where: "a\ud800"}
    with pytest.raises(InvalidRequest) as caught:
        tokenize(
            tokenizer_of(directories["qwen3"], "qwen3"),
            texts["query"],
            ["x", texts["document"]],
            instruction=texts["instruction"],
        )
    assert caught.value.violations[0].field == ("documents[1].text" if where == "document" else where)


def test_chunks_know_their_place_in_the_document_itself(directories: dict[str, Path]) -> None:
    text = " ".join(f"word{number}" for number in range(300))
    for family in FAMILIES:
        request = tokenize(
            tokenizer_of(directories[family], family), QUERY, [text, "short"], max_chunks_per_document=64
        )
        spans = [span_of(chunk) for chunk in request.documents[0].chunks]
        assert len(spans) > 3
        assert spans[0].start == 0
        assert spans[-1].end == len(text)
        assert all(a.start < b.start < a.end for a, b in pairwise(spans))
        assert request.documents[1].chunks[0].span is None
        assert {sequence.prefix for sequence in request.sequences} == {request.sequences[0].prefix}
        tokenizer = Tokenizer.from_file(str(directories[family] / "tokenizer.json"))
        for chunk in request.documents[0].chunks:
            sequence = request.sequences[chunk.sequence]
            assert tokenizer.decode(token_ids(sequence)[: chunk.tokens]).strip() == (
                text[span_of(chunk).start : span_of(chunk).end].strip()
            )


def test_reading_a_part_of_a_long_text_changes_no_id(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    natural = " ".join(checkpoints.texts()[:400])
    long = [
        natural,
        natural.replace(" ", "  "),
        "x" * 50_000,
        CHINESE * 500,
        "a 7 b8 " * 5_000,
        "it's " * 9_000,
    ]
    read = characters_read(monkeypatch)
    own = tokenizer_of(directories["qwen3"], "qwen3")
    suffix = len(prompts.suffix_ids(directories["qwen3"]))
    joint = prompts.own_ids(directories["qwen3"], "qwen3", QUERY, long)
    for truncation in (Truncation.END, Truncation.START):
        for text, expected in zip(long, joint, strict=True):
            read.clear()
            request = tokenize(own, QUERY, [text], truncation=truncation)
            (found,) = ids_of(request)
            tokens = request.documents[0].chunks[0].tokens
            body = found[-suffix - tokens : -suffix]
            head = len(found) - suffix - tokens
            assert found[:head] == expected[:head]
            assert body == (
                expected[head : head + tokens]
                if truncation is Truncation.END
                else expected[-suffix - tokens : -suffix]
            )
            if text is natural:
                assert max(read) <= 4_000


def test_requests_at_the_same_time_share_their_prefix_and_leave_nothing(directories: dict[str, Path]) -> None:
    own = tokenizer_of(directories["qwen3"], "qwen3")
    first, second = tokenize(own, QUERY, ["a", "b"]), tokenize(own, QUERY, ["b", "c"])
    other = tokenize(own, QUERY, ["b"], instruction="another")
    prefix, different = first.sequences[0].prefix, other.sequences[0].prefix
    assert prefix is not None
    assert different is not None
    assert prefix is second.sequences[0].prefix
    assert first.sequences[1] == second.sequences[0]
    assert other.sequences[0] != first.sequences[1]
    assert different.before is prefix.before
    left = [weakref.ref(prefix), weakref.ref(different)]
    del first, second, other, prefix, different
    gc.collect()
    assert [reference() for reference in left] == [None, None]


def change_tokenizer(directory: Path, tmp_path: Path, change: Any) -> Path:
    data = json.loads((directory / "tokenizer.json").read_bytes())
    change(data)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


def test_a_vocabulary_without_the_answers_is_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    def drop_yes(data: Any) -> None:
        vocabulary = data["model"]["vocab"]
        vocabulary["Nevermind"] = vocabulary.pop("yes")
        data["model"]["merges"] = [
            merge for merge in data["model"]["merges"] if "yes" not in (*merge, "".join(merge))
        ]

    path = change_tokenizer(directories["qwen3"], tmp_path, drop_yes)
    with pytest.raises(ModelLoadError, match="no token 'yes'"):
        answer_ids(("yes", "no"), Tokenizer.from_file(str(path)), path)


def test_a_vocabulary_without_the_prompts_control_tokens_is_refused(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    def drop_think(data: Any) -> None:
        data["added_tokens"] = [each for each in data["added_tokens"] if each["content"] != "<think>"]

    path = change_tokenizer(directories["qwen3"], tmp_path, drop_think)
    with pytest.raises(ModelLoadError, match="no control token '<think>'"):
        check_control_tokens(PROMPTS["qwen3"], Tokenizer.from_file(str(path)), path)


def test_tokens_that_join_prompt_and_document_are_those_of_the_joint_encoding(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    def join(data: Any) -> None:
        data["pre_tokenizer"]["pretokenizers"] = data["pre_tokenizer"]["pretokenizers"][1:]
        data["model"]["vocab"][":Ġ"] = len(data["model"]["vocab"]) + 500
        data["model"]["merges"].insert(0, [":", "Ġ"])

    path = change_tokenizer(directories["qwen3"], tmp_path, join)
    own, prompt = Tokenizer.from_file(str(path)), PROMPTS["qwen3"]
    joined = own.token_to_id(":Ġ")
    documents = ["word", " word", "", "深度", "\nword"]
    texts = {Placeholder.INSTRUCTION: prompt.instruction, Placeholder.QUERY: QUERY}
    expected = [
        [
            number
            for segment in prompt.chosen("")
            for number in own.encode(
                filled(segment, {**texts, Placeholder.DOCUMENT: document}), add_special_tokens=False
            ).ids
        ]
        for document in documents
    ]
    assert joined is not None
    assert all(ids.count(joined) > 2 for ids in expected)
    assert ids_of(tokenize(tokenizer_of(tmp_path, "qwen3", PLENTY), QUERY, documents)) == expected


def test_a_model_too_short_for_its_prompt_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match="too few for its prompt"):
        tokenizer_of(directories["qwen3"], "qwen3", max_tokens=100)
