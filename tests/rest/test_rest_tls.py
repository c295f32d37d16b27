"""REST over TLS: who comes in, under which name, and what a slow or hostile caller costs."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.cli.serve import rest_beside
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.http import protocol, tls
from rerank_grpc.rest import server as rest_module
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.tls.pair import TlsFiles
from tests.authority import HERE, Authority, Issued
from tests.rest.support import HOST, LoopClock, Reply, call, read, rest_server
from tests.support import WAIT, CountingRunner, HeldRunner, serving, wait_for

# Where the caller writes before it reads the alert, it finds the connection closed.
REFUSED = (ssl.SSLError, ConnectionError)
BODY = {"query": "q", "documents": ["d"]}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    return authority.issue("server", *HERE)


def context_of(authority: Authority, own: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.cert)
    if own is not None:
        context.load_cert_chain(*own)
    return context


@contextmanager
def connection_to(
    port: int, authority: Authority, own: Issued | None = None
) -> Iterator[http.client.HTTPSConnection]:
    context = context_of(authority, own)
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=WAIT)
    try:
        yield connection
    finally:
        connection.close()


def rerank(connection: http.client.HTTPConnection, body: object = BODY, **headers: str) -> Reply:
    connection.request("POST", "/v1/rerank", json.dumps(body).encode(), headers)
    return read(connection)


@contextmanager
def beside(
    shown: Issued, client_ca: Path | None = None, **settings: Any
) -> Iterator[tuple[int, list[CallRecord]]]:
    """Serves REST beside gRPC, by TLS; yields its port, and the records of gRPC's calls."""
    records: list[CallRecord] = []
    files = TlsFiles(shown.cert, shown.key, client_ca)
    own = replace(ServerSettings(tls=files, **settings), rest=RestSettings(port=0))
    with serving(own, runner=CountingRunner(), sinks=[records.append]) as server:
        rest = rest_beside(server)
        assert rest is not None
        rest.start()
        try:
            yield rest.port, records
        finally:
            rest.stop(5)


