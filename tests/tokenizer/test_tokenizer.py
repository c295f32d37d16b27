"""Texts become exactly the model's own token ids, never a control token, and no more of them than fit."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from rerank_grpc.checkpoints.lookup import find_package
from rerank_grpc.errors import InternalError, InvalidRequest, ModelLoadError, UnsupportedOption
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import ModelCard
from rerank_grpc.sequence import Chunk, TokenizedRequest
from rerank_grpc.tokenizer.frames import PlainFraming
from rerank_grpc.tokenizer.tokenizer import Tokenizer, tokenizer_for
from rerank_grpc.tokenizer.vocabulary import Vocabulary, read_tokenizer
from rerank_grpc.types import Scoring, Truncation
from tests import random_models as checkpoints
from tests.support import token_ids
from tests.texts import characters_read, span_of, tokenize

QUERY = "what does the with statement do?"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": checkpoints.bert,
    "roberta": checkpoints.roberta,
    "xlm-roberta": checkpoints.xlm_roberta,
}
FAMILIES = [*WRITERS, "embedded"]
MAX_TOKENS = checkpoints.MAX_TOKENS


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    embedded = find_package()
    assert embedded is not None
    return {family: write(root / family) for family, write in WRITERS.items()} | {"embedded": embedded}


def card(directory: Path, family: str = "bert", **changes: Any) -> ModelCard:
    plain = ModelCard(
        source=str(directory),
        revision="",
        family=family,
        scoring=Scoring.SIGMOID,
        kind=Kind.CROSS_ENCODER,
        max_tokens=MAX_TOKENS,
        device="cpu",
        precision="fp32",
        attention=Attention.SDPA,
        tokenizer_file=directory / "tokenizer.json",
    )
    return replace(plain, **changes)


def pair_tokenizer(directory: Path, **changes: Any) -> Tokenizer:
    return tokenizer_for(card(directory, **changes))


def text_tokenizer(directory: Path, **changes: Any) -> Tokenizer:
    return tokenizer_for(card(directory, kind=Kind.BI_ENCODER, **changes))


def plain_tokenizer(vocabulary: Vocabulary, *, pairs: bool) -> Tokenizer:
    return Tokenizer(PlainFraming(vocabulary, MAX_TOKENS, pairs=pairs))


def ids_of(request: TokenizedRequest) -> list[list[int]]:
    return [token_ids(request.sequences[document.chunks[0].sequence]) for document in request.documents]


def ordinary() -> list[str]:
    """Natural texts, and what stands at the ends and between words in others."""
    natural = checkpoints.texts()[:300]
    chinese = [
        "深度学习是机器学习的一个分支。",
        "他说：“你好，世界！”",
        "北京  上海\n广州\t深圳",
        "，开头的标点",
    ]
    ends = [
        natural[0] + end for end in (".", "?", "!)", "...", "\n", "  ", "\t\n", "\u3000", "\u00a0", "\r\n")
    ]
    starts = [start + natural[1] for start in (" ", "\n\n", "    ", "(", "—", "\u200b", "\ufeff")]
    odd = [
        "",
        " ",
        "\n",
        "\x00",
        "a",
        "é",
        "e\u0301",
        "ﬁ",
        "½",
        "👩‍👩‍👧",
        "नमस्ते",
        "ภาษาไทย",
        "ΑΣ ς",
        "İI",
        "\uffff",
        "x" * 150,
    ]
    return natural + chinese + ends + starts + odd


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_texts_become_the_ids_of_the_models_own_tokenizer(
    family: str, directories: dict[str, Path]
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[family])
    documents = ordinary()
    expected = tokenizer(
        [QUERY] * len(documents),
        documents,
        truncation="only_second",
        max_length=MAX_TOKENS,
        return_token_type_ids=True,
    )
    request = tokenize(pair_tokenizer(directories[family]), QUERY, documents)
    assert ids_of(request) == expected["input_ids"]
    splits = {sequence.segment_start for sequence in request.sequences}
    assert {types.index(1) if 1 in types else 0 for types in expected["token_type_ids"]} == splits


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_become_the_ids_of_the_models_own_tokenizer(
    family: str, directories: dict[str, Path]
) -> None:
    upstream = transformers.AutoTokenizer.from_pretrained(directories[family])
    tokenizer = text_tokenizer(directories[family])
    for query in ordinary():
        expected = upstream(query, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        assert token_ids(tokenize(tokenizer, query, []).sequences[0]) == expected


def control_texts(directory: Path) -> list[str]:
    """Every control token as written, alone and among others, and in forms that normalize to it."""
    data = json.loads((directory / "tokenizer.json").read_bytes())
    tokens = [token["content"] for token in data["added_tokens"] if token["special"]]
    assert len(tokens) >= 5
    wide = [token.replace("<", "＜").replace(">", "＞") for token in tokens]
    shapes = ["{}", " {} ", "word {} word", "word{}word", "{0}{0}{0}", "\n{}", "▁{}", "{} {}"]
    return [shape.format(token, token) for token in tokens + wide for shape in shapes] + ["".join(tokens)]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_becomes_a_control_token(family: str, directories: dict[str, Path]) -> None:
    directory = directories[family]
    tokenizer, vocabulary = (
        pair_tokenizer(directory),
        read_tokenizer(directory / "tokenizer.json").vocabulary(),
    )
    hostile = control_texts(directory)
    template = vocabulary.pair
    for query in [QUERY, *hostile]:
        request = tokenize(tokenizer, query, hostile)
        for ids in ids_of(request):
            assert len([token for token in ids if token in vocabulary.control_ids]) == template.overhead
    # The model's own tokenizer is taken in by the same texts, so this proves something.
    upstream = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    upstream.no_padding()
    taken_in = upstream.encode_batch(hostile, add_special_tokens=False)
    assert (
        sum(not vocabulary.control_ids.isdisjoint(encoding.ids) for encoding in taken_in) >= len(hostile) // 2
    )


def test_a_piece_of_a_unigram_vocabulary_is_hidden_though_it_is_no_added_token(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    """Turning added tokens off is not enough: "</s>" is a piece as well."""
    data = json.loads((directories["xlm-roberta"] / "tokenizer.json").read_bytes())
    data["added_tokens"] = []
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    assert 2 in tokenizers.Tokenizer.from_file(str(path)).encode("</s>", add_special_tokens=False).ids
    assert 2 not in read_tokenizer(path).vocabulary().tokenizer.encode("</s>").ids


def test_a_prompts_control_tokens_are_hidden_and_its_users_tokens_kept(tmp_path: Path) -> None:
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens(["<think>", "</think>", "<mine>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    vocabulary = read_tokenizer(path).vocabulary(["<think>    </think>\n"])
    think, mine = tokenizer.token_to_id("<think>"), tokenizer.token_to_id("<mine>")
    ids = vocabulary.tokenizer.encode("<think> <mine>    ").ids
    assert think not in ids
    assert think in vocabulary.control_ids
    assert mine in ids
    assert tokenizer.token_to_id("    ") in ids
    assert think in read_tokenizer(path).vocabulary().tokenizer.encode("<think>").ids


def test_merges_that_spell_a_control_token_are_left_out(tmp_path: Path) -> None:
    vocabulary = {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4, "a": 5, "as": 6}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("<", "s"), ("<s", ">"), ("a", "s")])
    )
    tokenizer.add_special_tokens(["<s>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert tokenizer.encode("<s>").ids == [4]
    assert read_tokenizer(path).vocabulary().tokenizer.encode("<s>as").ids == [3, 2, 6]


def test_a_control_token_in_spite_of_all_is_an_internal_error(
    directories: dict[str, Path],
) -> None:
    vocabulary = read_tokenizer(directories["bert"] / "tokenizer.json").vocabulary()
    word = vocabulary.tokenizer.encode("text", add_special_tokens=False).ids[0]
    vocabulary.is_control[word] = True
    tokenizer = plain_tokenizer(replace(vocabulary, control_ids=frozenset([word])), pairs=True)
    for count in (1, 1_000):  # few tokens are looked at one by one, many by NumPy
        with pytest.raises(InternalError):
            tokenize(tokenizer, QUERY, [f"{number} text" for number in range(count)])


def nasty() -> list[str]:
    """Long texts in which a cut in the wrong place would show."""
    natural = " ".join(checkpoints.texts()[:400])
    random_words = random.Random(5)
    alphabet = [
        "a",
        "B",
        " ",
        "  ",
        "\n",
        "é",
        "e\u0301",
        "深",
        "👩‍👩‍👧",
        "½",
        "\u3000",
        "ﾞ",
        ".",
        "</s>",
        "Ж",
        "ς",
        "١",
    ]
    return [
        natural,
        "x" * 100_000,
        "long" * 2_000 + " " + natural,
        natural[:3_000] + " " + "y" * 50_000,
        " " * 60_000,
        " " * 50_000 + natural,
        natural[:9_000] + " " * 50_000,
        "👩‍👩‍👧" * 8_000,
        "深度学习" * 8_000,
        "e\u0301" * 8_000,
        "a " * 40_000,
        "a \u0301" * 8_000,
        "\n" * 60_000,
        natural.replace(" ", "\u00a0"),
        natural.replace(" ", "  "),
        "word " + "." * 60_000,
        *("".join(random_words.choices(alphabet, k=8_000)) for _ in range(6)),
    ]


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_a_part_of_a_long_text_changes_no_id(
    family: str, truncation: Truncation, directories: dict[str, Path]
) -> None:
    vocabulary = read_tokenizer(directories[family] / "tokenizer.json").vocabulary()
    tokenizer, whole = plain_tokenizer(vocabulary, pairs=False), vocabulary.tokenizer
    request = tokenize(tokenizer, QUERY, nasty(), truncation=truncation)
    for text, document, found in zip(nasty(), request.documents, ids_of(request), strict=True):
        expected = whole.encode(text, add_special_tokens=False).ids
        room = MAX_TOKENS - 2
        assert document.truncated == (len(expected) > room)
        assert found[1:-1] == (expected[:room] if truncation is Truncation.END else expected[-room:])
        assert document.chunks[0].tokens == min(len(expected), room)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_natural_text_is_not_read_beyond_what_the_model_sees(
    family: str, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = characters_read(monkeypatch)
    tokenize(pair_tokenizer(directories[family]), QUERY, [" ".join(checkpoints.texts())[:100_000]])
    assert max(read) <= 2_000


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_texts_cost_time_in_proportion_to_their_length(
    family: str, directories: dict[str, Path]
) -> None:
    tokenizer = pair_tokenizer(directories[family])

    def seconds(text: str) -> float:
        start = time.process_time()  # not the clock: other processes may be busy
        tokenize(tokenizer, QUERY, [text])
        return time.process_time() - start

    for unit in ("x", " ", "深", "a ", "e\u0301", "."):
        short = long = math.inf
        for _ in range(6):  # what else ran on the processor costs some of them time
            short = min(short, seconds(unit * (100_000 // len(unit))))
            long = min(long, seconds(unit * (200_000 // len(unit))))
            if long <= min(0.4, 2.5 * short + 0.05):
                break
        assert long <= 0.4
        assert long <= 2.5 * short + 0.05


def test_a_long_query_is_cut_only_by_what_the_pair_does_not_fit(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    words = " ".join(str(number % 10) for number in range(100))
    room = MAX_TOKENS - 3
    request = tokenize(tokenizer, words, ["1 " * 10, "1 " * 40, "1 " * 300])
    assert [chunk.tokens for document in request.documents for chunk in document.chunks] == [10, 40, 63]
    assert [len(ids) for ids in ids_of(request)] == [113, MAX_TOKENS, MAX_TOKENS]
    assert [document.truncated for document in request.documents] == [False, False, True]
    assert request.query_truncated
    assert not tokenize(tokenizer, words, ["1 " * (room - 100)]).query_truncated
    assert tokenize(tokenizer, words, ["1 " * (room - 99)]).query_truncated


def test_a_query_up_to_half_is_read_once_and_never_cut(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    for count, cut in ((62, False), (63, True)):
        request = tokenize(tokenizer, "1 " * count, ["1 " * 300])
        assert request.query_truncated == cut
        assert request.documents[0].chunks[0].tokens == 63


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [48, 49])
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_cut_as_the_tokenizers_library_cuts_the_longest_first(
    family: str, max_tokens: int, side: str, directories: dict[str, Path]
) -> None:
    own = pair_tokenizer(directories[family], max_tokens=max_tokens)
    upstream = tokenizers.Tokenizer.from_file(str(directories[family] / "tokenizer.json"))
    upstream.no_padding()
    upstream.enable_truncation(max_tokens, strategy="longest_first", direction=side)
    truncation = Truncation.START if side == "left" else Truncation.END
    chance = random.Random(max_tokens)
    words = " ".join(checkpoints.texts()[:20]).split()
    for count in [*range(20, 30), *(chance.randrange(60) for _ in range(20)), 300]:
        query = " ".join(words[:count])
        counts = [*range(max(0, count - 4), count + 4), *(chance.randrange(80) for _ in range(8)), 400]
        documents = [" ".join(words[place : place + number]) for place, number in enumerate(counts)]
        request = tokenize(own, query, documents, truncation=truncation)
        expected = [upstream.encode(query, document) for document in documents]
        assert ids_of(request) == [encoding.ids for encoding in expected]
        starts = [
            request.sequences[document.chunks[0].sequence].segment_start for document in request.documents
        ]
        assert starts == [
            encoding.type_ids.index(1) if 1 in encoding.type_ids else 0 for encoding in expected
        ]


def test_a_document_that_does_not_fit_beside_a_long_query_is_windowed_beside_half_of_it(
    directories: dict[str, Path],
) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    query, long = "1 " * 100, " ".join(str(number % 7) for number in range(150))
    request = tokenize(tokenizer, query, ["1 " * 10, long], max_chunks_per_document=8)
    short, windowed = request.documents
    assert short.chunks == (Chunk(0, 10),)
    assert len(request.sequences[0]) == 113
    assert [chunk.tokens for chunk in windowed.chunks] == [63, 63, 38]
    assert not windowed.truncated
    assert span_of(windowed.chunks[0]).start == 0
    assert span_of(windowed.chunks[-1]).end == len(long)
    assert [len(request.sequences[chunk.sequence]) for chunk in windowed.chunks] == [128, 128, 103]


def test_a_long_query_that_may_not_be_cut_is_refused_only_beside_what_does_not_fit(
    directories: dict[str, Path],
) -> None:
    tokenizer, query = pair_tokenizer(directories["bert"]), "1 " * 100
    request = tokenize(tokenizer, query, ["1 " * 25], truncation=Truncation.NONE)
    assert len(request.sequences[0]) == MAX_TOKENS
    for count in (26, 400):
        with pytest.raises(InvalidRequest) as caught:
            tokenize(tokenizer, query, ["1", "1 " * count], truncation=Truncation.NONE)
        assert caught.value.violations[0].field == "query"
    with pytest.raises(InvalidRequest, match=r"documents\[1\].text"):
        tokenize(tokenizer, query, ["1", "1 1 1"], truncation=Truncation.NONE, max_tokens_per_document=2)


def test_at_most_so_many_tokens_of_a_document_stand_beside_a_long_query(directories: dict[str, Path]) -> None:
    request = tokenize(
        pair_tokenizer(directories["bert"]), "1 " * 120, ["1 " * 9, "1 " * 200], max_tokens_per_document=5
    )
    assert [document.chunks[0].tokens for document in request.documents] == [5, 5]
    assert {len(sequence) for sequence in request.sequences} == {MAX_TOKENS}
    assert not request.query_truncated


def test_a_text_may_be_cut_from_its_start(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    document = "first " * 300 + "last"
    (end,) = ids_of(tokenize(tokenizer, QUERY, [document]))
    (start,) = ids_of(tokenize(tokenizer, QUERY, [document], truncation=Truncation.START))
    last = ids_of(tokenize(tokenizer, QUERY, ["last"]))[0][-2]
    assert start[-2] == last
    assert end[-2] != last


def test_a_text_that_may_not_be_cut_is_refused_by_its_field_without_quoting_it(
    directories: dict[str, Path],
) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    long = "canary " * 400
    with pytest.raises(InvalidRequest) as caught:
        tokenize(tokenizer, QUERY, ["short", "short", long, long], truncation=Truncation.NONE)
    assert caught.value.violations[0].field == "documents[2].text"
    assert "canary" not in str(caught.value)
    with pytest.raises(InvalidRequest) as caught:
        tokenize(tokenizer, long, ["short"], truncation=Truncation.NONE)
    assert caught.value.violations[0].field == "query"
    with pytest.raises(InvalidRequest, match=r"documents\[0\].text"):
        tokenize(tokenizer, QUERY, ["a b c"], truncation=Truncation.NONE, max_tokens_per_document=2)
    tokenize(tokenizer, QUERY, ["a b c"], truncation=Truncation.NONE, max_tokens_per_document=3)


def test_at_most_so_many_tokens_of_each_document_are_used(directories: dict[str, Path]) -> None:
    request = tokenize(
        pair_tokenizer(directories["bert"]), QUERY, ["a b c d", "a b"], max_tokens_per_document=3
    )
    assert [document.chunks[0].tokens for document in request.documents] == [3, 2]
    assert [document.truncated for document in request.documents] == [True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_overlap_cover_the_text_and_know_their_place(
    family: str, directories: dict[str, Path]
) -> None:
    tokenizer = pair_tokenizer(directories[family])
    text = " ".join(checkpoints.texts()[5:30])[:2_500]
    request = tokenize(tokenizer, QUERY, ["short", text], max_chunks_per_document=64)
    short, long = request.documents
    assert short.chunks[0].span is None
    assert len(short.chunks) == 1
    assert len(long.chunks) > 4
    assert not long.truncated
    spans = [span_of(chunk) for chunk in long.chunks]
    assert spans[0].start == 0
    assert spans[-1].end == len(text.rstrip())
    for before, after in pairwise(spans):
        assert before.start < after.start < before.end < after.end
    (whole,) = [tokenize(text_tokenizer(directories[family], max_tokens=10_000), "q", [text]).sequences[1]]
    tokens = token_ids(whole)[1:-1]
    chunks = []
    for chunk in long.chunks:
        sequence = request.sequences[chunk.sequence]
        assert len(sequence) <= MAX_TOKENS
        chunks.append(token_ids(sequence)[-1 - chunk.tokens : -1])
    place = 0
    for part in chunks:
        place = next(at for at in range(place, len(tokens)) if tokens[at : at + len(part)] == part)
    assert tokens[-len(chunks[-1]) :] == chunks[-1]


def test_chunks_beyond_the_most_allowed_are_left_out_and_said_so(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    words = " ".join(str(number) for number in range(4_000))
    request = tokenize(tokenizer, QUERY, [words], max_chunks_per_document=3)
    assert len(request.documents[0].chunks) == 3
    assert request.documents[0].truncated
    assert span_of(request.documents[0].chunks[0]).start == 0
    last = tokenize(
        tokenizer, QUERY, [words], max_chunks_per_document=3, truncation=Truncation.START
    ).documents[0]
    assert span_of(last.chunks[-1]).end == len(words)
    with pytest.raises(InvalidRequest):
        tokenize(tokenizer, QUERY, [words], max_chunks_per_document=3, truncation=Truncation.NONE)


def test_spans_count_code_points(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["xlm-roberta"], family="xlm-roberta")
    text = "👩‍👩‍👧 深度 e\u0301 " * 60
    document = tokenize(tokenizer, QUERY, [text], max_chunks_per_document=64).documents[0]
    assert span_of(document.chunks[0]).start == 0
    assert span_of(document.chunks[-1]).end == len(text) - 1


def test_documents_with_equal_text_share_a_sequence(directories: dict[str, Path]) -> None:
    for tokenizer, extra in (
        (pair_tokenizer(directories["bert"]), 0),
        (text_tokenizer(directories["bert"]), 1),
    ):
        request = tokenize(tokenizer, QUERY, ["one", "two", "one", "two", "one"])
        assert len(request.sequences) == 2 + extra
        assert len(request.documents) == 5
        assert request.documents[0] == request.documents[2]
    assert request.query == 0


@pytest.mark.parametrize("where", ["query", "document", "long document"])
def test_a_lone_surrogate_is_refused_by_its_field(where: str, directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    bad = "a\ud800"
    query = bad if where == "query" else QUERY
    documents = [
        "fine",
        "word " * 8_000 + bad if where == "long document" else bad if where == "document" else "x",
    ]
    with pytest.raises(InvalidRequest) as caught:
        tokenize(tokenizer, query, documents)
    assert caught.value.violations[0].field == ("query" if where == "query" else "documents[1].text")


def test_of_two_lone_surrogates_the_first_is_named_though_the_second_stands_beyond_what_is_read(
    directories: dict[str, Path],
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenize(pair_tokenizer(directories["bert"]), QUERY, ["a\ud800", "word " * 8_000 + "a\ud800"])
    assert caught.value.violations[0].field == "documents[0].text"


def test_an_instruction_for_a_model_that_takes_none_is_refused(directories: dict[str, Path]) -> None:
    for tokenizer in (pair_tokenizer(directories["bert"]), text_tokenizer(directories["bert"])):
        with pytest.raises(UnsupportedOption) as caught:
            tokenize(tokenizer, QUERY, ["a"], instruction="judge")
        assert caught.value.violations[0].field == "instruction"


class CountedText(str):
    """A text that counts how often it is compared with another."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedText.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_the_field_of_the_last_of_many_long_documents_is_named_without_a_search(
    directories: dict[str, Path],
) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    documents = [CountedText(f"{number} " + "word " * 200) for number in range(1_000)]
    tokenize(tokenizer, QUERY, documents)
    assert CountedText.compared <= len(documents)
    short = [CountedText(f"number {number}") for number in range(999)]
    with pytest.raises(InvalidRequest) as caught:
        tokenize(tokenizer, QUERY, [*short, documents[-1]], truncation=Truncation.NONE)
    assert caught.value.violations[0].field == "documents[999].text"
    assert CountedText.compared <= 2 * len(documents)


