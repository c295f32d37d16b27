"""`rerank-grpc top`: its figures and its layout, and the command on a terminal against a server's metrics."""

from __future__ import annotations

import contextlib
import io
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console

from rerank_grpc.cli.terminal import cells
from rerank_grpc.cli.top import scrape
from rerank_grpc.cli.top.command import endpoint
from rerank_grpc.cli.top.figures import Figures, Scrape, Tally, figures_of, quantile, remember, scrape_of
from rerank_grpc.cli.top.scrape import ScrapeError, samples_of
from rerank_grpc.cli.top.view import draw
from rerank_grpc.client import Client
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import read_metrics_target
from tests.command import changed, environment, run, served
from tests.ports import free_port, refusing_port
from tests.support import wait_for
from tests.terminals import Terminal

BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0)
URL = "http://127.0.0.1:9090/metrics"


class Metrics:
    """A server's metrics, by its names and labels, which a test moves."""

    def __init__(self, *models: str, started: float | None = None) -> None:
        self.registry = CollectorRegistry()
        self._gauge("process_start_time_seconds").set(time.time() - 7260 if started is None else started)
        build = self._gauge("rerank_build_info", "version", "torch", "device", "precision")
        build.labels("0.1.0", "2.11.0", "cuda:0", "bf16").set(1)
        self.states = self._gauge("rerank_model_state", "model", "state")
        self.calls = self._counter(
            "rerank_calls", "method", "protocol", "dialect", "model", "code", "reason", "caller"
        )
        self.seconds = Histogram(
            "rerank_call_duration_seconds",
            "x",
            ("method", "protocol", "model"),
            buckets=BOUNDS,
            registry=self.registry,
        )
        self.documents = self._counter("rerank_documents", "model", "caller")
        self.busy = self._counter("rerank_device_busy_seconds", "model")
        self.tokens = Histogram("rerank_batch_tokens", "x", ("model",), registry=self.registry)
        self.fill = Histogram("rerank_batch_fill_ratio", "x", ("model",), registry=self.registry)
        self.refusals = self._counter("rerank_refusals", "reason", "caller")
        self.inside, self.queue, self.capacity, self.oldest, self.memory = (
            self._gauge(name, "model")
            for name in (
                "rerank_calls_inside",
                "rerank_queue_tokens",
                "rerank_queue_capacity_tokens",
                "rerank_queue_oldest_seconds",
                "rerank_model_memory_bytes",
            )
        )
        for model in models:
            self.state(model, "ready")

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(name, "x", labels, registry=self.registry)

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(name, "x", labels, registry=self.registry)

    def state(self, model: str, state: str) -> None:
        for each in ("unloaded", "loading", "ready", "unloading", "failed"):
            self.states.labels(model, each).set(each == state)

    def call(self, model: str, seconds: float = 0.05, code: str = "OK", documents: int = 10) -> None:
        self.calls.labels("Rerank", "grpc", "", model, code, "", "").inc()
        self.seconds.labels("Rerank", "grpc", model).observe(seconds)
        self.documents.labels(model, "").inc(documents)
        self.tokens.labels(model).observe(100 * documents)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def scrape(self, at: float) -> Scrape:
        return scrape_of(samples_of(self.text()), at, time.time())


def figures(*scrapes: Scrape) -> Figures:
    kept: tuple[Scrape, ...] = ()
    for each in scrapes:
        kept = remember(kept, each)
    return figures_of(kept)


# The figures