def test_a_connection_is_kept_for_several_calls(shown: Issued, authority: Authority):
    with beside(shown) as (port, _), connection_to(port, authority) as connection:
        assert rerank(connection).status == 200
        first = connection.sock
        assert rerank(connection).json["results"]
        assert connection.sock is first


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_http_1_1_is_what_tls_carries(shown: Issued, authority: Authority, version: ssl.TLSVersion):
    context = context_of(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = version
    with (
        beside(shown) as (port, _),
        socket.create_connection((HOST, port), WAIT) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() == "http/1.1"


def test_tls_1_1_is_refused(shown: Issued, authority: Authority):
    with beside(shown) as (port, _):
        command = ["openssl", "s_client", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]
        command += ["-connect", f"{HOST}:{port}", "-CAfile", str(authority.cert)]
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT)
    assert b"alert protocol version" in said.stderr


def test_a_caller_of_plain_http_is_told(shown: Issued):
    with beside(shown) as (port, _):
        reply = call(port, "GET", "/health")
        assert (reply.status, reply.raw) == (400, b"this port speaks TLS: call it by https://\n")


def test_an_authority_below_another_is_a_root_as_it_is_to_grpc(
    shown: Issued, authority: Authority, tmp_path: Path
):
    below = Authority(tmp_path / "below", authority)
    with beside(shown, below.cert) as (port, _):
        with connection_to(port, authority, below.issue("search")) as connection:
            assert rerank(connection).status == 200
        with connection_to(port, authority, authority.issue("above")) as connection, pytest.raises(REFUSED):
            rerank(connection)


@pytest.mark.parametrize(
    ("alternatives", "name"),
    [(("URI:spiffe://example/a%20b",), "spiffe://example/a%20b"), ((), "search")],
)
def test_a_certificate_names_its_caller_to_the_grpc_server_too(
    shown: Issued, authority: Authority, alternatives: tuple[str, ...], name: str
):
    own = authority.issue("search", *alternatives)
    with (
        beside(shown, authority.cert) as (port, records),
        connection_to(port, authority, own) as connection,
    ):
        assert rerank(connection).status == 200
        wait_for(lambda: bool(records))
        assert records.pop().caller.name == name
        connection.request("GET", "/v1/models")
        assert read(connection).status == 200
        # A token that is sent has to be right, also where it cannot be one, and headers name nobody.
        for sent in ("Bearer wrong", "Bearer two words", "Bearer ", "Basic !", "", f"Bearer {'a' * 5_000}"):
            assert rerank(connection, authorization=sent).status == 401, sent[:20]
        headers = {"tls.name": "other", "x-forwarded-client-cert": "URI=other"}
        records.clear()
        assert rerank(connection, **headers).status == 200
        wait_for(lambda: bool(records))
        assert records.pop().caller.name == name


def test_a_connection_by_certificate_ends_at_its_age_with_an_answer(
    shown: Issued, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "CERTIFIED_SECONDS", 0.0)
    own = authority.issue("search")
    with beside(shown, authority.cert) as (port, _), connection_to(port, authority, own) as connection:
        reply = rerank(connection)
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert connection.sock is None
        assert rerank(connection).status == 200
    with beside(shown) as (port, _), connection_to(port, authority) as connection:
        assert "keep-alive" in rerank(connection).headers


def test_a_certificate_that_names_nobody_is_told_so(shown: Issued, authority: Authority):
    own = authority.issue("x\ty")
    with beside(shown, authority.cert) as (port, _), connection_to(port, authority, own) as connection:
        reply = rerank(connection)
        assert reply.status == 401
        assert b"the certificate names nobody" in reply.raw


def test_connections_that_say_nothing_cost_little_memory(shown: Issued):
    count = 50
    with beside(shown) as (port, _), ExitStack() as opened:
        call(port, "GET", "/health")
        tracemalloc.start()
        opened.callback(tracemalloc.stop)
        for _ in range(count):
            opened.enter_context(socket.create_connection((HOST, port), WAIT)).sendall(b"\x16")
        # A TLS record is 16 KiB; asyncio by itself takes 256 KiB for each.
        wait_for(lambda: tracemalloc.get_traced_memory()[0] > count * 16_384)
        call(port, "GET", "/health")  # behind all of them
        assert tracemalloc.get_traced_memory()[0] < count * 100_000


def test_without_a_certificate_of_the_client_ca_nobody_comes_in(
    shown: Issued, authority: Authority, tmp_path: Path
):
    strangers = Authority(tmp_path / "theirs")
    expired = authority.issue("expired", begins=-2, ends=-1)
    with beside(shown, authority.cert, access_tokens=("t0ken",)) as (port, records):
        for own in (None, strangers.issue("search"), expired):
            with connection_to(port, authority, own) as connection, pytest.raises(REFUSED):
                rerank(connection, authorization="Bearer t0ken")
        assert not records


def test_curl_is_told_why_its_certificate_is_refused(shown: Issued, authority: Authority):
    cert, key = authority.issue("expired", begins=-2, ends=-1)
    with beside(shown, authority.cert) as (port, _):
        files = (authority.cert, cert, key)
        command = ["curl", "-sS", *chain(*zip(("--cacert", "--cert", "--key"), map(str, files), strict=True))]
        said = subprocess.run(
            [*command, f"https://localhost:{port}/health"], capture_output=True, text=True, timeout=WAIT
        )
    assert said.returncode
    assert "certificate expired" in said.stderr


def test_alone_rest_knows_callers_by_certificate_and_calls_by_its_own_token(
    shown: Issued, authority: Authority
):
    own = authority.issue("search")
    files = TlsFiles(shown.cert, shown.key, authority.cert)
    with (
        serving(ServerSettings(access_tokens=("behind",)), runner=CountingRunner()) as server,
        rest_server(server.port, upstream_token="behind", tls=files) as port,
        connection_to(port, authority, own) as connection,
    ):
        assert rerank(connection).status == 200
        assert rerank(connection, authorization="Bearer wrong").status == 401


def test_of_answers_that_nobody_reads_the_oldest_goes_and_others_come_whole(
    shown: Issued, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "UNREAD_BYTES", 1 << 20)
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.0)
    LoopClock(monkeypatch)
    size = 11 << 20  # far more than the kernel keeps for a connection
    body = json.dumps({"query": "q", "documents": [{"text": "d", "pad": "x" * size}]}).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"

    def answer_of(connection: http.client.HTTPSConnection) -> socket.socket:
        connection.connect()
        connection.sock.sendall(head.encode() + body)
        assert connection.sock.recv(15) == b"HTTP/1.1 200 OK"
        return connection.sock

    def rest_of(secure: socket.socket) -> int:
        return sum(map(len, iter(lambda: secure.recv(1 << 20), b"")))

    with (
        beside(shown) as (port, _),
        connection_to(port, authority) as first,
        connection_to(port, authority) as second,
    ):
        unread, read_to_its_end = answer_of(first), answer_of(second)
        assert rest_of(unread) < size < rest_of(read_to_its_end)


def test_handshakes_that_never_end_make_room_for_others(
    shown: Issued, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rest_module, "MAX_CONNECTIONS", 8)
    with beside(shown) as (port, _):
        silent = [socket.create_connection((HOST, port), WAIT) for _ in range(30)]
        with connection_to(port, authority) as connection:
            assert rerank(connection).status == 200
        closed = [each for each in silent if _is_closed(each)]
        assert len(closed) >= 30 - 8
        for each in silent:
            each.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_handshake_has_its_time(shown: Issued, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.2)
    with beside(shown) as (port, _), socket.create_connection((HOST, port), WAIT) as silent:
        assert silent.recv(1) == b""


def test_a_call_right_behind_the_handshake_is_answered(shown: Issued, authority: Authority):
    """Has the end of the handshake and a request come in one segment, before asyncio tells of either."""
    with beside(shown) as (port, _), socket.create_connection((HOST, port), WAIT) as plain:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = context_of(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                secure.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65_536))
        secure.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        plain.sendall(outgoing.read())
        while data := plain.recv(65_536):
            incoming.write(data)
        assert secure.read(15) == b"HTTP/1.1 200 OK"


def test_a_caller_that_leaves_ends_its_call(shown: Issued, authority: Authority):
    runner = HeldRunner()
    files = TlsFiles(shown.cert, shown.key)
    own = replace(ServerSettings(tls=files), rest=RestSettings(port=0))
    with serving(own, runner=runner) as server:
        rest = rest_beside(server)
        assert rest is not None
        rest.start()
        with connection_to(rest.port, authority) as connection:
            connection.request("POST", "/v1/rerank", json.dumps(BODY).encode())
            runner.await_batch()
            assert server.reranker.gate.calls == 1
        wait_for(lambda: server.reranker.gate.calls == 0)
        rest.stop(5)
