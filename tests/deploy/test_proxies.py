"""nginx and haproxy, run from deploy/, before real servers: calls pass unchanged, and a server may fail."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc_health.v1.health import HealthServicer

from rerank_grpc.client import Client, InvalidRequest, QueueFull, ServerUnavailable
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.limits import LIMITS
from rerank_grpc.server.server import RerankServer
from rerank_grpc.wire.status import PUSHBACK_KEY
from tests.client.scripted_server import ScriptedServer, fail, hang, streamed
from tests.command import Served
from tests.deploy.files import read_yaml
from tests.deploy.proxies import ENVOY, HAPROXY, HOST, KINDS, NGINX, proxy
from tests.ports import free_port, refusing_port
from tests.stubs import status_code
from tests.support import WAIT, HeldRunner, request_of, serving, stub_of, wait_for

Code = grpc.StatusCode
CALLERS = 16
BOTH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=KINDS)
def scripted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ScriptedServer, int]]:
    """Runs a proxy before one server that answers by script."""
    server = ScriptedServer(probe=HealthServicer())
    server.start()
    with proxy(request.param, [server.port], tmp_path) as port:
        yield server, port
    server.stop()


@contextlib.contextmanager
def pair(kind: str, folder: Path) -> Iterator[tuple[list[Served], int]]:
    """Runs a proxy before two processes of the real command; `restart` finds their ports again."""
    # A server that is restarted finds its port free: the kernel gives those to nobody who asks for any.
    servers = [Served("--port", str(free_port())) for _ in range(2)]
    try:
        with proxy(kind, [port_of(server) for server in servers], folder) as port:
            yield servers, port
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
            server.close()


def port_of(server: Served) -> int:
    """Returns the gRPC port of a server."""
    return int(server.target.rpartition(":")[2])


def under_load(
    client: Client, calls: int, *, after: int, trouble: Callable[[], None]
) -> tuple[Counter[str], float]:
    """Calls from many threads, with trouble after some; counts outcomes, and times the last slow call's end.

    The time is in seconds from the trouble to the end of the last call that took more than a second.
    """
    last = 0.0

    def one(number: int) -> str:
        nonlocal last
        began = monotonic()
        try:
            client.rerank("query", [f"document {number}"])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if monotonic() - began > 1:
            last = max(last, monotonic())
        return "ok"

    with ThreadPoolExecutor(CALLERS) as threads:
        outcomes = [threads.submit(one, number) for number in range(calls)]
        outcomes[after].result()
        struck = monotonic()
        trouble()
        return Counter(each.result() for each in outcomes), max(0.0, last - struck)


@BOTH
def test_calls_of_one_connection_are_spread_call_by_call(kind, tmp_path):
    with serving() as one, serving() as two, proxy(kind, [one.port, two.port], tmp_path) as port:
        counted = [count_calls(server) for server in (one, two)]
        with stub_of(port) as stub:
            for _ in range(40):
                stub.Rerank(request_of("query", "document"))
        assert sum(map(len, counted)) == 40
        assert min(map(len, counted)) >= 15


def count_calls(server: RerankServer) -> list[str]:
    """Returns the list into which each call of a server puts a word from now on."""
    calls: list[str] = []
    rerank = server.reranker.rerank

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append("call")
        return rerank(*arguments, **options)

    server.reranker.rerank = counting  # type: ignore[method-assign]
    return calls


def test_the_details_of_an_error_pass(scripted):
    server, port = scripted
    server.otherwise = fail(Code.INVALID_ARGUMENT, reason=Reason.INVALID_REQUEST, metadata={"a": "b" * 4_000})
    with Client(f"{HOST}:{port}") as client, pytest.raises(InvalidRequest) as refused:
        client.rerank("query", ["document"])
    assert refused.value.metadata == {"a": "b" * 4_000}


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE])
def test_a_refusal_with_a_pushback_reaches_the_caller_and_no_proxy_tries_again(scripted, code):
    server, port = scripted
    server.otherwise = fail(code, reason=Reason.QUEUE_FULL, retry_after=7, pushback_ms=7_000)
    with stub_of(port) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.Rerank(request_of("query", "document"), timeout=60)
    assert status_code(refused.value) is code
    trailers: Any = refused.value.trailing_metadata()
    assert dict(trailers)[PUSHBACK_KEY] == "7000"
    assert len(server.calls) == 1


def test_the_deadline_and_metadata_reach_the_server(scripted):
    server, port = scripted
    large = "x" * 6_000  # of the 8 KiB that gRPC takes without a word
    with stub_of(port) as stub:
        stub.Rerank(
            request_of("query"), timeout=60, metadata=(("authorization", "Bearer s"), ("x-large", large))
        )
    assert 30 < server.calls[0].time_remaining <= 60
    assert server.calls[0].metadata["authorization"] == "Bearer s"
    assert server.calls[0].metadata["x-large"] == large


def test_a_caller_who_leaves_ends_the_call_at_the_server(scripted):
    server, port = scripted
    gone = threading.Event()

    def wait(request, context):
        assert context.add_callback(gone.set)
        return hang(request, context)

    server.otherwise = wait
    with stub_of(port) as stub:
        call = stub.Rerank.future(request_of("query"))
        assert server.called.wait(WAIT)
        call.cancel()
        assert gone.wait(WAIT)


def test_results_of_a_stream_come_while_the_rest_is_computed(scripted):
    server, port = scripted
    first_read = threading.Event()

    def one_by_one(request, context):
        for message in streamed(request):
            yield message
            assert first_read.wait(WAIT)

    server.otherwise = one_by_one
    with Client(f"{HOST}:{port}") as client:
        stream = client.stream_rerank("query", ["a", "b", "c"])
        next(stream)
        first_read.set()
        assert len(list(stream)) == 2
        assert stream.summary.model == "embedded"


def test_requests_and_replies_of_several_mib_pass(scripted):
    _, port = scripted
    texts = ["x" * 95_000] * 84  # 7.6 MiB
    with Client(f"{HOST}:{port}") as client:
        response = client.rerank("query", texts, return_documents=True)
    assert sum(len(result.document.text) for result in response.results if result.document) == 95_000 * 84


@BOTH
def test_a_request_above_the_limit_is_refused_once(kind, tmp_path):
    """By the server, with its reason, which haproxy drops where the request is not over."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        stub = stack.enter_context(stub_of(stack.enter_context(proxy(kind, [server.port], tmp_path))))
        with pytest.raises(grpc.RpcError) as refused:
            stub.Rerank(request_of("query", "x" * (9 << 20)), timeout=60)
    told = {Code.RESOURCE_EXHAUSTED} if kind == "nginx" else {Code.RESOURCE_EXHAUSTED, Code.CANCELLED}
    assert status_code(refused.value) in told


