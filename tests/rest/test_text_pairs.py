"""Text pairs as Python literals: what is read, and that nothing hostile takes long."""

import pytest

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects.legacy import TEXT_PAIRS
from rerank_grpc.rest.forms.decoded import Posted
from tests.rest.support import post
from tests.support import processor_time

PATH = "/bge-reranker-base/post"
POSTED = Posted(PATH)


def pairs_of(literal: str) -> list[tuple[str, str]]:
    """Reads a literal and returns the pairs in their order."""
    decoded = TEXT_PAIRS.decode({"text_pairs": literal}, POSTED)
    found: dict[int, tuple[str, str]] = {}
    for request, origins in zip(decoded.requests, decoded.origins, strict=True):
        found |= {o: (request.query, d.text) for o, d in zip(origins, request.documents, strict=True)}
    return [found[origin] for origin in sorted(found)]


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ("[['q','d'],['q','e']]", [("q", "d"), ("q", "e")]),
        ('[["it\'s", "a \\"d\\""]]', [("it's", 'a "d"')]),
        (" [ ( 'q' , u'[[d]],' ) , ] \n", [("q", "[[d]],")]),
        (repr([["熊猫\n", "\\ '\" end"]]), [("熊猫\n", "\\ '\" end")]),
    ],
)
def test_a_literal_of_pairs_is_read(literal: str, expected: list[tuple[str, str]]) -> None:
    assert pairs_of(literal) == expected


def test_many_long_pairs_are_read() -> None:
    pairs = [(f"query {number}", "d" * 1_500) for number in range(1_000)]
    assert pairs_of(repr(list(map(list, pairs)))) == pairs


HOSTILE = {
    "code": "__import__('os').system('true')",
    "a call in a pair": "[['q', exec('1')]]",
    "concatenated": "[['q' 'r', 'd']]",
    "bytes": "[[b'q', b'd']]",
    "a format string": "[[f'{1+1}', 'd']]",
    "numbers": "[" + "0," * 900_000 + "0]",
    "empty lists": "[" + "[]," * 600_000 + "[]]",
    "open brackets": "[" * 1_900_000,
    "minus signs": "-" * 1_900_000 + "1",
    "an open string": "[['q', 'd" + "x" * 1_900_000,
    "an open string of escapes": "[['q', '" + "\\'" * 900_000,
    "quotes": "'" * 1_900_001,
    "spaces": "[" + " " * 1_900_000,
    "too many pairs": repr([["q", "d"]] * 1_001),
    "nothing": "[]",
    "too long": "[['q', '" + "d" * 2_000_000 + "']]",
    "a dictionary": "{'q': 'd'}",
    "half an escape": "[['q', '\\x1']]",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_list_of_pairs_is_refused_at_once(case: str) -> None:
    with processor_time() as seconds:
        with pytest.raises(InvalidRequest):
            TEXT_PAIRS.decode({"text_pairs": HOSTILE[case]}, POSTED)
        assert seconds() < 1


def test_a_lone_surrogate_of_a_literals_escapes_is_refused_as_what_cannot_be_read(port: int) -> None:
    reply = post(port, PATH, {"text_pairs": "[['q', '\\ud800']]"})
    assert (reply.status, reply.json["code"]) == (200, -1)
