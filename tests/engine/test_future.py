"""The future of a call: what it tells when it ends, whichever thread ends it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rerank_grpc.engine.future import Future
from rerank_grpc.errors import Cancelled, DeadlineExceeded, InternalError
from rerank_grpc.sequence import Sequence


def request(count: int = 2, **fields: Any) -> Future:
    return Future([Sequence.of([number]) for number in range(count)], **fields)


def expire(request: Future) -> None:
    with pytest.raises(DeadlineExceeded):
        request.wait()


@pytest.mark.parametrize(
    "end",
    [
        lambda request: request.deliver([(0, 1.0), (1, 2.0)], 0),
        lambda request: request.fail(InternalError()),
        lambda request: request.cancel(),
        expire,
    ],
    ids=["answered", "failed", "cancelled", "expired"],
)
@pytest.mark.parametrize("early", [True, False], ids=["registered before", "registered after"])
def test_a_callback_is_called_once_when_the_request_is_done(end: Callable[[Future], None], early: bool):
    called: list[bool] = []
    ended = request(deadline=0)
    if early:
        ended.on_done(lambda: called.append(ended.done))
    end(ended)
    if not early:
        ended.on_done(lambda: called.append(ended.done))
    ended.deliver([(0, 1.0), (1, 2.0)], 0)
    ended.cancel()
    assert called == [True]


def test_a_request_without_sequences_is_done_from_the_beginning():
    called: list[None] = []
    request(0).on_done(lambda: called.append(None))
    assert called == [None]


def test_outputs_that_leave_some_missing_do_not_end_a_request():
    called: list[None] = []
    waiting = request()
    waiting.on_done(lambda: called.append(None))
    waiting.deliver([(0, 1.0)], 0)
    assert called == []


def test_the_callback_comes_before_the_waiting_thread_wakes():
    """A caller that is answered and calls again at once finds its slot free."""
    order: list[str] = []
    waiting = request()
    waiting.on_done(lambda: order.append("callback" if waiting._events.empty() else "woken"))
    waiting.deliver([(0, 1.0), (1, 2.0)], 0)
    waiting.wait()
    assert order == ["callback"]


def test_of_threads_that_end_a_request_at_one_moment_one_calls_back():
    start = threading.Barrier(3)
    with ThreadPoolExecutor(3) as threads:
        for _ in range(300):
            racing, called = request(), list[None]()

            def at_once(action: Callable[[], None]) -> None:
                start.wait()
                action()

            actions = (
                lambda racing=racing: racing.deliver([(0, 1.0), (1, 2.0)], 0),
                lambda racing=racing: racing.fail(Cancelled("the caller left")),
                lambda racing=racing, called=called: racing.on_done(lambda: called.append(None)),
            )
            list(threads.map(at_once, actions))
            assert called == [None]