@BOTH
def test_without_a_server_a_call_is_unavailable_in_grpcs_own_form(kind, tmp_path):
    with contextlib.ExitStack() as stack:
        nobody = stack.enter_context(refusing_port())
        port = stack.enter_context(proxy(kind, [nobody], tmp_path))
        client = stack.enter_context(Client(f"{HOST}:{port}", retries=0))
        with pytest.raises(ServerUnavailable, match="no server takes the call"):
            client.rerank("query", ["document"], timeout=60)


@BOTH
def test_a_server_that_is_full_says_so_to_the_caller(kind, tmp_path):
    settings, held = ServerSettings(max_calls=1), HeldRunner()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(settings, runner=held))
        port = stack.enter_context(proxy(kind, [server.port], tmp_path))
        stub = stack.enter_context(stub_of(port))
        client = stack.enter_context(Client(f"{HOST}:{port}", retries=0))
        inside = stub.Rerank.future(request_of("query", "held"))
        held.await_batch()
        with pytest.raises(QueueFull) as refused:
            client.rerank("query", ["one too many"])
        assert refused.value.retry_after
        held.let_all()
        inside.result(timeout=WAIT)


def test_haproxy_gives_no_call_to_a_server_that_does_not_serve(tmp_path):
    probe = HealthServicer()
    well, ill = ScriptedServer(probe=HealthServicer()), ScriptedServer(probe=probe)
    well.start()
    ill.start()
    probe.set("", 2)  # NOT_SERVING
    with proxy("haproxy", [well.port, ill.port], tmp_path) as port, stub_of(port) as stub:
        wait_for(lambda: "not serving" in (tmp_path / "haproxy.log").read_text())
        ill.calls.clear()
        for _ in range(10):
            stub.Rerank(request_of("query"))
        assert not ill.calls
        probe.set("", 1)  # SERVING

        def called():
            stub.Rerank(request_of("query"))
            return bool(ill.calls)

        wait_for(called)
    well.stop()
    ill.stop()


def test_haproxy_leaves_a_draining_server_its_calls_where_it_checks_the_admin_port(tmp_path):
    held = HeldRunner()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(runner=held))
        assert server.admin_port is not None
        port = stack.enter_context(proxy("haproxy", [server.port], tmp_path, [server.admin_port]))
        inside = stack.enter_context(stub_of(port)).Rerank.future(request_of("query", "held"))
        held.await_batch()
        draining = threading.Thread(target=server.stop, args=[60])
        draining.start()
        wait_for(lambda: "not serving" in (tmp_path / "haproxy.log").read_text())
        # Where haproxy checks the port of calls, which is closed, it ends the call after 2 s.
        with pytest.raises(grpc.FutureTimeoutError):
            inside.result(timeout=4)
        held.let_all()
        assert len(inside.result(timeout=WAIT).results) == 1
        draining.join()


