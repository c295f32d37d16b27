"""Markup of a caller's on every path: it comes back within JSON or not at all, and no answer is sniffed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from prometheus_client import CollectorRegistry

from rerank_grpc.http.metrics import metrics_server
from rerank_grpc.rest import dialects
from rerank_grpc.server.server import RerankServer
from tests.hostile.http import received
from tests.hostile.test_fuzzed_bodies import GOLDEN, places, put
from tests.rest.support import HOST, Reply, call, get, rest_server
from tests.support import WAIT, CountingRunner, serving


def digest(script: bytes) -> str:
    """Writes the digest of a script as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`${{7*7}}"
IN_PATH = quote(MARKUP)
NAMES = (
    *("accept", "user-agent", "referer", "x-request-id", "traceparent", "tracestate", "x-request-timeout"),
    *("connect-timeout-ms", "content-type", "content-encoding", "cookie", "x-forwarded-host"),
    *("x-forwarded-prefix", "x-api-key", "authorization"),
)
HEADERS = dict.fromkeys(NAMES, MARKUP)
DISCOVERY = (
    *("/", "/health", "/ping", "/v1/cluster/auth", "/v1/models", "/v1/models/embedded", "/models", "/info"),
    *(
        "/model-info",
        "/.well-known/live",
        "/.well-known/ready",
        "/meta",
        "/openapi.json",
        "/docs",
        "/metrics",
    ),
)
PATHS = (*DISCOVERY, *GOLDEN, *(f"/{prefix}/rerank" for prefix in dialects.PREFIXES))


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


@pytest.fixture(scope="module")
def port(server: RerankServer) -> Iterator[int]:
    with rest_server(server.port) as port:
        yield port


@pytest.fixture(scope="module")
def metrics_port() -> Iterator[int]:
    server = metrics_server(CollectorRegistry(), HOST, 0)
    server.start()
    try:
        yield server.port
    finally:
        server.stop(5)


def check(reply: Reply) -> None:
    """Sees to it that no browser takes a caller's text for a page."""
    assert reply.headers["x-content-type-options"] == "nosniff"
    kind = reply.headers.get("content-type", "").partition(";")[0]
    if reply.raw:
        assert kind in ("application/json", "text/html", "text/plain", "application/openmetrics-text")
    if kind == "application/json" and reply.raw:
        json.loads(reply.raw)
    else:
        assert b"alert(1)" not in reply.raw
        assert b"<script>alert" not in reply.raw
    for text in reply.headers.values():
        assert "alert" not in text


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", PATHS)
def test_no_path_query_or_header_becomes_a_page(port: int, method: str, path: str) -> None:
    body = json.dumps({"model": MARKUP, "query": MARKUP}).encode() if method == "POST" else None
    for target in (f"{path}/{IN_PATH}", f"{path}?q={IN_PATH}&url={IN_PATH}", f"/{IN_PATH}{path}", path):
        check(call(port, method, target, body))
    for name, text in HEADERS.items():
        check(call(port, method, path, body, {name: text}))


@pytest.mark.parametrize("path", GOLDEN)
def test_no_field_of_a_body_becomes_a_page(port: int, path: str) -> None:
    for body in GOLDEN[path][:2]:
        for place in places(body):
            check(call(port, "POST", path, put(body, place, MARKUP)))
            check(call(port, "POST", path, put(body, place, {MARKUP: MARKUP})))


@pytest.mark.parametrize("path", ["/", "/metrics", "/nothing", f"/{IN_PATH}", f"/metrics?{IN_PATH}"])
def test_the_metrics_port_repeats_nothing(metrics_port: int, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        for name in ("accept", "user-agent", "accept-encoding"):
            check(call(metrics_port, method, path, None, {name: MARKUP}))


@pytest.mark.parametrize(
    "sent", [b"GET /%b HTTP/1.1\r\n\r\n", b"<script> / HTTP/1.1\r\nHost: x\r\n\r\n", b"%b\r\n\r\n"]
)
def test_no_request_that_is_none_becomes_a_page(port: int, metrics_port: int, sent: bytes) -> None:
    for each in (port, metrics_port):
        with socket.create_connection((HOST, each), timeout=WAIT) as connection:
            connection.sendall(sent.replace(b"%b", MARKUP.encode()))
            answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-content-type-options: nosniff" in answer.lower()
        assert b"script" not in answer


def test_swaggers_page_runs_its_own_scripts_alone_and_stands_in_no_other(port: int) -> None:
    for path in ("/docs", "/docs/", "/tei/docs//"):
        page = get(port, path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        (own,) = re.findall(rb"<script>(.*?)</script>", page.raw, re.DOTALL)
        assert digest(own) in policy
        assert "unsafe-eval" not in policy
