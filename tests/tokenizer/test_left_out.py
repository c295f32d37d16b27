"""Texts that are left out get no sequence, and the others get what they get without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_grpc.evidence.facts import Kind
from rerank_grpc.tokenizer.pace import UNHURRIED
from rerank_grpc.tokenizer.tokenizer import Tokenizer, tokenizer_for
from tests import late_models, prompts
from tests import random_models as checkpoints
from tests.texts import texts_request
from tests.tokenizer import test_late
from tests.tokenizer.test_tokenizer import card

DOCUMENTS = ["a list", "", "a text of words " * 200, " ", "", "a list"]
LEFT_OUT = {"", " "}
KEPT = [0, 2, 5]


def plain(kind: Kind) -> Callable[[Path], Tokenizer]:
    return lambda folder: tokenizer_for(card(checkpoints.bert(folder), kind=kind))


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "cross-encoder": plain(Kind.CROSS_ENCODER),
    "bi-encoder": plain(Kind.BI_ENCODER),
    "late interaction": lambda folder: test_late.tokenizer(late_models.pylate(folder), test_late.PYLATE),
    "prompt": lambda folder: prompts.tokenizer(checkpoints.qwen3_reranker(folder), "qwen3"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("query", ["what is a list?", "a query longer than the model " * 100], ids=len)
def test_the_others_have_the_same_sequences(kind: str, query: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind](tmp_path / "model")
    found = tokenizer.tokenize(texts_request(query, DOCUMENTS), UNHURRIED, LEFT_OUT)
    alone = tokenizer.tokenize(texts_request(query, [DOCUMENTS[index] for index in KEPT]))
    assert [(each.ids, each.segment_start) for each in found.sequences] == [
        (each.ids, each.segment_start) for each in alone.sequences
    ]
    assert [found.documents[index] for index in KEPT] == list(alone.documents)
    assert [index for index, each in enumerate(found.documents) if not each.chunks] == [1, 3, 4]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("query", ["what is a list?", "a query longer than the model " * 100], ids=len)
def test_with_all_left_out_only_a_query_of_its_own_is_left(kind: str, query: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind](tmp_path / "model")
    found = tokenizer.tokenize(texts_request(query, ["", " "]), UNHURRIED, LEFT_OUT)
    assert [each.chunks for each in found.documents] == [(), ()]
    assert len(found.sequences) == (0 if found.query is None else 1)
