"""A server whose process hangs, while its kernel takes what is sent: it is left, no call fails."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import grpc
import pytest

from rerank_grpc.client import Client
from rerank_grpc.client.channel import LEAST_HANG_TIMEOUT, channel_options, pings
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.server.server import _options
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.client import scripted_server
from tests.client.conftest import connect_both
from tests.client.scripted_server import scored
from tests.http2 import PING, frame, raw_connections
from tests.support import HeldRunner, channel_of, request_of, serving


@pytest.fixture
def replica():
    """Runs a server in a process of its own; yields the process and its port."""
    command = [sys.executable, scripted_server.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


@pytest.mark.clock
def test_a_server_that_hangs_is_left_in_time_and_no_call_fails(connect, server, replica):
    process, port = replica
    client = connect(f"ipv4:{server.target},127.0.0.1:{port}", hang_timeout=LEAST_HANG_TIMEOUT)
    came_over, answered = list[float](), list[tuple[float, float]]()

    def noting(request, context):
        if "grpc-previous-rpc-attempts" in dict(context.invocation_metadata()):
            came_over.append(monotonic())
        return scored(request)

    def call(number):
        began = monotonic()
        results = client.rerank("q", [f"document {number}"]).results
        answered.append((began, monotonic()))
        return len(results)

    server.otherwise = noting
    connect_both(client, server)
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(call, number) for number in range(1_500)]
        calls[200].result(30)
        process.send_signal(signal.SIGSTOP)
        struck = monotonic()
        assert {each.result(30) for each in calls} == {1}
    assert came_over, "some calls were on their way to the server that hangs"
    assert max(came_over) - struck < 8
    # However they came over.
    assert max(ended for began, ended in answered if began < struck) - struck < 8


def test_the_service_allows_the_pings_of_a_call_that_takes_long():
    held = HeldRunner()
    with serving(runner=held) as service, channel_of(service.port, *pings(LEAST_HANG_TIMEOUT)) as channel:
        call = rerank_pb2_grpc.RerankServiceStub(channel).Rerank.future(request_of("query", "held"))
        held.await_batch()
        # The fourth ping is the first that may end a connection, where pings come more often than allowed.
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=4.5 * LEAST_HANG_TIMEOUT)
        held.let_all()
        assert len(call.result(timeout=10).results) == 1


def test_the_service_ends_a_connection_that_pings_without_a_pause():
    with serving() as service, raw_connections(service.port, 1) as (connection,):
        connection.send(6 * frame(PING, 0, 0, bytes(8)))  # at once: the service closes after the last
        assert b"too_many_pings" in connection.receive_until(b"too_many_pings")


@pytest.mark.parametrize(
    ("seconds", "error", "says"),
    [
        (1, ValueError, "hang_timeout: 2 seconds or more and finite, not 1"),
        (float("inf"), ValueError, "hang_timeout: 2 seconds or more"),
        (float("nan"), ValueError, "hang_timeout: 2 seconds or more"),
        ("3", TypeError, "hang_timeout: seconds, not str"),
    ],
)
def test_a_bad_hang_timeout_is_refused_by_name(seconds, error, says):
    with pytest.raises(error, match=says):
        Client(hang_timeout=seconds)


def test_the_client_pings_no_more_often_than_the_service_allows():
    """By the options of both: three pings too many end a connection."""
    theirs = dict(_options(ServerSettings(), 1, 1))
    least = dict(pings(LEAST_HANG_TIMEOUT))["grpc.keepalive_time_ms"]
    ours = dict(channel_options("rerank.internal:50051", 3))
    allowed = theirs["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed * 1.2 < int(least) < int(ours["grpc.keepalive_time_ms"])
    # Pings without a call are never sent, and would be allowed.
    assert "grpc.keepalive_permit_without_calls" not in ours
    assert theirs["grpc.keepalive_permit_without_calls"] == 1
    # A connection without calls is ended before a keepalive of it would be sent.
    assert theirs["grpc.max_connection_idle_ms"] < int(ours["grpc.keepalive_time_ms"])


def test_without_a_hang_timeout_no_ping_comes_sooner_than_servers_allow():
    assert pings(None) == ()
