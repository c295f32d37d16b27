"""Browsers: pages of other origins that call REST, and the page of /docs."""

import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from rerank_grpc.config.settings import ServerSettings
from tests.rest.support import HOST, Reply, call, get, post, rest_server
from tests.support import CountingRunner, serving

TOKEN = "first-token"
BODY = {"query": "q", "documents": ["d"]}
PAGE = "https://app.example"
HEADERS = (
    "authorization,content-type,x-request-id,x-request-timeout,api-key,x-api-key,"
    "connect-protocol-version,connect-timeout-ms"
)
STRANGERS = (
    "null",
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.evil.example",
    "https://evil-app.example",
    "https://sub.app.example",
    "https://APP.example",
    "https://app.example/",
    "https://app.example, https://evil.example",
    "https://evil.example https://app.example",
    "*",
    "",
)


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    settings = replace(ServerSettings(), access_tokens=(TOKEN,))
    with serving(settings, runner=CountingRunner()) as server:
        yield server.port


@pytest.fixture(scope="module")
def closed(grpc_port: int) -> Iterator[int]:
    with rest_server(grpc_port, tokens=(TOKEN,)) as port:
        yield port


@pytest.fixture(scope="module")
def opened(grpc_port: int) -> Iterator[int]:
    with rest_server(grpc_port, tokens=(TOKEN,), cors=(PAGE, "http://localhost:3000")) as port:
        yield port


@pytest.fixture(scope="module")
def opened_to_all(grpc_port: int) -> Iterator[int]:
    with rest_server(grpc_port, tokens=(TOKEN,), cors=("*",)) as port:
        yield port


def preflight(port: int, origin: str, path: str = "/v1/rerank", **headers: str) -> Reply:
    """Asks as a browser does before it posts for a page."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return call(port, "OPTIONS", path, None, asked | {"Access-Control-Request-Headers": HEADERS} | headers)


@pytest.mark.case(11)
def test_browsers_may_not_call_by_default(closed: int) -> None:
    reply = preflight(closed, PAGE)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    for answer in (reply, post(closed, "/v1/rerank", BODY, origin=PAGE, authorization=TOKEN)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.case(11)
@pytest.mark.parametrize("path", ["/v1/rerank", "/api/v1/rerank/", "/tei/rerank", "/v1/models"])
def test_a_named_origin_asks_without_a_token(opened: int, path: str) -> None:
    for origin in (PAGE, "http://localhost:3000"):
        reply = preflight(opened, origin, path, **{"Access-Control-Request-Private-Network": "true"})
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == origin
        assert set(HEADERS.split(",")) <= set(
            reply.headers["access-control-allow-headers"].lower().split(",")
        )
        assert {"GET", "POST"} == set(reply.headers["access-control-allow-methods"].split(", "))
        assert reply.headers["access-control-allow-private-network"] == "true"
        assert "Origin" in reply.headers["vary"]
        # A browser's own credentials, such as cookies, have no business here.
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.case(11)
@pytest.mark.parametrize("origin", STRANGERS)
def test_any_other_origin_gets_no_permission(opened: int, origin: str) -> None:
    answers = preflight(opened, origin), post(opened, "/v1/rerank", BODY, origin=origin, authorization=TOKEN)
    assert answers[0].status == 400
    assert answers[1].status == 200
    for reply in answers:
        assert "access-control-allow-origin" not in reply.headers
        assert "Origin" in reply.headers["vary"]


@pytest.mark.case(11)
def test_every_answer_may_be_read_also_errors(opened: int, opened_to_all: int) -> None:
    for port, allowed in ((opened, PAGE), (opened_to_all, "*")):
        too_large = post(port, "/v1/rerank", b" " * (13 << 20), origin=PAGE, authorization=TOKEN)
        answers = {
            200: post(port, "/v1/rerank", BODY, origin=PAGE, authorization=f"Bearer {TOKEN}"),
            400: post(port, "/v1/rerank", {}, origin=PAGE, authorization=TOKEN),
            401: post(port, "/v1/rerank", BODY, origin=PAGE),
            404: post(port, "/v3", BODY, origin=PAGE),
            405: call(port, "DELETE", "/v1/rerank", None, {"origin": PAGE}),
            413: too_large,
            422: post(port, "/tei/rerank", {}, origin=PAGE, authorization=TOKEN),
        }
        for status, reply in answers.items():
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == allowed
            assert reply.headers["access-control-expose-headers"] == "x-request-id, retry-after"
            assert "Origin" in reply.headers["vary"]


@pytest.mark.case(11)
def test_a_refusal_may_be_read_with_its_time_to_come_back() -> None:
    with socket.socket() as nobody:  # a port on which nothing listens
        nobody.bind((HOST, 0))
        with rest_server(nobody.getsockname()[1], cors=(PAGE,)) as port:
            reply = post(port, "/v1/rerank", BODY, origin=PAGE)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert reply.headers["access-control-allow-origin"] == PAGE


@pytest.mark.case(11)
def test_a_star_lets_every_page_in_with_the_token_that_it_has(opened_to_all: int) -> None:
    for origin in (PAGE, "null", "https://evil.example"):
        assert preflight(opened_to_all, origin).headers["access-control-allow-origin"] == "*"
        assert post(opened_to_all, "/v1/rerank", BODY, origin=origin).status == 401


def resolved(path: str, link: str) -> str:
    """Resolves a relative link as a browser does, for which an empty segment is a directory, too."""
    folders = path.partition("?")[0].split("/")[1:-1]
    for part in link.split("/"):
        if part != "..":
            folders.append(part)
        elif folders:
            folders.pop()
    return "/" + "/".join(folders)


@pytest.mark.case(21)
@pytest.mark.parametrize("base", ["", "/behind/a/proxy"])
@pytest.mark.parametrize(
    "path",
    [
        *("/docs", "/docs/", "/docs//", "/docs///", "//docs/", "/docs/?a/", "/docs/%2F", "/docs%2F"),
        *("/tei/docs", "/tei/docs/", "/tei//docs//"),
    ],
)
def test_the_page_loads_all_that_it_links_to(closed: int, base: str, path: str) -> None:
    page = get(closed, path)
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'(?:src|href|url)(?:=|: )"(?!data:)([^"]+)"', page.raw.decode())
    assert len(links) == 3
    for link in links:
        there = resolved(base + path, link)
        assert there.startswith(f"{base}/")
        reply = get(closed, there.removeprefix(base))
        assert reply.status == 200
        assert len(reply.raw) > 5_000
