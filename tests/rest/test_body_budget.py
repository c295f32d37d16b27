"""The bytes of all bodies inside at once: what is too much is refused before it is read on."""

import pytest

from rerank_grpc.rest import app
from rerank_grpc.server.app import RerankServer
from tests.rest.support import get, post, shim
from tests.rest.test_rest_connections import BODY, connect, held, request  # noqa: F401
from tests.support import HeldRunner

LONG = {"query": "q", "documents": ["word " * 150]}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODIES_BYTES", 1_000)


def test_bodies_count_until_their_calls_are_answered(held: tuple[HeldRunner, RerankServer]) -> None:  # noqa: F811
    runner, server = held
    with shim(server.port) as port:
        with connect(port, request(LONG, "Connection: close")) as first:
            runner.await_batch()
            for path in ("/v1/rerank", "/tei/rerank"):
                reply = post(port, path, LONG)
                assert (reply.status, reply.headers["retry-after"]) == (429, "1")
            assert get(port, "/health").status == 200
            runner.let_all()
            assert first.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert post(port, "/v1/rerank", LONG).status == 200


def test_what_is_too_much_is_refused_before_the_rest_comes(scripted: RerankServer) -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with shim(scripted.port) as port:
        for _ in range(3):
            with connect(port, head + b" " * 1_001) as connection:
                answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1\r\n" in answer
        assert post(port, "/v1/rerank", BODY).status == 200


@pytest.mark.parametrize("body", [b"nonsense", b'{"query": 1}', b""])
def test_a_refused_body_counts_no_longer(scripted: RerankServer, body: bytes) -> None:
    with shim(scripted.port) as port:
        for _ in range(3):
            assert post(port, "/v1/rerank", body.ljust(900)).status == 400
        assert post(port, "/v1/rerank", LONG).status == 200
