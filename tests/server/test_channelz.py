"""An operator looks into a running server: channelz and reflection on the admin port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.server.probes import channelz
from rerank_grpc.server.probes.channelz import CHANNELZ_SERVICE
from rerank_grpc.server.server import RerankServer
from tests.server.test_errors import details_of
from tests.server.test_health import hold
from tests.stubs import HealthStub, ReflectionStub
from tests.support import (
    WAIT,
    CountingRunner,
    PatienceClock,
    channel_of,
    request_of,
    serving,
    stub_of,
    wait_for,
    waiting_of,
)

TOKEN = (("authorization", "Bearer first-token"),)
QUESTIONS: dict[str, Any] = {
    "GetTopChannels": pb.GetTopChannelsRequest(),
    "GetServers": pb.GetServersRequest(),
    "GetServer": pb.GetServerRequest(server_id=1 << 40),
    "GetServerSockets": pb.GetServerSocketsRequest(server_id=1 << 40),
    "GetChannel": pb.GetChannelRequest(channel_id=1 << 40),
    "GetSubchannel": pb.GetSubchannelRequest(subchannel_id=1 << 40),
    "GetSocket": pb.GetSocketRequest(socket_id=1 << 40),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as each:
        yield each


@contextmanager
def channelz_of(server: RerankServer) -> Iterator[ChannelzStub]:
    with channel_of(server.admin_port) as channel:
        yield ChannelzStub(channel)


@pytest.fixture
def stub(server: RerankServer) -> Iterator[ChannelzStub]:
    with channelz_of(server) as each:
        yield each


def unless_gone(ask: Callable[..., Any], question: Any, **options: Any) -> Any:
    """Asks for what was listed; None if it is gone: servers of earlier tests end at any time."""
    try:
        return ask(question, timeout=WAIT, **options)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


def socket_of(stub: ChannelzStub, id_: int) -> list[Any]:
    """Asks for one connection; none if it has been closed meanwhile."""
    answer = unless_gone(stub.GetSocket, pb.GetSocketRequest(socket_id=id_))
    return [] if answer is None else [answer.socket]


def sockets_of(stub: ChannelzStub, server_id: int) -> list[Any]:
    """Asks for all connections of a server, page by page; none if it has ended meanwhile."""
    refs: list[Any] = []
    start = 0
    while True:
        question = pb.GetServerSocketsRequest(server_id=server_id, start_socket_id=start, max_results=2)
        answer = unless_gone(stub.GetServerSockets, question)
        if answer is None:
            return []
        assert len(answer.socket_ref) <= 2
        refs += answer.socket_ref
        if answer.end:
            return [socket for ref in refs for socket in socket_of(stub, ref.socket_id)]
        start = refs[-1].socket_id + 1


def server_id_of(stub: ChannelzStub, port: int | None) -> int:
    """Finds the server that has a connection to a port: all those of this process are listed."""
    found = list[int]()

    def finds() -> bool:
        start, answer = 0, None
        while answer is None or not answer.end:
            answer = stub.GetServers(pb.GetServersRequest(start_server_id=start), timeout=WAIT)
            for each in answer.server:
                start = each.ref.server_id + 1
                if any(every.local.tcpip_address.port == port for every in sockets_of(stub, start - 1)):
                    found.append(start - 1)
        return bool(found)

    wait_for(finds)  # what was listed a moment ago may be told again
    return found[0]


def test_the_main_servers_connections_and_calls_are_told(server: RerankServer, stub: ChannelzStub):
    with ExitStack() as stack:
        callers = [stack.enter_context(stub_of(server.port)) for _ in range(5)]
        for number, caller in enumerate(callers):
            for document in range(number + 1):
                caller.Rerank(request_of(f"query {number}", f"document {document}"), timeout=WAIT)
        id_ = server_id_of(stub, server.port)
        sockets = sockets_of(stub, id_)
        assert {socket.local.tcpip_address.port for socket in sockets} == {server.port}
        assert sorted(socket.data.streams_started for socket in sockets) == [1, 2, 3, 4, 5]
        assert all(socket.data.messages_received >= 1 for socket in sockets)
        told = stub.GetServer(pb.GetServerRequest(server_id=id_), timeout=WAIT).server
        assert (told.ref.server_id, told.data.calls_started >= 15) == (id_, True)
        # The main port, and one for REST of this machine.
        assert len(told.listen_socket) == 2


def test_the_admin_server_is_another(server: RerankServer, stub: ChannelzStub):
    with stub_of(server.port) as caller:
        caller.Rerank(request_of("q", "d"), timeout=WAIT)
        main, admin = server_id_of(stub, server.port), server_id_of(stub, server.admin_port)
    assert main != admin


def test_channels_of_the_process_are_told_with_their_targets(server: RerankServer, stub: ChannelzStub):
    with stub_of(server.port) as caller:
        caller.Rerank(request_of("q", "d"), timeout=WAIT)
        answer = stub.GetTopChannels(pb.GetTopChannelsRequest(), timeout=WAIT)
        targets = {each.data.target: each for each in answer.channel}
        ours = targets[f"dns:///127.0.0.1:{server.port}"]
        assert ours.data.calls_started == 1
        told = stub.GetChannel(pb.GetChannelRequest(channel_id=ours.ref.channel_id), timeout=WAIT).channel
        assert (told.ref, told.data.target) == (ours.ref, ours.data.target)
        (below,) = ours.subchannel_ref
        told = stub.GetSubchannel(pb.GetSubchannelRequest(subchannel_id=below.subchannel_id)).subchannel
        assert told.data.calls_started == 1
        first = stub.GetTopChannels(pb.GetTopChannelsRequest(max_results=1), timeout=WAIT)
        assert (len(first.channel), first.end) == (1, False)
        only = stub.GetServers(pb.GetServersRequest(max_results=1), timeout=WAIT)
        assert (len(only.server), only.end) == (1, False)


def calls_started(stub: ChannelzStub, server_id: int) -> int:
    """Tells the calls that a server has had, as the list of all servers has them."""
    question = pb.GetServersRequest(start_server_id=server_id)
    (told,) = [
        each for each in stub.GetServers(question, timeout=WAIT).server if each.ref.server_id == server_id
    ]
    return int(told.data.calls_started)


def test_a_list_of_servers_is_kept_in_proportion_to_what_it_took(monkeypatch: pytest.MonkeyPatch):
    with serving(runner=CountingRunner()) as server, channelz_of(server) as stub:
        monkeypatch.setattr(channelz, "KEPT_FACTOR", 0)
        own = server_id_of(stub, server.admin_port)
        assert calls_started(stub, own) < calls_started(stub, own)  # the questions are calls too
        monkeypatch.setattr(channelz, "KEPT_FACTOR", 10**9)
        kept = calls_started(stub, own)
        assert {calls_started(stub, own) for _ in range(5)} == {kept}
        servers = stub.GetServers(pb.GetServersRequest(), timeout=WAIT).server
        last = servers[-1].ref.server_id
        assert stub.GetServer(pb.GetServerRequest(server_id=last), timeout=WAIT).server == servers[-1]
        rest = stub.GetServers(pb.GetServersRequest(start_server_id=last), timeout=WAIT)
        assert ([each.ref.server_id for each in rest.server], rest.end) == ([last], True)
        rest = stub.GetServers(pb.GetServersRequest(start_server_id=last + 1), timeout=WAIT)
        assert (len(rest.server), rest.end) == (0, True)


@pytest.mark.parametrize("asked", [0, 1 << 62, 4])
def test_an_answer_has_no_more_entries_than_the_bound(
    server: RerankServer, stub: ChannelzStub, monkeypatch: pytest.MonkeyPatch, asked: int
):
    monkeypatch.setattr(channelz, "MOST_RESULTS", 3)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(stub_of(server.port)).Rerank(request_of("q", "d"), timeout=WAIT)
        question = pb.GetServerSocketsRequest(server_id=server_id_of(stub, server.port), max_results=asked)
        answer = stub.GetServerSockets(question, timeout=WAIT)
        assert (len(answer.socket_ref), answer.end) == (3, False)


@pytest.mark.parametrize(
    "method", [name for name in QUESTIONS if not name.startswith(("GetTop", "GetServers"))]
)
def test_what_is_not_there_is_not_found(stub: ChannelzStub, method: str):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(QUESTIONS[method], timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "may have been closed" in str(caught.value.details())


@pytest.mark.parametrize(
    ("method", "question", "field"),
    [
        ("GetServerSockets", pb.GetServerSocketsRequest(server_id=1, max_results=-1), "max_results"),
        ("GetServerSockets", pb.GetServerSocketsRequest(server_id=1, start_socket_id=-1), "start_socket_id"),
        ("GetServers", pb.GetServersRequest(start_server_id=-5), "start_server_id"),
        ("GetTopChannels", pb.GetTopChannelsRequest(max_results=-1), "max_results"),
        ("GetSocket", pb.GetSocketRequest(socket_id=-(1 << 63)), "socket_id"),
    ],
)
def test_a_negative_number_is_refused_by_its_field(
    stub: ChannelzStub, method: str, question: Any, field: str
):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(question, timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    message, _ = details_of(caught.value)
    assert message.message == f"{field}: is negative"


@pytest.mark.parametrize("data", [b"\xff\xff", bytes(5_000)])
@pytest.mark.parametrize("method", QUESTIONS)
def test_what_is_no_small_question_is_refused(server: RerankServer, method: str, data: bytes):
    with channel_of(server.admin_port) as channel:
        call: Any = channel.unary_unary(f"/{CHANNELZ_SERVICE}/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("reflection", ["guarded", "open"])
@pytest.mark.parametrize("method", QUESTIONS)
def test_where_tokens_are_set_every_question_needs_one(method: str, reflection: str):
    settings = replace(ServerSettings(), access_tokens=("first-token",), reflection=reflection)
    with serving(settings, runner=CountingRunner()) as server, channelz_of(server) as stub:
        for metadata in ((), (("authorization", "Bearer other"),)):
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, method)(QUESTIONS[method], timeout=WAIT, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert stub.GetServers(pb.GetServersRequest(), timeout=WAIT, metadata=TOKEN).server


def test_the_callers_port_does_not_answer(server: RerankServer):
    with channel_of(server.port) as channel, pytest.raises(grpc.RpcError) as caught:
        ChannelzStub(channel).GetServers(pb.GetServersRequest(), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_names_the_services_of_the_admin_port_and_describes_them(server: RerankServer):
    question = reflection_pb2.ServerReflectionRequest
    asked = [question(list_services="")]
    asked += [
        question(file_containing_symbol=name) for name in (CHANNELZ_SERVICE, "rerank.v1.ModelAdminService")
    ]
    with channel_of(server.admin_port) as channel:
        listed, *files = ReflectionStub(channel).ServerReflectionInfo(iter(asked), timeout=WAIT)
    assert [each.name for each in listed.list_services_response.service] == [
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "rerank.v1.ModelAdminService",
    ]
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)


def test_health_answers_for_it(server: RerankServer):
    with channel_of(server.admin_port) as channel:
        question = health_pb2.HealthCheckRequest(service=CHANNELZ_SERVICE)
        answer = HealthStub(channel).Check(question, timeout=WAIT)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_calls_without_a_body_starve_no_other(
    server: RerankServer, stub: ChannelzStub, monkeypatch: pytest.MonkeyPatch
):
    # None of them is given up meanwhile, however long that takes.
    PatienceClock(monkeypatch)
    with channel_of(server.admin_port) as hostile:
        held = [hold(hostile, f"/{CHANNELZ_SERVICE}/GetServers") for _ in range(16)]
        awaited = waiting_of(server, "a request (channelz)")
        wait_for(lambda: len(awaited) == 16)
        assert stub.GetServers(pb.GetServersRequest(), timeout=WAIT).server
        with channel_of(server.admin_port) as channel:
            assert HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status
        for call in held:
            call.cancel()


def test_questions_have_threads_of_their_own(server: RerankServer, monkeypatch: pytest.MonkeyPatch):
    names = []
    answer = channelz._answer

    def noting(*arguments: Any) -> Any:
        names.append(threading.current_thread().name)
        return answer(*arguments)

    monkeypatch.setattr(channelz, "_answer", noting)
    with serving(runner=CountingRunner()) as other, channelz_of(other) as stub:
        assert stub.GetServers(pb.GetServersRequest(), timeout=WAIT).server
    assert names
    assert all(name.startswith("channelz") for name in names)


def test_many_ask_at_once_while_connections_come_and_go(server: RerankServer):
    def ask(number: int) -> bool:
        with channelz_of(server) as stub, stub_of(server.port) as caller:
            caller.Rerank(request_of("q", f"document {number}"), timeout=WAIT)
            id_ = server_id_of(stub, server.port)
            return bool(sockets_of(stub, id_))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(24)))


def test_no_text_and_no_token_is_in_any_answer():
    settings = replace(ServerSettings(), access_tokens=("canary-token",))
    metadata = (("authorization", "Bearer canary-token"), ("x-request-id", "canary-id"))
    wrong = (("authorization", "Bearer canary-wrong"),)
    with serving(settings, runner=CountingRunner()) as server, channel_of(server.admin_port) as channel:
        channelz_stub = ChannelzStub(channel)
        with stub_of(server.port) as caller:
            caller.Rerank(request_of("canary-query", "canary-document"), timeout=WAIT, metadata=metadata)
            for refused in (request_of("canary", model="canary-model"), request_of("")):
                with pytest.raises(grpc.RpcError):
                    caller.Rerank(refused, timeout=WAIT, metadata=metadata)
            with pytest.raises(grpc.RpcError):
                caller.Rerank(request_of("canary", "canary"), timeout=WAIT, metadata=wrong)

            def ask(method: str, **fields: int) -> Any:
                question = getattr(pb, f"{method}Request")(**fields)
                return unless_gone(getattr(channelz_stub, method), question, metadata=metadata)

            told = [ask("GetTopChannels"), ask("GetServers")]
            for each in told[1].server:
                if refs := ask("GetServerSockets", server_id=each.ref.server_id):
                    told += [refs, *(ask("GetSocket", socket_id=ref.socket_id) for ref in refs.socket_ref)]
            for each in told[0].channel:
                told += [ask("GetSubchannel", subchannel_id=ref.subchannel_id) for ref in each.subchannel_ref]
    assert sum(each is not None for each in told) > 5
    assert "canary" not in "".join(map(str, told))
