"""A real Prometheus scrapes a real server under load and in trouble: queries find data, alerts fire."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import pytest
import yaml

from rerank_grpc.v1 import rerank_pb2 as pb
from tests.command import environment, served
from tests.deploy.files import PROMETHEUS, VARIABLES, alerts, expressions, read_yaml, tool
from tests.ports import free_port
from tests.support import request_of, stub_of, wait_for

HOST = "127.0.0.1"
NOWHERE = f"{HOST}:1"  # a port at which nothing listens
PATIENCE = 60.0  # seconds: a query finds data two scrapes after its trouble, on a machine that is busy too
CALLERS = 4
# A call fills most of the queue, and the next is refused.
QUEUE_TOKENS = 16_384
DOCUMENTS, WORDS = 40, 200


def ask(port: int, path: str, body: str | None = None) -> tuple[int, bytes]:
    """Sends one HTTP request, through no proxy; status 0 where nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    with contextlib.closing(connection):
        try:
            # The REST server tries a refused call again for as long as it has.
            connection.request("GET" if body is None else "POST", path, body, {"X-Request-Timeout": "3"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    """Runs a process for as long as the block does."""
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment())
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}; {command[0]}: {log.read_text()[-2_000:]}") from error
    finally:
        process.terminate()
        process.wait(30)


class Prometheus:
    """The API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **fields: str) -> Any:
        """Returns the data of an answer."""
        status, body = ask(self.port, f"/api/v1/{path}?{urlencode(fields)}")
        assert status == 200, body.decode()
        return json.loads(body)["data"]

    def values(self, query: str) -> list[float]:
        """Returns the values that a query finds."""
        found = (float(each["value"][1]) for each in self.get("query", query=query)["result"])
        return [value for value in found if not math.isnan(value)]

    def series(self, query: str) -> list[dict[str, str]]:
        """Returns the labels of what a query finds."""
        return [each["metric"] for each in self.get("query", query=query)["result"]]

    def firing(self, alert: str) -> set[str]:
        """Returns the instances for which an alert fires."""
        found = self.series(f'ALERTS{{alertname="{alert}", alertstate="firing"}}')
        return {labels.get("instance", "") for labels in found}


def quick_rules(folder: Path) -> Path:
    """Writes the rules so that they fire at once, and the queue's age counts from the first moment."""
    text = (PROMETHEUS / "rules.yml").read_text("utf-8")
    text = re.sub(r"(?m)^( *for: ).*$", r"\g<1>0s", text.replace("[5m]", "[10s]"))
    age = "rerank_queue_oldest_seconds) > "
    assert f"{age}10" in text
    path = folder / "rules.yml"
    path.write_text(text.replace(f"{age}10", f"{age}0"), "utf-8")
    return path


def configuration(folder: Path, server: int, rest: int) -> Path:
    """Writes prometheus.yml for these ports, beside a server that is not there."""
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(quick_rules(folder))]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"{HOST}:{server}", NOWHERE]}]
    alone = {"job_name": "rerank-rest", "static_configs": [{"targets": [f"{HOST}:{rest}"]}]}
    config["scrape_configs"].append(alone)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


