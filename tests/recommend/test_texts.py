"""TextPool of a stated number of tokens."""

from __future__ import annotations

from rerank_grpc.recommend.texts import TextPool, make_texts


def test_documents_have_the_stated_number_of_tokens_whatever_a_word_has() -> None:
    for per_word in (1, 3):
        texts = make_texts(120, 5, lambda text, times=per_word: times * len(text.split()))  # type: ignore[misc]
        assert {len(each.split()) * per_word for each in texts.documents} == {120}


def test_a_model_that_cuts_texts_gets_no_endless_ones() -> None:
    texts = make_texts(512, 2, lambda text: min(64, len(text.split())))
    assert all(len(each.split()) <= 512 for each in texts.documents)


def test_the_calls_after_each_other_get_other_documents() -> None:
    texts = TextPool(("a", "b", "c", "d", "e"))
    assert [texts.take(call, 2) for call in range(3)] == [["a", "b"], ["c", "d"], ["e", "a"]]
