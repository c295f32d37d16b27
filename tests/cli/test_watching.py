"""The port of the metrics beside real servers, and what is said where it cannot be had."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from rerank_grpc.cli.watching import Watching
from rerank_grpc.client import Client
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.server import rpc_metrics
from rerank_grpc.telemetry import families
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import BatchRecord
from tests.command import Served, environment, run, served
from tests.ports import free_port
from tests.rest.support import HOST, get, post
from tests.support import WAIT, wait_for
from tests.test_cli import hanging_call

SERVE = ("serve", "--port", "0", "--admin-port", "off", "--rest-port", "off")
REST = ("rest", "--target", f"{HOST}:1", "--rest-port", "0")
BODY = {"query": "password", "documents": ["Forgot password"]}
MISSING = """
import sys
sys.modules["prometheus_client"] = None
from rerank_grpc.cli import main
main(sys.argv[1:])
"""
# Models load when stdin ends.
HELD = """
import sys
from rerank_grpc.cli import main
from rerank_grpc.registry.loading import ModelLoader

load = ModelLoader.load

def held(*given):
    sys.stdin.read()
    return load(*given)

ModelLoader.load = held
main(sys.argv[1:])
"""
OFF = """
import sys
from rerank_grpc.cli.watching import Watching
from rerank_grpc.config.settings import ServerSettings
watching = Watching(ServerSettings(metrics_port=None), ["embedded"])
print(watching.port, watching.on_batch, {"prometheus_client", "uvicorn"} & {*sys.modules})
"""


def port_of(url: str) -> int:
    found = re.search(r":(\d+)", url.removeprefix("http://"))
    assert found is not None
    return int(found[1])


def scrape(url: str) -> str:
    reply = get(port_of(url), "/metrics")
    assert reply.status == 200, reply.raw
    return reply.raw.decode()


def total(text: str, series: str) -> float:
    """Adds up the series of a name that have these labels."""
    name, _, labels = series.removesuffix("}").partition("{")
    wanted = [label for label in labels.split(",") if label]
    lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line)]
    return sum(float(line.split()[-1]) for line in lines if all(label in line for label in wanted))


@contextlib.contextmanager
def rest_alone(target: str) -> Iterator[tuple[int, str]]:
    """Runs `rerank-grpc rest` for a server; yields its port and the URL of its metrics."""
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", target]
    command += ["--rest-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "Ctrl-C" in line:
            break
    reader = threading.Thread(target=said.extend, args=[process.stderr])
    reader.start()
    try:
        (own,) = re.findall(r"serves REST at (\S+),", "".join(said))
        (metrics,) = re.findall(r"The metrics are at (\S+)", "".join(said))
        yield port_of(own), metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("--metrics-port", "0", "--rest-port", "0") as server:
        yield server


def test_a_call_is_counted_once_wherever_it_came_in(server: Served) -> None:
    before = scrape(server.metrics_url)
    with Client(server.target) as client:
        client.rerank("password", ["one", "two"])
    assert post(port_of(server.url), "/v1/rerank", BODY).status == 200

    def rise(series: str) -> float:
        return total(scrape(server.metrics_url), series) - total(before, series)

    # A record is told after its answer.
    wait_for(lambda: rise('rerank_calls_total{model="embedded",code="OK"}') >= 2)
    assert rise('rerank_calls_total{protocol="grpc",code="OK",model="embedded"}') == 1
    assert rise('rerank_calls_total{protocol="rest",code="OK",model="embedded"}') == 1
    assert rise('rerank_documents_total{model="embedded"}') == 3


def test_the_state_of_models_and_of_the_process_is_there(server: Served) -> None:
    text = scrape(server.metrics_url)
    assert total(text, 'rerank_model_state{model="embedded",state="ready"}') == 1
    assert total(text, "rerank_model_state") == 1
    assert total(text, "rerank_build_info{version=") == 1
    assert total(text, "process_cpu_seconds_total") > 0
    assert total(text, "rerank_log_dropped_lines_total") == 0
    assert "_created" not in text


def test_a_served_process_tells_all_the_documented_metrics_and_no_others(server: Served) -> None:
    with Client(server.target) as client:
        client.rerank("password", ["one"])
    ended = 'grpc_server_call_duration_seconds_count{grpc_method="rerank.v1.RerankService/Rerank"}'
    wait_for(lambda: total(scrape(server.metrics_url), ended) >= 1)
    told = re.findall(r"^# TYPE (\S+) (\S+)$", scrape(server.metrics_url), re.MULTILINE)
    assert len(told) == len(dict(told))
    documented = {family.name: family.kind for family in (*families.FAMILIES, *rpc_metrics.FAMILIES)}
    ours = {name: kind for name, kind in told if not name.startswith(("process_", "python_"))}
    of_tls = {"rerank_tls_certificate_expiry_timestamp_seconds", "rerank_tls_reloads_total"}
    assert ours == {name: kind for name, kind in documented.items() if name not in of_tls}
    assert {name for name, _ in told} - ours.keys() == {
        *("process_virtual_memory_bytes", "process_resident_memory_bytes", "process_start_time_seconds"),
        *("process_cpu_seconds_total", "process_open_fds", "process_max_fds"),
        *("python_gc_objects_collected_total", "python_gc_objects_uncollectable_total"),
        *("python_gc_collections_total", "python_info"),
    }


def test_a_call_over_rest_that_is_refused_counts_for_its_model(server: Served) -> None:
    series = 'rerank_calls_total{protocol="rest",model="embedded",reason="invalid_request"}'
    before = total(scrape(server.metrics_url), series)
    assert post(port_of(server.url), "/v1/rerank", BODY | {"query": ""}).status == 400
    wait_for(lambda: total(scrape(server.metrics_url), series) == before + 1)


def test_the_rest_server_alone_has_a_registry_of_its_own(server: Served) -> None:
    calls = 'rerank_calls_total{code="OK",protocol='
    before = scrape(server.metrics_url)
    with rest_alone(server.target) as (port, metrics):
        assert post(port, "/v1/rerank", BODY).status == 200
        wait_for(lambda: total(scrape(metrics), f'{calls}"rest",model="embedded"}}') == 1)
        # The server tells its record of the call behind its answer, too.
        by_grpc = f'{calls}"grpc",model="embedded"}}'
        wait_for(lambda: total(scrape(server.metrics_url), by_grpc) > total(before, by_grpc))
        text, after = scrape(metrics), scrape(server.metrics_url)
    assert total(text, f'{calls}"grpc"}}') == 0
    assert total(text, "rerank_build_info{version=") == 1
    assert total(after, f'{calls}"rest"}}') == total(before, f'{calls}"rest"}}')


def test_a_scrape_is_answered_while_models_load() -> None:
    port = free_port()
    command = [sys.executable, "-c", HELD, *SERVE, "--metrics-port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
    assert process.stdin is not None

    def state(name: str) -> bool:
        with contextlib.suppress(OSError):
            return total(scrape(f"http://{HOST}:{port}"), f'rerank_model_state{{state="{name}"}}') == 1
        return False

    try:
        wait_for(lambda: state("loading"), seconds=60)
        process.stdin.close()
        wait_for(lambda: state("ready"), seconds=60)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


def test_scrapes_are_answered_to_the_end_of_the_drain() -> None:
    with served("--grace", "60", "--metrics-port", "0") as server:
        channel, call, gate = hanging_call(server.target)
        try:
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: any("calls in progress" in line for line in server.said))
            assert total(scrape(server.metrics_url), "rerank_model_state") == 1
            # Nothing is asked of the port after that: it may be another server's by then.
        finally:
            gate[1].close()
            call.cancel()
            channel.close()
        assert server.process.wait(40) == 0
    gate[0].close()


@pytest.mark.parametrize("command", [SERVE, REST], ids=["serve", "rest"])
def test_a_taken_port_is_one_clear_line(command: tuple[str, ...]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = run(*command, "--metrics-port", str(port))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith(f"rerank-grpc: error: cannot listen on {HOST}:{port} for metrics: ")
    assert "choose another with --metrics-port (or off)" in line


@pytest.mark.parametrize(("command", "extra"), [(SERVE, "server"), (REST, "rest")], ids=["serve", "rest"])
def test_a_package_that_is_missing_is_one_clear_line(command: tuple[str, ...], extra: str) -> None:
    arguments = [sys.executable, "-c", MISSING, *command, "--metrics-port", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if "prometheus" in line]
    assert line == (
        "rerank-grpc: error: metrics needs prometheus_client, which is not installed: "
        f'pip install "rerank-grpc[{extra}]", or --metrics-port off'
    )
    assert "Traceback" not in done.stderr


def test_where_the_metrics_are_off_none_of_their_packages_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, env=environment())
    assert (done.stdout, done.stderr) == ("None None set()\n", "")
    assert Watching(replace(RestSettings(), metrics_port=None)).sinks[0] is log_call


def test_batches_are_counted_too() -> None:
    watching = Watching(replace(ServerSettings(), metrics_port=0), ["bge"])
    watching.follow(lambda: 7)
    watching.start()
    assert watching.on_batch is not None
    assert watching.on_batch(BatchRecord("bge", 40, 80, 3, 1.0, 1.5, 0.5)) is None
    text = scrape(f"http://{HOST}:{watching.port}")
    watching.stop(1.0)
    assert total(text, 'rerank_batch_tokens_sum{model="bge"}') == 40
    assert total(text, "rerank_log_dropped_lines_total") == 7


def test_a_sink_that_fails_on_a_batch_leaves_it_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_record: BatchRecord) -> None:
        raise ValueError("canary")

    watching = Watching(replace(ServerSettings(), metrics_port=0), ["bge"])
    watching._batch_sinks.insert(0, fail)
    watching.start()
    assert watching.on_batch is not None
    watching.on_batch(BatchRecord("bge", 40, 80, 3, 1.0, 1.5, 0.5))
    text = scrape(f"http://{HOST}:{watching.port}")
    watching.stop(1.0)
    assert total(text, 'rerank_batch_tokens_sum{model="bge"}') == 40
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.clock
def test_a_call_that_the_end_of_the_grace_cuts_off_is_answered_and_told() -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n"
    with served("--rest-port", "0", "--grace", "1") as server:
        with socket.create_connection((HOST, port_of(server.url)), timeout=WAIT) as caller:
            caller.sendall(head)
            assert b" 100 " in caller.recv(1_000)  # now the call is inside
            server.process.send_signal(signal.SIGTERM)
            assert b" 503 " in caller.recv(1_000)
        assert server.process.wait(WAIT) == 0
        server.close()
        said = "".join(server.said)
    assert re.search(r"rerank 503 .*reason=shutting_down", said)


@pytest.mark.clock
def test_a_collector_that_hangs_delays_no_end() -> None:
    with socket.create_server((HOST, 0)) as collector:
        endpoint = f"http://{HOST}:{collector.getsockname()[1]}"
        with served("--rest-port", "0", "--grace", "1", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as server:
            body = {"query": "q", "documents": ["d"]}
            assert post(port_of(server.url), "/v1/rerank", body).status == 200
            begin = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(WAIT) == 0
            assert time.monotonic() - begin < 1 + 2  # the grace, and what the process may take after it
