"""The texts that are sent: no pair twice, the same again by their seed; recorded ones as they stand."""

import gzip
import json
import sys

import pytest

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.loadtest.texts import DrawnRange, MadeTexts, read_recording, vocabulary


def test_no_query_and_no_document_is_sent_twice():
    texts = MadeTexts(5, DrawnRange(1, 9), DrawnRange(1, 3))
    calls = [texts.call(number) for number in range(500)]
    documents = [document for call in calls for document in call.documents]
    assert len({call.query for call in calls}) == 500
    assert len(set(documents)) == len(documents)


def test_sizes_stay_within_what_is_asked_for():
    texts = MadeTexts(5, DrawnRange(3, 6), DrawnRange(10, 12))
    calls = [texts.call(number) for number in range(300)]
    assert {len(call.documents) for call in calls} == {3, 4, 5, 6}
    assert {len(text.split()) for call in calls for text in call.documents} == {10, 11, 12}


def test_a_seed_gives_the_same_texts_again():
    sizes = DrawnRange(2, 4), DrawnRange(5, 9)
    assert MadeTexts(5, *sizes).call(3) == MadeTexts(5, *sizes).call(3) != MadeTexts(6, *sizes).call(3)


def test_texts_are_made_without_pythons_manual_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # as where a distribution leaves it out
    call = MadeTexts(5, DrawnRange(2, 2), DrawnRange(10, 10)).call(0)
    assert [len(text.split()) for text in call.documents] == [10, 10]
    assert len(vocabulary()) > 200


def write(folder, *rows):
    path = folder / "calls.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def row(query="q", *documents, **more):
    return {"query": query, "documents": list(documents or ("d",)), **more}


def test_a_recording_is_given_in_turn(tmp_path):
    found = read_recording(
        write(tmp_path, row("a", "x", "y", at=3), row("b", {"id": "1", "text": "z"}, at=5))
    )
    assert [found.call(number).query for number in range(3)] == ["a", "b", "a"]
    assert found.call(1).documents == ("z",)
    assert found.times == [3, 5]


def test_a_gzipped_recording_without_times_has_none(tmp_path):
    path = tmp_path / "calls.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row(instruction="find")).encode()))
    found = read_recording(path)
    assert found.times is None
    assert found.call(0).instruction == "find"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "calls.jsonl has no rows: expected lines of"),
        (("{\n",), "calls.jsonl, row 1: "),
        ((row(), {"query": "q"}), "row 2: documents: missing"),
        ((row(), {"documents": ["d"]}), "row 2: query: missing"),
        ((row(at=1), row()), "row 2: either all rows have at, in seconds, or none has"),
        ((row(), row(at=1)), "row 2: either all rows have at, in seconds, or none has"),
        ((row(at=2), row(at=1)), "row 2: at: 1 is before the last row's 2"),
        ((row(at="soon"),), "row 1: at: must be a number of seconds"),
        ((row(at=True),), "row 1: at: must be a number of seconds"),
        (('{"query": "q", "documents": ["d"], "at": NaN}\n',), "row 1"),
        ((["q"],), "row 1: is a list, must be an object"),
    ],
)
def test_a_bad_recording_is_told_with_its_row(tmp_path, rows, said):
    with pytest.raises(ConfigurationError) as error:
        read_recording(write(tmp_path, *rows))
    assert str(error.value).startswith("--replay: ")
    assert said in str(error.value)


def test_a_recording_that_is_away_is_told_in_the_options_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^--replay: .*away\.jsonl"):
        read_recording(tmp_path / "away.jsonl")
