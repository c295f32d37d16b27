import threading

import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc.server.lanes import Pool
from tests.http2 import raw_connections
from tests.server.test_patience import CHECK, check, rerank
from tests.stubs import HealthStub
from tests.support import WAIT, CountingRunner, channel_of, serving, wait_for


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While the event is set, no thread can be started, as at the limit of a container's processes."""
    full, start = threading.Event(), threading.Thread.start

    def start_if_possible(thread: threading.Thread) -> None:
        if full.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_possible)
    return full


def test_a_pool_runs_what_it_was_given_though_no_thread_can_be_started(no_threads: threading.Event):
    pool, ran = Pool(10, "pool"), list[int]()
    no_threads.set()
    for number in range(20):
        pool.submit(ran.append, number)
    wait_for(lambda: len(ran) == 20)
    no_threads.clear()
    pool.submit(ran.append, 20).result(WAIT)
    assert sorted(ran) == list(range(21))


@pytest.mark.clock
def test_a_server_that_could_start_no_thread_for_a_while_serves_on(no_threads: threading.Event):
    with serving(runner=CountingRunner()) as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == 1
        no_threads.set()
        with raw_connections(server.port, 1) as (connection,):
            for _ in range(60):
                connection.call(CHECK)
            # The thread there is gives up the calls without a body first.
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == 1
        no_threads.clear()
        assert check(server.port) < 5
        assert rerank(server.port) < 5


def test_a_silent_caller_keeps_the_only_thread_for_a_moment_though_few_wait(no_threads: threading.Event):
    with serving(runner=CountingRunner()) as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == 1
        no_threads.set()
        with raw_connections(server.port, 1) as (connection,):
            for _ in range(10):
                connection.call(CHECK)
            wait_for(lambda: sum(lane._pool.backlog() for lane in server._lanes) >= 8)
            # Of 5 s for each of the 8 before it, this would be too little.
            found = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.5 * WAIT).status
            no_threads.clear()
        assert found == 1
