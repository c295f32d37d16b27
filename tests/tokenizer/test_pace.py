import threading

import pytest

from rerank_grpc.errors import Cancelled
from rerank_grpc.tokenizer.pace import BLOCK_CHARACTERS, SMALL_CHARACTERS, Pace, Turns
from tests.support import WAIT, wait_for

LARGE = "x" * (BLOCK_CHARACTERS // 4)


def nothing() -> None:
    """The check of a call that goes on."""


def wait_for_more(turns: Turns, threads: int) -> None:
    wait_for(lambda: len(turns._waiting) > threads)


def test_few_texts_are_one_block_and_wait_for_no_turn():
    def stopped() -> None:
        raise Cancelled("not asked")

    turns = Turns(1)
    with turns.one(nothing):
        texts = ["x" * (SMALL_CHARACTERS // 2)] * 2
        assert list(Pace(turns, stopped).blocks(texts)) == [texts]


def test_many_texts_are_blocks_in_their_order():
    texts = [f"{n}{LARGE}" for n in range(10)]
    blocks = list(Pace(Turns(1), nothing).blocks(texts))
    assert [len(block) for block in blocks] == [3, 3, 3, 1]
    assert [text for block in blocks for text in block] == texts


def test_a_text_longer_than_a_block_is_a_block():
    texts = ["a", "x" * (2 * BLOCK_CHARACTERS), "b"]
    assert list(Pace(Turns(1), nothing).blocks(texts)) == [["a"], [texts[1]], ["b"]]


def test_a_call_that_has_ended_stops_before_its_next_block():
    asked: list[int] = []

    def check() -> None:
        asked.append(0)
        if len(asked) > 2:
            raise Cancelled("gone")

    blocks = Pace(Turns(1), check).blocks([LARGE] * 100)
    assert next(blocks)
    assert next(blocks)
    with pytest.raises(Cancelled):
        next(blocks)


def test_threads_get_their_turns_in_the_order_in_which_they_came():
    turns, order = Turns(1), list[int]()

    def take(number: int) -> None:
        with turns.one(nothing):
            order.append(number)

    threads = [threading.Thread(target=take, args=[number]) for number in range(5)]
    with turns.one(nothing):
        for place, thread in enumerate(threads):
            thread.start()
            wait_for_more(turns, place)
    for thread in threads:
        thread.join(WAIT)
    assert order == [0, 1, 2, 3, 4]


def test_a_thread_whose_call_ends_while_it_waits_leaves_the_queue():
    turns, gone, raised = Turns(1), threading.Event(), threading.Event()

    def check() -> None:
        if gone.is_set():
            raise Cancelled("gone")

    def take() -> None:
        try:
            with turns.one(check):
                pass
        except Cancelled:
            raised.set()

    thread = threading.Thread(target=take)
    with turns.one(nothing):
        thread.start()
        wait_for(lambda: len(turns._waiting) == 1)
        gone.set()
        assert raised.wait(WAIT)
        assert not turns._waiting
    thread.join(WAIT)
    with turns.one(nothing):
        pass
