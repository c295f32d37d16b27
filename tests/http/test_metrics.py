"""What a scrape gets, by HTTP's rules and Prometheus' formats."""

import contextlib
import gzip
import logging
import socket
import threading
import time

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.http.metrics import metrics_server
from tests.http.support import ScriptedCollector, scraped
from tests.rest.support import HOST, call, get
from tests.support import WAIT

OPEN = "application/openmetrics-text"
# What Prometheus 3 sends.
PROMETHEUS = (
    f"{OPEN};version=1.0.0;escaping=allow-utf-8;q=0.6,{OPEN};version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def test_a_scrape_gets_what_is_collected_at_that_moment() -> None:
    with scraped(ScriptedCollector()) as port:
        first, second = get(port, "/metrics"), get(port, "/metrics/")
    assert (first.status, second.status) == (200, 200)
    assert first.headers["content-type"].startswith("text/plain; version=0.0.4")
    (family,) = plain_text(first.raw.decode())
    assert [sample.value for sample in family.samples] == [1.0]
    assert second.raw.endswith(b"\nvalue 2.0\n")


@pytest.mark.parametrize("accept", [PROMETHEUS, OPEN, f"text/html,{OPEN}; version=1.0.0"])
def test_a_scraper_that_knows_openmetrics_gets_it(accept: str) -> None:
    with scraped(ScriptedCollector()) as port:
        reply = get(port, "/metrics", accept=accept)
    assert reply.headers["content-type"].startswith(f"{OPEN}; version=1.0.0")
    assert next(iter(open_metrics(reply.raw.decode()))).name == "value"


@pytest.mark.parametrize(
    "accept",
    [
        f"{OPEN};version=one.two",
        f"{OPEN};version=1.x",
        f"{OPEN};version={'9' * 5_000}",
        "text/plain;version=1.a",
        ";;;,=,",
        "x" * 20_000,
        "é",
    ],
)
def test_an_odd_accept_header_gets_plain_text_and_no_line_in_the_log(
    accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    with scraped(ScriptedCollector()) as port:
        reply = get(port, "/metrics", accept=accept)
        assert reply.status == 200
        assert b"value 1.0" in reply.raw
    assert caplog.records == []


def test_it_is_compressed_where_the_scraper_takes_gzip() -> None:
    with scraped(ScriptedCollector(size=10_000)) as port:
        reply = get(port, "/metrics", accept_encoding="deflate, gzip;q=0.9")
        assert reply.headers["content-encoding"] == "gzip"
        assert len(reply.raw) < 1_000
        assert gzip.decompress(reply.raw).endswith(b"value 1.0\n")
        assert "content-encoding" not in get(port, "/metrics").headers
        assert "content-encoding" not in get(port, "/metrics", accept_encoding="gzip;q=0, deflate").headers
        assert "content-encoding" not in get(port, "/metrics", accept_encoding="gzip," * 1_000).headers


def test_a_head_has_the_length_and_no_body() -> None:
    with scraped(ScriptedCollector()) as port:
        head, whole = call(port, "HEAD", "/metrics"), get(port, "/metrics")
    assert (head.status, head.raw) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.raw))


@pytest.mark.parametrize("path", ["/metric", "/metrics/all", "/health", "//x", "/%2e%2e"])
def test_another_path_is_404_in_one_line(path: str) -> None:
    with scraped(ScriptedCollector()) as port:
        reply = get(port, path)
    assert (reply.status, reply.raw.count(b"\n")) == (404, 1)
    assert b"/metrics" in reply.raw


def test_the_root_says_where_the_metrics_are() -> None:
    collector = ScriptedCollector()
    with scraped(collector) as port:
        assert get(port, "/").raw == b"rerank-grpc: the metrics are at /metrics\n"
    assert collector.scrapes == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_another_method_is_405(method: str) -> None:
    with scraped(ScriptedCollector()) as port:
        reply = call(port, method, "/metrics", b"{}")
    assert (reply.status, reply.headers["allow"], reply.raw.count(b"\n")) == (405, "GET, HEAD", 1)


def test_a_collector_that_fails_is_500_in_one_line_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    broken = True

    def fail() -> None:
        if broken:
            raise RuntimeError("canary")

    with scraped(ScriptedCollector(fail)) as port:
        replies = [get(port, "/metrics") for _ in range(5)]
        assert [(reply.status, reply.raw.count(b"\n")) for reply in replies] == [(500, 1)] * 5
        (line,) = [record.getMessage() for record in caplog.records]
        assert "RuntimeError at test_metrics.py" in line
        broken = False
        assert get(port, "/metrics").status == 200
        broken = True
        assert get(port, "/metrics").status == 500
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert b"canary" not in replies[0].raw
    assert "canary" not in caplog.text


def test_scrapers_who_wait_share_one_text_and_all_of_them_leave_the_calls_most_of_the_time() -> None:
    def work() -> None:
        end = time.monotonic() + 0.02
        while time.monotonic() < end:
            pass

    collector = ScriptedCollector(work)
    with scraped(collector) as port:
        begin = time.monotonic()
        for _ in range(300):  # each leaves at once
            with socket.create_connection((HOST, port), timeout=WAIT) as caller:
                caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert get(port, "/metrics").status == 200
        seconds = time.monotonic() - begin
    # A scrape, and then nine times as long none.
    assert collector.scrapes <= 2 + seconds / 0.2


def test_a_taken_port_is_said_with_what_to_do_about_it() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf":{port} for metrics: .*--metrics-port \(or off\)"):
            metrics_server(CollectorRegistry(), HOST, port)


@pytest.mark.clock
def test_a_collector_that_hangs_keeps_its_own_thread_and_no_server_from_stopping() -> None:
    let = threading.Event()
    registry = CollectorRegistry()
    registry.register(ScriptedCollector(let.wait))
    server = metrics_server(registry, HOST, 0)
    before = set(threading.enumerate())
    server.start()
    with contextlib.ExitStack() as ends:
        for _ in range(10):
            caller = ends.enter_context(socket.create_connection((HOST, server.port), timeout=WAIT))
            caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len(set(threading.enumerate()) - before) == 1
        begin = time.monotonic()
        server.stop(0, end_seconds=0.1)
        assert time.monotonic() - begin < 1
        let.set()
    server.stop(0)