def test_rates_quantiles_and_shares_come_from_what_counters_have_grown():
    metrics = Metrics("bge", "gte")
    metrics.call("bge", 5.0)  # before the first scrape, so it counts nowhere
    first = metrics.scrape(100.0)
    for _ in range(40):
        metrics.call("bge", 0.05)
        metrics.fill.labels("bge").observe(0.75)
    metrics.busy.labels("bge").inc(3.2)
    metrics.inside.labels("bge").set(2)
    metrics.queue.labels("bge").set(5_000)
    metrics.capacity.labels("bge").set(20_000)
    metrics.oldest.labels("bge").set(0.25)
    metrics.memory.labels("bge").set(2**30)
    shown = figures(first, metrics.scrape(104.0))
    bge, gte = shown.models
    assert (bge.name, bge.state, bge.calls, bge.documents, bge.tokens) == ("bge", "ready", 10, 100, 10_000)
    assert bge.p50 == pytest.approx(0.01 + 0.09 * 0.5)
    assert bge.p99 == pytest.approx(0.01 + 0.09 * 0.99)
    assert (bge.inside, bge.queue, bge.full, bge.oldest) == (2, 5_000, 0.25, 0.25)
    assert (bge.fill, bge.busy) == pytest.approx((0.75, 0.8))
    assert bge.memory == 2**30
    assert (gte.calls, gte.p50, gte.p99, gte.fill, gte.memory) == (0, None, None, None, None)
    assert shown.uptime == pytest.approx(7260, abs=5)
    assert shown.build["device"] == "cuda:0"


def test_quantiles_are_of_half_a_minute_and_rates_of_five_seconds():
    metrics = Metrics("bge")
    scrapes = [metrics.scrape(0.0)]
    for second in range(1, 61):
        metrics.call("bge", 5.0 if second <= 25 else 0.5)
        scrapes.append(metrics.scrape(float(second)))
    (model,) = figures(*scrapes).models
    assert model.calls == 1.0
    assert model.p99 is not None
    assert model.p99 < 1.0  # the slow ones are more than half a minute ago
    assert figures(*scrapes).window_seconds == 30.0
    # Nothing for 20 s, as where nobody answered: the rate is of that time.
    metrics.call("bge")
    late = figures(*scrapes, metrics.scrape(80.0))
    assert (late.rate_seconds, late.models[0].calls) == (20.0, 0.05)


def test_one_scrape_has_no_rates():
    metrics = Metrics("bge")
    metrics.refusals.labels("queue_full", "").inc(3)
    shown = figures(metrics.scrape(1.0))
    assert (shown.models[0].calls, shown.models[0].busy, shown.models[0].p50) == (None, None, None)
    assert shown.refusals == [Tally("queue_full", None, 3)]


def test_a_server_that_has_started_anew_begins_anew():
    old, new = Metrics("bge", started=1_000.0), Metrics("bge", started=2_000.0)
    for _ in range(10):
        old.call("bge")
        new.call("bge")
    first, second = old.scrape(1.0), new.scrape(2.0)
    assert figures(first, second).models[0].calls is None
    new.call("bge")
    assert figures(first, second, new.scrape(3.0)).models[0].calls == 1.0


def test_refusals_and_errors_are_listed_by_how_often_they_happen():
    metrics = Metrics("bge")
    metrics.refusals.labels("rate_limited", "shop").inc(50)
    metrics.refusals.labels("unauthenticated", "").inc(0)
    metrics.call("bge", code="INTERNAL")
    first = metrics.scrape(0.0)
    metrics.refusals.labels("queue_full", "").inc(4)
    metrics.call("other", code="NOT_FOUND")
    metrics.call("bge")
    shown = figures(first, metrics.scrape(2.0))
    assert shown.refusals == [Tally("queue_full", 2.0, 4), Tally("rate_limited shop", 0.0, 50)]
    assert shown.errors == [Tally("NOT_FOUND", 0.5, 1), Tally("INTERNAL", 0.0, 1)]
    assert [model.name for model in shown.models] == ["bge"]


def test_a_server_without_models_shows_those_that_were_called():
    text = 'rerank_calls_total{method="Rerank",protocol="rest",model="bge",code="OK"} 3\n'
    (model,) = figures(scrape_of(samples_of(text), 1.0, 1.0)).models
    assert (model.name, model.state, model.queue) == ("bge", "", None)


