"""Several addresses: each has a channel of its own, and a call that fails at one is tried at another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest

from rerank_grpc.client import AsyncClient, Client, Reason, ServerUnavailable, TlsError
from tests.authority import Authority
from tests.client.scripted_server import ScriptedServer, fail, hang, scored, shown
from tests.ports import refusing_port

Code = grpc.StatusCode


@pytest.fixture
def servers():
    with ExitStack() as stack:
        both = [ScriptedServer(), ScriptedServer()]
        for server in both:
            server.start()
            stack.callback(server.stop)
        yield both


@pytest.fixture
def targets(servers):
    return [server.target for server in servers]


def test_calls_take_turns(connect, servers, targets):
    client = connect(targets)
    for _ in range(10):
        client.rerank("q", ["a"])
    assert [len(server.calls) for server in servers] == [5, 5]


def test_names_addresses_and_sockets_may_be_mixed(connect, servers, tmp_path):
    sockets = ScriptedServer(address=f"unix:{tmp_path}/rerank.sock")
    six = ScriptedServer(address="[::1]:0")
    sockets.start()
    six.start()
    client = connect([f"localhost:{servers[0].port}", servers[1].target, f"[::1]:{six.port}", sockets.target])
    for _ in range(8):
        client.rerank("q", ["a"])
    assert [len(server.calls) for server in (*servers, six, sockets)] == [2, 2, 2, 2]
    for server in (sockets, six):
        server.stop()


def test_a_server_that_is_busy_gets_fewer_calls(connect, servers, targets):
    held = threading.Event()

    def slow(request, _context):
        held.wait(20)
        return scored(request)

    servers[0].otherwise = slow
    client = connect(targets)
    with ThreadPoolExecutor(1) as threads:
        inside = threads.submit(client.rerank, "q", ["a"])
        assert servers[0].called.wait(10)
        for _ in range(10):
            client.rerank("q", ["a"])
        assert len(servers[1].calls) == 10
        held.set()
        inside.result(20)


@pytest.mark.parametrize("method", ["rerank", "stream_rerank"])
def test_a_server_that_is_not_there_costs_no_call(connect, server, method):
    with refusing_port() as port:
        client = connect([f"127.0.0.1:{port}", server.target])
        for _ in range(20):
            answer = getattr(client, method)("q", ["a"])
            assert len(list(answer if method == "stream_rerank" else answer.results)) == 1
    assert len(server.calls) == 20


def test_a_server_that_is_full_has_its_calls_answered_by_another(connect, servers, targets):
    """And gets none before the time that it has named."""
    servers[0].otherwise = fail(Code.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=60)
    client = connect(targets)
    for _ in range(10):
        client.rerank("q", ["a"], timeout=20)
    assert [len(server.calls) for server in servers] == [1, 10]


def test_a_call_from_before_a_refusal_does_not_bring_its_server_back(connect, servers, targets):
    """Only one that is begun after the time that the server has named tells that there is room again."""
    held = threading.Event()

    def first(request, _context):
        held.wait(20)
        return scored(request)

    full = fail(Code.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=60)
    servers[0].script.extend([first, full])
    client = connect(targets)
    with ThreadPoolExecutor(2) as threads:
        inside = threads.submit(client.rerank, "q", ["a"])
        assert servers[0].called.wait(10)
        servers[1].script.append(first)  # so that both have one call, and the next is the first one's again
        other = threads.submit(client.rerank, "q", ["a"])
        assert servers[1].called.wait(10)
        client.rerank("q", ["a"])
        assert len(servers[0].calls) == 2
        held.set()
        for each in (inside, other):
            each.result(20)
    for _ in range(10):
        client.rerank("q", ["a"])
    assert len(servers[0].calls) == 2


def test_calls_come_back_to_a_server_that_is_well_again(connect, servers, targets):
    servers[0].script.append(fail(Code.UNAVAILABLE, reason=Reason.SHUTTING_DOWN, retry_after=0.01))
    client = connect(targets)
    for _ in range(40):
        client.rerank("q", ["a"])
    assert len(servers[0].calls) > 5


def test_where_no_server_is_there_the_last_one_is_told(connect):
    with refusing_port() as one, refusing_port() as other:
        client = connect([f"127.0.0.1:{one}", f"127.0.0.1:{other}"], retries=1)
        with pytest.raises(ServerUnavailable, match=f"127.0.0.1:({one}|{other}): no server listens there"):
            client.rerank("q", ["a"])


def test_no_more_attempts_are_made_than_the_caller_allows(connect, servers, targets):
    for server in servers:
        server.otherwise = fail(Code.UNAVAILABLE)
    with pytest.raises(ServerUnavailable):
        connect(targets, retries=2).rerank("q", ["a"])
    assert sum(len(server.calls) for server in servers) == 3


def test_one_of_several_that_is_there_is_enough_to_be_ready(connect, server):
    with refusing_port() as port:
        assert connect([f"127.0.0.1:{port}", server.target]).wait_until_ready(10).version == "1.2.3"


def test_each_certificate_is_checked_against_its_own_name(connect, tmp_path):
    """gRPC checks those of a list of its own against one name."""
    authority = Authority(tmp_path / "ca")
    made = [
        ScriptedServer(shown(authority.issue("name", "DNS:localhost"))),
        ScriptedServer(shown(authority.issue("address", "IP:127.0.0.1"))),
    ]
    for each in made:
        each.start()
    client = connect([f"localhost:{made[0].port}", f"127.0.0.1:{made[1].port}"], ca=authority.cert)
    for _ in range(4):
        client.rerank("q", ["a"])
    assert [len(each.calls) for each in made] == [2, 2]
    with pytest.raises(TlsError):
        connect([f"127.0.0.1:{made[0].port}"], ca=authority.cert).rerank("q", ["a"])
    for each in made:
        each.stop()


def test_calls_inside_end_when_the_client_is_closed(servers, targets):
    for server in servers:
        server.otherwise = hang
    with Client(targets) as client, ThreadPoolExecutor(2) as threads:
        inside = [threads.submit(client.rerank, "q", ["a"]) for _ in range(2)]
        assert all(server.called.wait(10) for server in servers)
        client.close()
        assert all("the client was closed" in str(each.exception(10)) for each in inside)


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ([], ValueError, "target: at least one address"),
        (["localhost", "http://other"], ValueError, r"target\[1\]: is not HOST:PORT"),
        (["localhost", 5], TypeError, r"target\[1\]: a str"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_bad_address_is_refused_by_its_place(kind, target, error, says):
    with pytest.raises(error, match=f"^{says}"):
        kind(target)


def test_an_address_given_twice_is_one(connect, server):
    """And has gRPC's own retries, as every one that stands alone."""
    server.script.extend([fail(Code.UNAVAILABLE)] * 2)
    connect([server.target, server.target]).rerank("q", ["a"])
    assert server.calls[-1].metadata["grpc-previous-rpc-attempts"] == "2"