@contextlib.contextmanager
def prometheus(folder: Path, server: int, rest: int) -> Iterator[Prometheus]:
    """Scrapes these ports every second."""
    port = free_port()
    command = [
        tool("prometheus"),
        f"--config.file={configuration(folder, server, rest)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    with running(command, folder / "prometheus.log"):
        wait_for(lambda: ask(port, "/-/ready")[0] == 200, PATIENCE)
        yield Prometheus(port)


@contextlib.contextmanager
def rest_before_nothing(folder: Path) -> Iterator[tuple[int, int]]:
    """Runs a REST server whose gRPC server is not there; yields its port and that of its metrics."""
    port, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", NOWHERE]
    command += ["--rest-port", str(port), "--metrics-port", str(metrics)]
    with running(command, folder / "rest.log"):
        wait_for(lambda: ask(port, "/health")[0] != 0, PATIENCE)
        yield port, metrics


@contextlib.contextmanager
def repeated(*calls: Callable[[], object]) -> Iterator[None]:
    """Makes calls again and again, each on threads of its own."""
    ended = threading.Event()

    def repeat(call: Callable[[], object]) -> None:
        while not ended.wait(0.02):  # a caller that is refused takes a breath
            call()

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def load(target: str, url: str, rest: int) -> Iterator[None]:
    """Calls with more than the queue takes, by wrong names, and a server that is not there."""
    number = itertools.count()
    port, rest_port = (int(address.rstrip("/").rpartition(":")[2]) for address in (target, url))

    def texts() -> list[str]:
        # No two alike: an equal pair on its way would cost the device nothing.
        return [f"{next(number)} {'word ' * WORDS}" for _ in range(DOCUMENTS)]

    with stub_of(port) as stub:

        def call(request: pb.RerankRequest) -> None:
            with contextlib.suppress(grpc.RpcError):
                # A large one takes seconds, and of a busy machine more; some have to be answered.
                stub.Rerank(request, timeout=30)

        def post(at: int) -> None:
            ask(at, "/v1/rerank", json.dumps({"query": "query", "documents": texts()}))

        def mistakes() -> None:
            for model in ("nobody's", "broken"):
                call(request_of("query", "document", model=model))

        large = [lambda: call(request_of("query", *texts()))] * CALLERS
        with repeated(*large, lambda: post(rest_port), lambda: post(rest), mistakes):
            yield


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, dict[str, str]]]:
    """Watches a server under load; yields Prometheus, and the instance at which each alert is to fire."""
    tool("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    broken, metrics = folder / "broken", free_port()
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    arguments = ["--rest-port", "0", "--metrics-port", str(metrics), "--max-queue-tokens", str(QUEUE_TOKENS)]
    arguments += ["--lazy-model", f"broken={broken}"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(*arguments))
        rest, rest_metrics = stack.enter_context(rest_before_nothing(folder))
        watcher = stack.enter_context(prometheus(folder, metrics, rest_metrics))
        stack.enter_context(load(server.target, server.url, rest))
        here = f"{HOST}:{metrics}"
        yield (
            watcher,
            {
                "RerankNotServing": NOWHERE,
                "RerankErrors": f"{HOST}:{rest_metrics}",
                "RerankQueueAge": here,
                "RerankRefusals": here,
                "RerankModelFailed": here,
            },
        )


def filled_in(text: str, model: str) -> str:
    """Fills in a query's variables as Grafana does where a viewer has chosen every server."""
    values = {"job": "(rerank|rerank-rest)", "instance": r"127\\.0\\.0\\.1:[0-9]+", "model": model}
    for name, value in {**values, "__rate_interval": "10s"}.items():
        text = text.replace(f"${name}", value)
    return text


@pytest.mark.parametrize("query", expressions())
def test_every_query_of_the_dashboard_returns_data(watched, query):
    watcher, _ = watched
    wait_for(lambda: bool(watcher.values(filled_in(query, "embedded"))), PATIENCE)
    # Of all models, everything that the dashboard shows happens here, but a start.
    least = 0 if query.startswith("changes(") else 1e-9
    wait_for(lambda: max(watcher.values(filled_in(query, ".*")), default=-1) >= least, PATIENCE)


@pytest.mark.parametrize("name", ["job", "instance", "model"])
def test_every_variable_of_the_dashboard_has_values(watched, name):
    watcher, _ = watched
    asked = re.fullmatch(r"label_values\((.*), (\w+)\)", VARIABLES[name]["definition"])
    assert asked is not None
    selector, label = asked.groups()
    assert label == name
    expected = {"job": {"rerank", "rerank-rest"}, "model": {"embedded", "broken"}}.get(name)

    def complete():
        found = {each[label] for each in watcher.series(f"group by ({label}) ({filled_in(selector, '.*')})")}
        return found == expected if expected else len(found) == 2

    wait_for(complete, PATIENCE)


# That of the certificate is in rules_test.yml: the servers here have none.
@pytest.mark.parametrize("alert", [rule["alert"] for rule in alerts() if "Certificate" not in rule["alert"]])
def test_each_alert_fires_where_its_trouble_is_and_nowhere_else(watched, alert):
    watcher, instances = watched
    wait_for(lambda: watcher.firing(alert) == {instances[alert]}, PATIENCE)


def test_prometheus_evaluates_every_rule_without_an_error(watched):
    watcher, _ = watched

    def states():
        return [
            (rule["name"], rule["health"])
            for group in watcher.get("rules")["groups"]
            for rule in group["rules"]
        ]

    wait_for(lambda: states() == [(rule["alert"], "ok") for rule in alerts()], PATIENCE)