def test_tokens_are_those_that_the_device_has_read():
    metrics = Metrics("bge")
    first = metrics.scrape(1.0)
    metrics.tokens.labels("bge").observe(500)
    # Of calls that have ended, equal pairs and those that were cancelled in the queue included.
    text = metrics.text() + 'rerank_tokens_total{model="bge"} 9000\n'
    (model,) = figures(first, scrape_of(samples_of(text), 3.0, time.time())).models
    assert model.tokens == 250


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0.0, math.inf: 0.0}, 0.5, None),
        ({1.0: 10.0, math.inf: 10.0}, 0.5, 0.5),
        ({1.0: 5.0, 3.0: 10.0, math.inf: 10.0}, 0.75, 2.0),
        ({1.0: 5.0, math.inf: 10.0}, 0.99, 1.0),  # all that is known is that they took longer
        ({math.inf: 10.0}, 0.5, 0.0),
        ({1.0: 10.0, 2.0: 4.0, math.inf: 10.0}, 0.5, 0.5),  # counts that go down are none
    ],
)
def test_quantiles_are_interpolated_within_a_bucket(
    counts: dict[float, float], share: float, expected: float | None
):
    assert quantile(counts, share) == expected


# What is no metrics


NOT_METRICS = [
    "",
    "<html><body>rerank_calls_total{</body></html>",
    "rerank_calls_total",
    "rerank_calls_total NaN",
    "rerank_calls_total 1e999",
    "rerank_calls_total " + "9" * 400,
    'rerank_calls_total{model="a 1',
    'rerank_calls_total{model="a"}',
    'rerank_calls_total{model="a",model="b"} 1',
    "rerank_calls_total{" + 'a="' * 1000 + "} 1",
    "rerank_calls_total" + "{" * 5000,
    'rerank_calls_total{model="' + '\\"' * 3000 + '"} 1',
    "unknown_total 3",
    "# TYPE rerank_calls_total counter",
]


@pytest.mark.parametrize("text", NOT_METRICS)
def test_what_is_no_sample_is_left_out(text: str):
    assert samples_of(text) == []
    good = "process_start_time_seconds 5"
    assert [sample.value for sample in samples_of(f"{text}\n{good}\n{text}")] == [5.0]


def test_an_answer_with_too_many_samples_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scrape, "_MOST_SAMPLES", 10)
    with pytest.raises(ScrapeError, match="too many samples"):
        samples_of("rerank_calls_total 1\n" * 11)


# The layout


