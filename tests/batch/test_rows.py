"""Rows are read as they are meant, or refused with a reason that names the field."""

from datetime import date

import pytest

from rerank_grpc.batch.rows import BadRow, InputRow, is_flat, read_row
from rerank_grpc.types import Document, Priority

GOOD = {"id": "a", "query": "q", "documents": ["x", {"id": "d", "text": "y"}]}


def test_documents_may_be_texts_or_objects_with_an_id():
    row = read_row(7, GOOD, flat=None)
    assert row == InputRow(7, "a", "q", (Document("x"), Document("y", "d")))


def test_a_row_without_an_id_has_its_number():
    assert read_row(7, {"query": "q", "documents": ["x"]}, flat=None).id == 7


def test_a_flat_pair_is_a_row_of_one_document():
    row = read_row(1, {"id": 4, "query": "q", "document": "x"}, flat=None)
    assert row == InputRow(1, 4, "q", (Document("x"),), flat=True)
    assert [is_flat(each) for each in (GOOD, {"document": "x"}, {"query": "q"}, 3)] == [
        False,
        True,
        None,
        None,
    ]


def test_an_instruction_of_its_own_wins():
    values = {"query": "q", "documents": ["x"]}
    for row, instruction in ((values, "all"), (values | {"instruction": "own"}, "own")):
        read = read_row(1, row, flat=None, instruction="all")
        assert isinstance(read, InputRow)
        assert read.instruction == instruction


def test_more_documents_than_a_request_holds_are_several_requests_in_order():
    row = read_row(1, {"query": "q", "documents": [str(number) for number in range(2_300)]}, flat=None)
    assert isinstance(row, InputRow)
    requests = list(row.requests())
    assert [len(request.documents) for request in requests] == [1_000, 1_000, 300]
    assert [each.text for request in requests for each in request.documents] == [
        str(number) for number in range(2_300)
    ]
    assert {request.priority for request in requests} == {Priority.BATCH}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "is a number, must be an object with query and documents"),
        ([], "is a list, must be an object with query and documents"),
        ({"query": "q"}, "documents: missing"),
        (GOOD | {"documents": []}, "documents: must not be empty"),
        (GOOD | {"documents": "x"}, "documents: is a string, must be a list"),
        (GOOD | {"documents": [3]}, "documents[0]: is a number, must be a string, or an object with text"),
        (GOOD | {"documents": ["x", {"id": "d"}]}, "documents[1].text: missing"),
        (GOOD | {"documents": [{"id": 1.5, "text": "x"}]}, "documents[0].id: is a number, must be a string"),
        (GOOD | {"query": None}, "query: missing"),
        (GOOD | {"query": True}, "query: is true or false, must be a string"),
        (GOOD | {"query": " \u200b"}, "query: must not be empty, and this one has no visible character"),
        (GOOD | {"query": "q" * 100_001}, "query: has 100,001 characters, at most 100,000 are allowed"),
        (GOOD | {"documents": ["x" * 100_001]}, "documents[0].text: has 100,001 characters"),
        (GOOD | {"documents": ["\ud800"]}, "documents[0]: holds half of a surrogate pair"),
        (GOOD | {"id": 1.5}, "id: is a number, must be a string or a whole number"),
        (GOOD | {"id": 1 << 64}, "id: has more than 64 bits"),
        (GOOD | {"id": "i" * 1_025}, "id: has 1,025 characters"),
        (GOOD | {"id": date(2020, 1, 1)}, "id: is a date, must be a string or a whole number"),
        (GOOD | {"query": b"q"}, "query: is binary, must be a string"),
        (GOOD | {"instruction": 3}, "instruction: is a number, must be a string"),
    ],
)
def test_a_bad_row_says_what_is_wrong(value, reason):
    row = read_row(5, value, flat=None)
    assert isinstance(row, BadRow)
    assert row.number == 5
    assert row.reason.startswith(reason)
    assert "\n" not in row.line()[:-1]


def test_a_row_of_another_form_than_the_file_is_bad():
    row = read_row(2, GOOD, flat=True)
    assert row == BadRow(2, "a", "documents: the file's other rows have document")


def test_an_id_that_is_too_long_is_not_repeated():
    row = read_row(1, GOOD | {"id": "i" * 2_000}, flat=None)
    assert isinstance(row, BadRow)
    assert row.id is None