@BOTH
def test_no_call_fails_when_one_of_two_servers_is_killed(kind, tmp_path):
    with pair(kind, tmp_path) as (servers, port), Client(f"{HOST}:{port}") as client:
        outcomes, _ = under_load(client, 1_000, after=300, trouble=servers[0].process.kill)
    assert outcomes == {"ok": 1_000}


@pytest.mark.clock
@BOTH
def test_a_server_that_hangs_is_left_and_no_call_fails(kind, tmp_path, monkeypatch):
    """haproxy sees it by its checks; nginx only where its time for a silent call is short."""
    if kind == "nginx":
        text = NGINX.read_text("utf-8").replace("grpc_read_timeout 130s", "grpc_read_timeout 3s")
        path = tmp_path / "short.conf"
        path.write_text(text, "utf-8")
        monkeypatch.setattr("tests.deploy.proxies.NGINX", path)
    with pair(kind, tmp_path) as (servers, port), Client(f"{HOST}:{port}") as client:

        def freeze():
            servers[0].process.send_signal(signal.SIGSTOP)

        outcomes, seconds = under_load(client, 1_500, after=300, trouble=freeze)
    assert outcomes == {"ok": 1_500}
    # nginx gives the server a call every few seconds, which hangs for as long as it may be silent.
    assert 1 < seconds < (8 if kind == "haproxy" else 60)


@BOTH
def test_no_call_fails_while_servers_are_restarted_one_after_the_other(kind, tmp_path):
    with pair(kind, tmp_path) as (servers, port), Client(f"{HOST}:{port}") as client:

        def restart():
            for index, server in enumerate(servers):
                assert server.stop(signal.SIGTERM) == 0
                servers[index] = Served("--port", str(port_of(server)))
                # A balancer that has not found this server again must not lose the other one.
                wait_for(partial(is_called, servers[index]), 60)

        outcomes = until_over(client, restart)
    assert set(outcomes) == {"ok"}, outcomes
    assert outcomes["ok"] > 100


def is_called(server: Served) -> bool:
    """Tells whether a server's log has a call of Rerank."""
    return any(" Rerank " in line for line in server.said)


def until_over(client: Client, trouble: Callable[[], None]) -> Counter[str]:
    """Calls from many threads for as long as the trouble takes; counts outcomes."""
    over, numbers = threading.Event(), count()

    def repeat() -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while not over.is_set():
            try:
                client.rerank("query", [f"document {next(numbers)}"])
                outcomes["ok"] += 1
            except Exception as error:
                outcomes[f"{type(error).__name__}: {error}"] += 1
        return outcomes

    with ThreadPoolExecutor(CALLERS) as threads:
        running = [threads.submit(repeat) for _ in range(CALLERS)]
        try:
            trouble()
        finally:
            over.set()
        return sum((each.result() for each in running), Counter())


def test_haproxys_check_is_a_call_of_grpc_health():
    lines = HAPROXY.read_text("utf-8").splitlines()
    sent = b"".join(bytes.fromhex(line.split()[2]) for line in lines if "tcp-check send-binary" in line)
    frames = []
    while sent:
        length = int.from_bytes(sent[:3], "big")
        frames.append((sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9 : 9 + length]))
        sent = sent[9 + length :]
    settings, headers, data = frames
    assert settings == (4, 0, 0, b"")
    assert headers[:3] == (1, 4, 1)  # HEADERS, END_HEADERS
    assert b"/grpc.health.v1.Health/Check" in headers[3]
    assert b"application/grpc" in headers[3]
    assert data == (0, 1, 1, bytes(5))  # DATA, END_STREAM, an empty message


def test_envoys_file_has_the_parts_that_its_page_explains():
    """Envoy itself does not run here."""
    resources = read_yaml(ENVOY)["static_resources"]
    (cluster,), (listener,) = resources["clusters"], resources["listeners"]
    (manager,) = listener["filter_chains"][0]["filters"]
    config = manager["typed_config"]
    (route,) = config["route_config"]["virtual_hosts"][0]["routes"]
    assert route["route"]["cluster"] == cluster["name"] == cluster["load_assignment"]["cluster_name"]
    assert route["route"]["timeout"] == "0s"
    # Never a status that a server gives with a reason.
    assert route["route"]["retry_policy"]["retry_on"] == "connect-failure,refused-stream"
    transcoder, router = config["http_filters"]
    assert transcoder["typed_config"]["services"] == ["rerank.v1.RerankService"]
    assert transcoder["typed_config"]["max_response_body_size"] == LIMITS.reply_bytes
    assert router["name"] == "envoy.filters.http.router"
    assert "grpc_health_check" in cluster["health_checks"][0]