def drawn(shown: Figures, width: int, height: int | None, note: str = "") -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(draw(shown, URL, note, width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


def busy_server(count: int) -> Figures:
    """Makes the figures of a server with so many models, the later of which do more."""
    metrics = Metrics(*(f"bge-reranker-number-{n}-of-a-long-name" for n in range(count)))
    for reason in ("queue_full", "deadline_unreachable", "unauthenticated", "model_loading"):
        metrics.refusals.labels(reason, "").inc(123_456)
    first = metrics.scrape(0.0)
    for n in range(count):
        name = f"bge-reranker-number-{n}-of-a-long-name"
        for _ in range(n):
            metrics.call(name, 12.0, "RESOURCE_EXHAUSTED" if n % 3 else "DEADLINE_EXCEEDED", 999)
        metrics.queue.labels(name).set(123_456)
        metrics.capacity.labels(name).set(123_456)
        metrics.memory.labels(name).set(1023.9 * 2**30)
        metrics.oldest.labels(name).set(0.1234)
        metrics.inside.labels(name).set(96)
    return figures(first, metrics.scrape(1.0))


@pytest.mark.parametrize("width", [1, 10, 20, 40, 59, 60, 75, 76, 80, 100, 131, 132, 200])
@pytest.mark.parametrize("height", [1, 8, 24, 50])
@pytest.mark.parametrize("count", [0, 1, 4, 30])
def test_the_figures_fit_the_terminal(width: int, height: int, count: int):
    lines = drawn(busy_server(count), width, height)
    assert max(map(cells, lines)) <= width
    if height >= 24:
        assert len(lines) <= height


def test_80_columns_and_24_lines_hold_every_figure():
    lines = drawn(busy_server(4), 80, 24)
    text = "\n".join(lines)
    heads = "model state memory inside calls/s docs/s tokens/s busy p50 p99 queue full oldest fill"
    assert set(heads.split()) <= set(text.split())
    for words in (
        "ready",
        "1023.9 GiB",
        "3.0k",
        "100 %",
        "123 ms",
        "123k",
        "queue_full",
        "RESOURCE_EXHAUSTED",
    ):
        assert words in text, lines
    assert "deadline_unreachable" in text
    assert text.count("ready") == 4
    assert lines[0] == "rerank-grpc 0.1.0  up 2 h 1 min  http://127.0.0.1:9090/metrics"
    assert lines[1] == "cuda:0, bf16, torch 2.11.0"


def test_40_columns_hold_what_matters_most():
    lines = drawn(busy_server(2), 40, 24)
    text = "\n".join(lines)
    assert {"model", "state", "calls/s", "tokens/s", "p99", "full"} <= set(text.split())
    assert "bge-reranker-" in text
    assert "docs/s" not in text


@pytest.mark.parametrize("width", [40, 80, 160])
def test_of_more_models_than_lines_the_busiest_are_shown(width: int):
    lines = drawn(busy_server(30), width, 24)
    shown = [int(found[1]) for line in lines if (found := re.match(r"bge-reranker-number-(\d+)", line))]
    assert shown == list(range(29, 29 - len(shown), -1))
    assert f"… and {30 - len(shown)} more" in lines
    assert len(lines) <= 24
    everything = drawn(busy_server(30), width, None)
    assert sum(line.startswith("bge-reranker") for line in everything) == 30
    assert not any("more" in line for line in everything)


def test_where_nothing_is_known_a_dash_stands():
    lines = drawn(figures(Metrics("bge").scrape(1.0)), 160, None)
    (row,) = [line for line in lines if line.startswith("bge")]
    assert row.split() == ["bge", "ready", *"––––––––––––"]
    assert "rates come with the second scrape" in lines


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_server_without_a_device_leaves_no_line_empty_for_it(width: int):
    text = 'rerank_build_info{version="0.1.0",torch="",device="",precision=""} 1\n'
    text += 'rerank_calls_total{method="Rerank",protocol="rest",model="other",code="OK"} 3\n'
    lines = drawn(figures(scrape_of(samples_of(text), 1.0, 1.0)), width, 24)
    assert lines[1:3] == ["rates come with the second scrape", ""]
    assert lines[3].startswith("model")


def test_nothing_of_a_label_commands_the_terminal():
    bad = "\x1b[2J\x07\u202e[red]:smile:\n\r熊猫" * 50
    metrics = Metrics(bad)
    metrics.refusals.labels(bad, bad).inc()
    metrics.call(bad, code=bad)
    metrics._gauge("rerank_device_memory_used_bytes").set(2.0**1000)
    metrics._gauge("rerank_device_memory_free_bytes").set(-1)
    for width in (30, 80, 160):
        lines = drawn(figures(metrics.scrape(1.0)), width, 24)
        assert all(character.isprintable() for line in lines for character in line)
        assert max(map(cells, lines)) <= width
        assert sum(line.startswith("�[2J") for line in lines) >= 2


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("localhost", "http://localhost:9090/metrics"),
        ("10.0.0.1:91", "http://10.0.0.1:91/metrics"),
        ("::1", "http://[::1]:9090/metrics"),
        ("[::1]:91", "http://[::1]:91/metrics"),
        ("http://metrics.internal/", "http://metrics.internal/metrics"),
        ("https://metrics.internal/a/b", "https://metrics.internal/a/b"),
    ],
)
def test_an_endpoint_is_an_address_or_a_url(typed: str, url: str):
    assert endpoint(typed) == url


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "a:b",
        "a:70000",
        "ftp://a",
        "file:///etc/passwd",
        "http://u:secret@a",
        "a b",
        "a\x1b",
        "[::1",
        ":91",
    ],
)
def test_no_endpoint_is_one_line(typed: str):
    done = run("top", "--once", "--", typed)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "it is not HOST:PORT, as in 127.0.0.1:9090, or an HTTP URL" in done.stderr
    assert "secret" not in done.stderr