def test_several_threads_tokenize_the_same_at_once(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["xlm-roberta"])
    documents = checkpoints.texts()[:100]
    expected = tokenize(tokenizer, QUERY, documents)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: tokenize(tokenizer, QUERY, documents), range(24)))
    assert all(result == expected for result in results)


def test_no_documents_and_empty_documents_are_fine(directories: dict[str, Path]) -> None:
    tokenizer = pair_tokenizer(directories["bert"])
    assert tokenize(tokenizer, QUERY, []).sequences == ()
    request = tokenize(tokenizer, QUERY, ["", " \n"])
    assert [document.chunks[0].tokens for document in request.documents] == [0, 0]


def test_a_template_whose_types_do_not_split_at_the_document_is_refused(tmp_path: Path) -> None:
    tokenizer = checkpoints.wordpiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:1 [SEP]:1 [CLS]:2", pair="$A:1 $B:0 [CLS]:2", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelLoadError, match="token types"):
        read_tokenizer(tmp_path / "tokenizer.json").vocabulary()


def test_a_pre_tokenizer_nobody_vouched_for_reads_the_whole_text(tmp_path: Path) -> None:
    tokenizer = checkpoints.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert not read_tokenizer(tmp_path / "tokenizer.json").vocabulary().cuts_prefix
