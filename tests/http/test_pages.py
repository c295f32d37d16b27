"""Pages in a browser that call a server of this machine without tokens: its own may, foreign ones may not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rerank_grpc.config.settings import RestSettings
from rerank_grpc.rest.server import RestServer
from rerank_grpc.server.server import RerankServer
from tests.rest.support import HOST, call, get, post, rest_server
from tests.support import CountingRunner, serving

BODY = {"query": "q", "documents": ["d"]}
LISTED = "https://app.example"
NEAR = (
    "http://localhost:3000",
    "http://127.0.0.1:6006",
    "http://[::1]:6006",
    "http://LOCALHOST",
    "http://app.localhost",
)
FOREIGN = (
    "https://evil.example",
    "http://rebound.evil.example:6006",
    "null",
    "",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://evil.example/#localhost",
    "http://localhost@evil.example",
    "https://app.example.evil.example",
    "https://app.example:8443",
    "http://app.example",
    "http://[::1",
    "file://",
    "localhost",
    "http://192.168.1.5",
)


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


@pytest.fixture(scope="module")
def port(server: RerankServer) -> Iterator[int]:
    with rest_server(server.port) as port:
        yield port


@pytest.fixture(scope="module")
def listing(server: RerankServer) -> Iterator[int]:
    with rest_server(server.port, cors=(LISTED,)) as port:
        yield port


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_is_told_what_lets_it_in(port: int, listing: int, origin: str) -> None:
    for each in (port, listing):
        # A page whose own name leads to this machine sends that as the host, too.
        reply = post(each, "/v1/rerank", BODY, origin=origin, host=origin.rpartition("/")[2] or "x")
        assert reply.status == 403
        assert "set tokens" in reply.json["message"]
        assert "--rest-cors" in reply.json["message"]
        # What a page may send without asking first: a form's media types.
        assert post(each, "/tei/rerank", BODY, origin=origin, content_type="text/plain").status == 403
        assert get(each, "/v1/models", origin=origin).status == 403
        assert call(each, "OPTIONS", "/v1/rerank", None, {"origin": origin}).status == 403
        assert "access-control-allow-origin" not in reply.headers


def test_two_origins_are_as_foreign_as_the_foreign_one(port: int) -> None:
    assert post(port, "/v1/rerank", BODY, origin=f"{NEAR[0]}, https://evil.example").status == 403


@pytest.mark.parametrize("origin", NEAR)
def test_pages_of_this_machine_and_the_one_of_the_docs_may_call(port: int, origin: str) -> None:
    assert post(port, "/v1/rerank", BODY, origin=origin).status == 200


def test_a_listed_page_may_call(listing: int) -> None:
    reply = post(listing, "/v1/rerank", BODY, origin=LISTED)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, LISTED)


def test_a_star_lets_every_page_in(server: RerankServer) -> None:
    with rest_server(server.port, cors=("*",)) as port:
        assert post(port, "/v1/rerank", BODY, origin="https://evil.example").status == 200


@pytest.mark.parametrize("host", ["rerank.example", "10.1.2.3:80", "localhost", "xn--gckc.example:8443"])
def test_programs_and_proxies_may_call_whatever_host_they_name(port: int, host: str) -> None:
    """A proxy passes the host on that its caller named."""
    assert post(port, "/v1/rerank", BODY, host=host, x_forwarded_for="203.0.113.7").status == 200


def test_a_token_is_all_that_counts_where_one_is_needed(server: RerankServer) -> None:
    with rest_server(server.port, tokens=("first-token",)) as port:
        evil = {"origin": "https://evil.example"}
        assert post(port, "/v1/rerank", BODY, **evil).status == 401
        assert post(port, "/v1/rerank", BODY, **evil, authorization="Bearer first-token").status == 200


def test_what_listens_for_other_machines_leaves_pages_to_their_proxy(server: RerankServer) -> None:
    # As in a container, where a proxy stands before it.
    rest = RestServer(RestSettings(targets=(f"{HOST}:{server.port}",), host="0.0.0.0", port=0))
    rest.start()
    try:
        assert post(rest.port, "/v1/rerank", BODY, origin="https://evil.example").status == 200
    finally:
        rest.stop(5)