# What serves metrics


class Endpoint:
    """A real HTTP server, whose answer a test chooses; `stop` and `start` take it away and back."""

    def __init__(self, answer: Callable[[], str | bytes], port: int) -> None:
        self.answer, self.status, self.port = answer, 200, port
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = endpoint.answer()
                self.send_response(endpoint.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                with contextlib.suppress(OSError):  # the caller reads no further
                    self.wfile.write(answer if isinstance(answer, bytes) else answer.encode())

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def serving(answer: Callable[[], str | bytes], port: int = 0) -> Iterator[Endpoint]:
    endpoint = Endpoint(answer, port)
    try:
        yield endpoint
    finally:
        endpoint.stop()


@pytest.fixture(scope="module")
def patience(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a command that gives up a server later: a busy machine may not run these for seconds."""
    return changed(tmp_path_factory.mktemp("patience"), "rerank_grpc.cli.top.scrape", PATIENCE_SECONDS=30.0)


@pytest.mark.clock
def test_once_prints_plain_text_with_rates(patience: dict[str, str]):
    metrics = Metrics("bge", "gte")

    def answer() -> str:
        for _ in range(10):
            metrics.call("bge", documents=1)
        return metrics.text()

    begin = time.monotonic()
    with serving(answer) as server:
        done = run("top", "--once", server.address, FORCE_COLOR="1", TERM="xterm-256color", **patience)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("bge")]
    # How far apart the two scrapes are is the machine's to say: ten calls in less than all that time.
    calls, documents = row.split()[4:6]
    assert calls == documents
    assert float(calls.replace("k", "e3")) > 9 / (time.monotonic() - begin), done.stdout
    assert re.search(r"^gte +ready", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("answer", "status", "complaint"),
    [
        ("<html>hello \x1b[2J</html>", 200, "the answer has no metrics of rerank-grpc in it"),
        ("", 404, "HTTP status 404"),
        ("", 302, "HTTP status 302"),
        (b"rerank_calls_total 1\n" + b"#" * (9 << 20), 200, "the answer has more than 8 MiB"),
        (b"\xff\x00\x80" * 1000, 200, "the answer has no metrics of rerank-grpc in it"),
    ],
)
def test_what_answers_without_metrics_is_one_line(
    answer: str | bytes, status: int, complaint: str, patience: dict[str, str]
):
    with serving(lambda: answer) as server:
        server.status = status
        done = run("top", "--once", server.address, **patience)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"rerank-grpc: error: no metrics at http://{server.address}/metrics: {complaint} "
        f"(is the server started with --metrics-port {server.port}?)\n"
    )


def test_no_server_is_one_line_that_says_what_to_do():
    with refusing_port() as port:
        done = run("top", "--once", f"127.0.0.1:{port}", http_proxy="http://127.0.0.1:9", HTTP_PROXY="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"rerank-grpc: error: no metrics at http://127.0.0.1:{port}/metrics: connection refused "
        f"(is the server started with --metrics-port {port}?)\n"
    )


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nrerank"]
)
def test_what_speaks_no_http_is_one_line(answer: bytes, patience: dict[str, str]):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as caller:
                caller.recv(4096)
                caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = run("top", "--once", f"127.0.0.1:{listening.getsockname()[1]}", **patience)
        thread.join()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.search(
        r"the answer is no HTTP, or breaks off|the answer breaks off|the connection breaks off", done.stderr
    )


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = run("top", "--once", f"127.0.0.1:{listening.getsockname()[1]}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no answer within 2 s" in done.stderr


def test_without_a_terminal_it_says_how_to_print():
    done = run("top", "127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "--once prints plain text" in done.stderr


@pytest.mark.parametrize("package", ["rich", "prometheus_client"])
def test_a_package_that_is_missing_is_one_line(package: str):
    code = f"""
import sys
class Missing:
    def find_spec(name, *_):
        if name == {package!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Missing)
from rerank_grpc.cli import main
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "top", "--once"], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stdout) == (1, "")
    needs = f"top needs {package}, which is not installed"
    assert done.stderr == f'rerank-grpc: error: {needs}: pip install "rerank-grpc[top]"\n'


