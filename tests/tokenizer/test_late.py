"""Texts of late interaction stand behind their prefix, and queries are filled up, by control tokens alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Original

from rerank_grpc.errors import InvalidRequest, ModelLoadError
from rerank_grpc.evidence.facts import LateInteraction, Reading
from rerank_grpc.sequence import Sequence, TokenizedRequest
from rerank_grpc.tokenizer.late import late_framing
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import Truncation
from tests import late_models
from tests.support import token_ids
from tests.texts import tokenize

PYLATE = Reading(query_prefix="[Q] ", document_prefix="[D] ")
STANFORD = Reading(query_prefix="[unused0] ", document_prefix="[unused1] ")
WORDS = Reading(query_prefix="query: ", document_prefix="text: ")
LATE = LateInteraction(query_tokens=12, document_tokens=20, expanded_tokens=12, inserts_prefixes=True)
LONG = "how are the keys of a dictionary ordered and since which version of the language"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("late")
    return {
        "pylate": late_models.pylate(root / "pylate"),
        "modernbert": late_models.pylate(root / "modernbert", "modernbert"),
        "stanford": late_models.stanford(root / "stanford"),
    }


def tokenizer(directory: Path, reading: Reading, late: LateInteraction = LATE) -> Tokenizer:
    return Tokenizer(late_framing(directory / "tokenizer.json", reading, late, 128))


def query_of(request: TokenizedRequest) -> Sequence:
    assert request.query is not None
    return request.sequences[request.query]


def original(directory: Path) -> Original:
    return Original.from_file(str(directory / "tokenizer.json"))


def test_an_added_token_is_the_prefix_and_hides_no_space(directories: dict[str, Path]) -> None:
    for name in ("pylate", "modernbert"):
        words = original(directories[name])
        request = tokenize(tokenizer(directories[name], PYLATE), "a list", ["a text"])
        query, document = query_of(request), request.sequences[1]
        filled = words.encode("[Q] a list").ids
        assert token_ids(query)[: len(filled)] == filled
        assert filled[1] == words.token_to_id("[Q] ")
        assert token_ids(document) == words.encode("[D] a text").ids
        assert document == Sequence(document.ids)


def test_a_word_of_the_vocabulary_is_a_prefix_only_where_it_is_inserted(
    directories: dict[str, Path],
) -> None:
    directory = directories["stanford"]
    number = original(directory).token_to_id("[unused0]")
    inserted = query_of(tokenize(tokenizer(directory, STANFORD), "a list", ["a text"]))
    assert token_ids(inserted)[1] == number
    text = replace(LATE, inserts_prefixes=False, query_tokens=60, expanded_tokens=0)
    ordinary = query_of(tokenize(tokenizer(directory, STANFORD, text), "a list", ["a text"]))
    assert number not in token_ids(ordinary)
    assert token_ids(ordinary) == original(directory).encode("[unused0] a list").ids


def test_a_prefix_that_is_no_token_is_tokenized_with_its_text(directories: dict[str, Path]) -> None:
    directory = directories["modernbert"]
    late = replace(LATE, expanded_tokens=0)
    request = tokenize(tokenizer(directory, WORDS, late), "a list", ["a text"])
    assert token_ids(query_of(request)) == original(directory).encode("query: a list").ids
    assert token_ids(request.sequences[1]) == original(directory).encode("text: a text").ids


def test_no_text_becomes_a_prefix_or_another_control_token(directories: dict[str, Path]) -> None:
    for name, reading in (("pylate", PYLATE), ("modernbert", PYLATE), ("stanford", STANFORD)):
        directory = directories[name]
        names = ["[Q] ", "[D] ", "[unused0]", "[unused1]", "[MASK]", "[SEP]", "<mask>"]
        control = {original(directory).token_to_id(each) for each in names} - {None}
        late = replace(LATE, query_tokens=60, expanded_tokens=0)
        text = "".join(names) + " ".join(names)
        request = tokenize(tokenizer(directory, reading, late), text, [text])
        for sequence in request.sequences:
            assert control.isdisjoint(token_ids(sequence)[2:-1])


@pytest.mark.parametrize("attends", [True, False])
def test_a_short_query_is_filled_up_with_masks(directories: dict[str, Path], attends: bool) -> None:
    directory = directories["pylate"]
    made = tokenizer(directory, PYLATE, replace(LATE, attends_expansion=attends))
    query = query_of(tokenize(made, "a list", ["a text"]))
    mask = original(directory).token_to_id("[MASK]")
    assert mask is not None
    missing = token_ids(query).count(mask)
    assert len(query) == 12
    assert missing == 12 - len(original(directory).encode("[Q] a list").ids)
    assert set(token_ids(query)[-missing:]) == {mask}
    assert query.unseen == (0 if attends else missing)
    assert query.is_query


def test_a_long_query_is_cut_at_its_limit_and_not_filled_up(directories: dict[str, Path]) -> None:
    directory = directories["pylate"]
    whole = original(directory).encode("[Q] " + LONG).ids
    made = tokenizer(directory, PYLATE)
    request = tokenize(made, LONG, ["a text"])
    assert token_ids(query_of(request)) == [*whole[:11], whole[-1]]
    assert query_of(request).unseen == 0
    assert request.query_truncated
    with pytest.raises(InvalidRequest, match="query"):
        tokenize(made, LONG, ["a text"], truncation=Truncation.NONE)


def test_the_least_length_cuts_nothing(directories: dict[str, Path]) -> None:
    directory = directories["pylate"]
    made = tokenizer(directory, PYLATE, replace(LATE, query_tokens=None))
    request = tokenize(made, LONG, ["a text"])
    assert token_ids(query_of(request)) == original(directory).encode("[Q] " + LONG).ids
    assert not request.query_truncated


def test_documents_are_cut_at_a_limit_of_their_own(directories: dict[str, Path]) -> None:
    directory = directories["pylate"]
    whole = original(directory).encode("[D] " + LONG * 3).ids
    request = tokenize(tokenizer(directory, PYLATE), "a list", [LONG * 3])
    assert token_ids(request.sequences[1]) == [*whole[:19], whole[-1]]
    assert request.documents[0].truncated


def test_the_last_texts_token_is_named_by_the_files_or_by_its_own_setting(
    directories: dict[str, Path],
) -> None:
    directory = directories["pylate"]
    made = tokenizer(directory, PYLATE, replace(LATE, expansion_token="[SEP]"))
    assert token_ids(query_of(tokenize(made, "a list", ["a text"])))[-1] == 3
    for token in ("[NONE]", "[PAD]"):
        with pytest.raises(ModelLoadError, match="no fitting token"):
            tokenizer(directory, PYLATE, replace(LATE, expansion_token=token))


def test_texts_that_are_lower_cased_twice_stay_the_same(directories: dict[str, Path]) -> None:
    lower = tokenizer(directories["pylate"], replace(PYLATE, lower_case=True))
    request = tokenize(lower, "A List", ["A Text"])
    assert request == tokenize(tokenizer(directories["pylate"], PYLATE), "a list", ["a text"])


def test_limits_that_leave_no_token_to_a_text_are_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match="leave no token to a text"):
        tokenizer(directories["pylate"], PYLATE, replace(LATE, document_tokens=3))


def test_a_prefix_that_would_change_the_text_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match="and the text behind it become other tokens"):
        tokenizer(directories["modernbert"], Reading(query_prefix="say <mask> "))
