"""Which failures cost another attempt, how many, and when; counted at the server."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from rerank_grpc.client import (
    DeadlineExceeded,
    DeadlineUnreachable,
    MessageTooLarge,
    ModelLoading,
    PairTooLarge,
    QueueFull,
    Reason,
    RerankError,
    ServerUnavailable,
    ShuttingDown,
    UnexpectedStatus,
)
from rerank_grpc.client.errors import OUT_SECONDS, asked_delay
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.status import Failure
from tests.client import scripted_server
from tests.client.conftest import connect_both
from tests.client.scripted_server import fail, hang
from tests.ports import free_port
from tests.stubs import status_code
from tests.support import WAIT

Code = grpc.StatusCode

# Of a call that is to come so far and then to run out of time, which a busy machine may let pass before.
TIMES = 0.5, 3.0, 10.0
SMALL = "x"
# Four times what gRPC keeps for a retry by default.
LARGE = "x" * (1 << 20)

stopping = fail(Code.UNAVAILABLE, reason=Reason.SHUTTING_DOWN, retry_after=0.02, pushback_ms=20)
full = fail(Code.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=0.02)


@pytest.mark.parametrize("method", ["rerank", "stream_rerank"])
@pytest.mark.parametrize("text", [SMALL, LARGE], ids=["small", "1 MiB"])
def test_a_server_that_is_stopping_is_tried_again_after_its_pushback(client, server, method, text):
    server.script.extend([stopping] * 3)
    list(
        getattr(client, method)("q", [text]).results
        if method == "rerank"
        else client.stream_rerank("q", [text])
    )
    assert [call.metadata.get("grpc-previous-rpc-attempts") for call in server.calls] == [None, "1", "2", "3"]
    assert all(call.request.documents[0].text == text for call in server.calls)


@pytest.mark.parametrize("text", [SMALL, LARGE], ids=["small", "1 MiB"])
def test_after_four_attempts_the_error_is_raised(client, server, text):
    server.otherwise = stopping
    with pytest.raises(ShuttingDown) as caught:
        client.rerank("q", [text])
    assert len(server.calls) == 4
    assert caught.value.retry_after == 0.02


def test_a_request_at_the_limit_is_still_tried_again(client, server):
    server.script.append(stopping)
    client.rerank("q", ["x" * ((8 << 20) - 1000)])
    assert len(server.calls) == 2


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_caller_says_how_many_further_attempts_there_are(connect, server, retries):
    server.otherwise = stopping
    with pytest.raises(ShuttingDown):
        connect(server.target, retries=retries).rerank("q", ["a"])
    assert len(server.calls) == retries + 1


def test_a_negative_pushback_ends_the_attempts(client, server):
    server.otherwise = fail(Code.UNAVAILABLE, reason=Reason.MODEL_LOADING, pushback_ms=-1)
    with pytest.raises(ModelLoading):
        client.rerank("q", [LARGE])
    assert len(server.calls) == 1


def test_a_pushback_beyond_the_deadline_hides_why_the_attempt_failed(client, server):
    """Which no client can mend, so a server sends -1 instead: gRPC shows the last status alone."""
    server.otherwise = fail(Code.UNAVAILABLE, reason=Reason.MODEL_LOADING, pushback_ms=60_000)
    for seconds in TIMES:
        with pytest.raises(DeadlineExceeded):
            client.rerank("q", ["a"], timeout=seconds)
        if server.calls:
            break
    assert len(server.calls) == 1


@pytest.mark.parametrize("method", ["rerank", "stream_rerank"])
def test_a_full_queue_is_tried_again_when_the_server_said_so(client, server, method):
    server.script.extend([full] * 3)
    answer = getattr(client, method)("q", ["a"])
    assert len(list(answer.results if method == "rerank" else answer)) == 1
    assert len(server.calls) == 4


def test_one_deadline_covers_all_attempts_and_the_waits_between_them(client, server):
    server.script.append(fail(Code.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=0.5))
    client.rerank("q", ["a"], timeout=9)
    assert server.calls[1].time_remaining < 8.6


def test_a_queue_that_stays_full_is_tried_four_times(client, server):
    server.otherwise = full
    with pytest.raises(QueueFull):
        client.rerank("q", ["a"])
    assert len(server.calls) == 4


def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(client, server):
    server.otherwise = fail(Code.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=40)
    with pytest.raises(QueueFull) as caught:
        client.rerank("q", ["a"], timeout=20)
    assert caught.value.retry_after == 40
    assert len(server.calls) == 1


@pytest.mark.parametrize("method", ["rerank", "stream_rerank"])
def test_where_the_time_ends_after_a_refusal_the_refusal_is_raised(client, server, method):
    for seconds in TIMES:
        del server.calls[:]
        server.script.clear()
        server.script.extend([full, hang])
        with pytest.raises(RerankError) as caught:
            list(getattr(client, method)("q", ["a"], timeout=seconds))
        if len(server.calls) > 1:
            break
    assert isinstance(caught.value, QueueFull)
    assert caught.value.retry_after == 0.02
    assert status_code(caught.value.__cause__) is Code.DEADLINE_EXCEEDED
    assert len(server.calls) == 2


def test_a_deadline_that_the_service_itself_reports_is_not_the_refusal_before_it(client, server):
    server.script.extend([full, fail(Code.DEADLINE_EXCEEDED, reason=Reason.DEADLINE_EXCEEDED)])
    with pytest.raises(DeadlineExceeded):
        client.rerank("q", ["a"])


def test_a_stream_that_was_admitted_forgets_the_refusal_before_it(client, server):
    def one_then_hang(request, context):
        yield pb.StreamRerankResponse(results=[pb.RerankResult()])
        hang(request, context)

    for seconds in TIMES:
        server.script.clear()
        server.script.extend([full, one_then_hang])
        stream, admitted = client.stream_rerank("q", ["a"], timeout=seconds), []
        with pytest.raises(RerankError) as caught:
            admitted.extend(stream)
        if admitted:
            break
    assert len(admitted) == 1
    assert isinstance(caught.value, DeadlineExceeded)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (fail(Code.RESOURCE_EXHAUSTED, "Received message larger than max (2 vs. 1)"), MessageTooLarge),
        (fail(Code.RESOURCE_EXHAUSTED, retry_after=0.01), UnexpectedStatus),
        (fail(Code.RESOURCE_EXHAUSTED, reason=Reason.PAIR_TOO_LARGE), PairTooLarge),
        (fail(Code.RESOURCE_EXHAUSTED, reason=Reason.DEADLINE_UNREACHABLE), DeadlineUnreachable),
    ],
    ids=["grpc's own", "a proxy's", "pair too large", "deadline unreachable"],
)
def test_what_a_retry_does_not_help_is_not_tried_again(client, server, step, error):
    server.otherwise = step
    with pytest.raises(error):
        client.rerank("q", ["a"])
    assert len(server.calls) == 1


def test_a_stream_that_has_yielded_is_not_started_again(client, server):
    def one_then_full(request, context):
        yield pb.StreamRerankResponse(results=[pb.RerankResult()])
        full(request, context)

    server.script.append(one_then_full)
    stream = client.stream_rerank("q", ["a"])
    next(stream)
    with pytest.raises(QueueFull):
        next(stream)
    assert len(server.calls) == 1


def test_an_address_is_left_for_as_long_as_it_asks():
    def asked(failure, elsewhere=False, patient=False):
        return asked_delay(failure, elsewhere=elsewhere, patient=patient)

    full = Failure(Code.RESOURCE_EXHAUSTED, "", described=True, reason=Reason.QUEUE_FULL, retry_after=2.0)
    assert asked(full) == asked(full, elsewhere=True) == asked(full, patient=True) == 2.0
    loading = Failure(Code.UNAVAILABLE, "", described=True, retry_after=0.01)
    assert asked(loading) is None, "gRPC has tried it again"
    assert asked(loading, elsewhere=True) == 0.01
    assert asked(loading, patient=True) == 0.1, "never at once: it may be asked any number of times"
    lost = Failure(Code.UNAVAILABLE, "Socket closed")
    assert asked(lost, patient=True) is None
    assert asked(lost, elsewhere=True) == OUT_SECONDS
    assert asked(Failure(Code.RESOURCE_EXHAUSTED, "too large"), elsewhere=True) is None


def test_an_outage_costs_at_most_half_as_many_attempts_again(client, server):
    server.otherwise = fail(Code.UNAVAILABLE)
    outcomes = many(lambda: client.rerank("q", ["a"]), 200)
    assert all(isinstance(outcome, ServerUnavailable) for outcome in outcomes)
    assert 200 < len(server.calls) <= 300


@pytest.fixture
def own_port(server):
    """Has the server listen at a port that nobody gets by asking for any one while it is away."""
    server.stop()
    server.port = free_port()
    server.start()


@pytest.mark.usefixtures("own_port")
def test_a_server_that_comes_back_is_found_again(connect, server):
    client = connect(server.target)
    client.rerank("q", ["a"])
    server.stop()
    with pytest.raises(ServerUnavailable):
        client.rerank("q", [LARGE], timeout=20)
    server.start()
    client.wait_until_ready(WAIT)
    assert len(client.rerank("q", [LARGE]).results) == 1


@pytest.mark.usefixtures("own_port")
def test_a_client_may_be_there_before_its_server(connect, server):
    server.stop()
    client = connect(server.target)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.wait_until_ready, WAIT)
        server.start()
        assert waiting.result().version == "1.2.3"


def test_calls_are_spread_over_the_replicas_and_survive_the_killing_of_one(connect, server, replica):
    """Kills one of two processes under load, with requests small and large: no call fails."""
    client = connect(f"ipv4:{server.target},127.0.0.1:{replica.port}")
    connect_both(client, server)
    del server.calls[:]
    with ThreadPoolExecutor(8) as threads:

        def calls(number):
            return [threads.submit(client.rerank, "q", [LARGE if n % 2 else SMALL]) for n in range(number)]

        assert all(len(call.result(30).results) == 1 for call in calls(100))
        assert 10 < len(server.calls) < 95, "half of the calls went to the other replica"
        under_way = calls(200)
        under_way[20].result(30)
        replica.process.kill()
        assert all(len(call.result(30).results) == 1 for call in under_way)


class Replica:
    """A server in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, scripted_server.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())


@pytest.fixture
def replica():
    replica = Replica()
    with replica.process:
        yield replica
        replica.process.kill()


def many(call, count):
    def outcome(_):
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(outcome, range(count)))