def test_the_endpoint_is_this_machines_where_none_is_named():
    assert read_metrics_target({}) == "127.0.0.1"
    assert read_metrics_target({"RERANK_METRICS_HOST": "0.0.0.0"}) == "127.0.0.1"
    assert read_metrics_target({"RERANK_METRICS_HOST": "::", "RERANK_METRICS_PORT": "91"}) == "[::1]:91"
    assert (
        read_metrics_target({"RERANK_METRICS_HOST": "10.0.0.1", "RERANK_METRICS_PORT": "91"}) == "10.0.0.1:91"
    )
    assert read_metrics_target({"RERANK_METRICS_PORT": "off"}) == "127.0.0.1"
    with pytest.raises(OptionError, match="RERANK_METRICS_PROT"):
        read_metrics_target({"RERANK_METRICS_PROT": "91"})


# On a terminal


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("bge-reranker-v2-m3", "gte-multilingual")


# A shell, or a program above the server's, may have told its size; it was right at that time.
@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "80", "LINES": "24"}], ids=["alone", "told a size"])
def test_the_screen_renews_itself_follows_a_resize_and_leaves_by_q(
    metrics: Metrics, variables: dict[str, str], patience: dict[str, str]
):
    told = variables | patience
    with serving(metrics.text) as server, Terminal(80, 24, "top", server.address, **told) as terminal:
        terminal.wait_for(r"^rates of \d+ s; p50, p99, fill, busy of \d+ s$")
        lines = terminal.lines
        assert lines[0].startswith("rerank-grpc 0.1.0  up 2 h 1 min  http://127.0.0.1:")
        assert {"bge-reranker-v2-m3", "gte-multilingual"} <= {line.split()[0] for line in lines if line}
        assert terminal.drawn.alternate
        assert not terminal.drawn.cursor
        for _ in range(100):
            metrics.call("bge-reranker-v2-m3", 0.05)
        metrics.refusals.labels("queue_full", "").inc(7)
        metrics.state("gte-multilingual", "failed")
        terminal.wait_for(r"^queue_full +\d+(\.\d)? +7\b")
        terminal.wait_for(r"^failed ")
        terminal.wait_for(r"^bge-reranker-v2-m3 +– +\d+(\.\d)? .* 55 ms ")
        assert not terminal.drawn.wrapped
        assert not terminal.drawn.scrolled
        terminal.resize(140, 30)
        terminal.wait_for(r"^bge-reranker-v2-m3 +ready ")
        terminal.resize(40, 12)
        terminal.wait_for(r"^bge-reranker-v2-m3 +\d")
        wait_for(lambda: not any("inside" in line for line in terminal.lines))
        terminal.resize(80, 24)
        terminal.wait_for(r"^bge-reranker-v2-m3 +– ")
        assert terminal.end(by="q") == 0
        assert terminal.is_restored()
        assert terminal.lines == [""] * 24


@pytest.mark.parametrize(
    ("key", "number", "status"),
    [
        ("\x03", None, 0),
        ("Q", None, 0),
        ("\x04", None, 0),
        ("", signal.SIGINT, 0),
        ("", signal.SIGTERM, 143),
        ("", signal.SIGHUP, 129),
    ],
)
def test_a_key_or_a_signal_gives_the_terminal_back(
    metrics: Metrics, key: str, number: signal.Signals | None, status: int, patience: dict[str, str]
):
    with serving(metrics.text) as server, Terminal(80, 24, "top", server.address, **patience) as terminal:
        terminal.wait_for("^bge-reranker-v2-m3")
        assert terminal.keeps_keys, (
            "a key that Ctrl-C throws away between select and read would be waited for"
        )
        terminal.type("xyz\x1b[A")  # means nothing, and is not shown
        assert terminal.end(by=key, number=number) == status
        assert terminal.is_restored()
        assert terminal.lines == [""] * 24


def test_a_stopped_job_gives_the_terminal_back_and_goes_on_later(metrics: Metrics, patience: dict[str, str]):
    with serving(metrics.text) as server, Terminal(80, 24, "top", server.address, **patience) as terminal:
        terminal.wait_for("^bge-reranker-v2-m3")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.await_stop()
        assert terminal.is_restored()
        terminal.process.send_signal(signal.SIGCONT)
        wait_for(lambda: terminal.drawn.alternate)
        terminal.wait_for("^bge-reranker-v2-m3")
        assert terminal.end(by="q") == 0
        assert terminal.is_restored()


def test_a_server_that_goes_away_is_waited_for(metrics: Metrics, patience: dict[str, str]):
    # The kernel gives this port to nobody else while it is free.
    here = serving(metrics.text, free_port())
    with here as server, Terminal(80, 24, "top", server.address, **patience) as terminal:
        terminal.wait_for("^bge-reranker-v2-m3")
        server.stop()
        lines = terminal.wait_for(r"^no answer since ([2-9]|\d\d+) s: connection refused$")
        assert any(line.startswith("bge-reranker-v2-m3") for line in lines)
        server.answer = lambda: "<html>\x1b[2J</html>"
        server.start()
        terminal.wait_for(r"^no answer since \d+ s: the answer has no metrics of rerank-grpc in it$")
        server.answer = Metrics("another").text
        terminal.wait_for("^another ")
        wait_for(lambda: not any("no answer" in line for line in terminal.lines))
        assert terminal.end(by="q") == 0
        assert terminal.is_restored()
        assert not terminal.drawn.wrapped


@pytest.mark.clock
def test_a_server_that_hangs_keeps_no_key_waiting(metrics: Metrics):
    hangs = threading.Event()

    def answer() -> str:
        if hangs.is_set():
            released.wait(20)
        return metrics.text()

    released = threading.Event()
    with serving(answer) as server, Terminal(80, 24, "top", server.address) as terminal:
        terminal.wait_for("^bge-reranker-v2-m3")
        hangs.set()
        terminal.wait_for(r"^no answer since \d+ s: no answer within 2 s$")
        begin = time.monotonic()
        assert terminal.end(by="q") == 0
        assert time.monotonic() - begin < 1.5
        assert terminal.is_restored()
        released.set()


def test_no_server_leaves_the_terminal_alone():
    with Terminal(80, 24, "top", "127.0.0.1:1") as terminal:
        assert terminal.process.wait(20) == 1
        terminal.wait_for("no metrics at http://127.0.0.1:1/metrics: connection refused")
        assert b"\x1b[?1049h" not in terminal.raw
        assert terminal.is_restored()


def test_a_terminal_without_a_cursor_is_told_to_print():
    with Terminal(80, 24, "top", "127.0.0.1:1", TERM="dumb") as terminal:
        assert terminal.process.wait(20) == 1
        terminal.wait_for("and this is none: --once pri")


def test_a_terminal_that_wants_no_colour_gets_none(metrics: Metrics, patience: dict[str, str]):
    with serving(metrics.text) as server:
        for variables, colours in (({}, True), ({"NO_COLOR": "1"}, False)):
            with Terminal(80, 24, "top", server.address, **patience, **variables) as terminal:
                terminal.wait_for("^bge-reranker-v2-m3")
                assert terminal.end(by="q") == 0  # only now is all of the frame read
                assert (b"\x1b[32m" in terminal.raw) == colours


def test_a_real_server_is_shown_at_work(patience: dict[str, str]):
    with (
        served("--metrics-port", "0") as server,
        Terminal(80, 24, "top", server.metrics_url, **patience) as terminal,
        Client(server.target) as client,
    ):
        terminal.wait_for("^rates of ")
        for number in range(5):
            client.rerank(f"query {number}", ["a document"] * 20)
        lines = terminal.wait_for(r"^embedded +[\d.]+ \w+ +[\d.]+ .* ms ")
        assert re.match(r"rerank-grpc \S+  up \d+ s  http://", lines[0])
        assert "cpu" in lines[1]
        assert terminal.end(by="q") == 0
        assert terminal.is_restored()
