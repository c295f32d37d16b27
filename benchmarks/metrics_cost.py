"""What metrics cost: the real command with them and without, in turns, for `make bench-quick`.

Two servers of one build run beside each other, of which one at a time is called. The one with metrics is
scraped every second while it is called, as Prometheus would at its most eager.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import grpc

from benchmarks import load, workloads
from benchmarks.report import Spread
from benchmarks.servers import CALLERS, TOKEN

MODELS = {"free": "model that costs nothing", "minilm": "minilm's shape"}
ROUNDS = 40  # many short ones: the speed of a shared machine wanders within seconds
SECONDS = 0.4  # of one caller, and then of CALLERS
SCRAPE_SECONDS = 1.0
START_SECONDS = 90.0
MOST_TIME, LEAST_RATE = 1.02, 0.98


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two servers: `metrics` is the URL of its metrics, "" without; `ca` knows its certificate."""

    target: str
    metrics: str
    process: int
    ca: bytes | None = None


@contextlib.contextmanager
def command(name: str, *more: str, metrics: bool, ca: bytes | None = None) -> Iterator[Side]:
    """Runs the real command on free ports, with a model of benchmarks.servers and `more` options."""
    port, metrics_port = free_ports(2)
    options = ["--port", str(port), "--admin-port", "off", "--rest-port", "off"]
    options += ["--metrics-port", str(metrics_port) if metrics else "off", *more]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("RERANK_")}
    target, url = f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics" if metrics else ""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.servers", "command", name, *options],
            stderr=log,
            env=environment | {"RERANK_TOKENS": TOKEN},
        )
        try:
            wait_until_serving(target, process, ca)
            yield Side(target, url, process.pid, ca)
        except NotServing as error:
            log.seek(0)
            raise SystemExit(f"{name}: {error}: {log.read()[-2000:]}") from None
        finally:
            process.terminate()
            process.wait(30)


class NotServing(Exception):
    """A server that did not start."""


def wait_until_serving(target: str, process: subprocess.Popen[bytes], ca: bytes | None = None) -> None:
    """Asks for health until a call would be answered; raises NotServing."""
    end = monotonic() + START_SECONDS
    caller = load.Caller(target, ca)
    with contextlib.closing(caller):
        while monotonic() < end and process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                if caller.health().serving:
                    return
            sleep(0.1)
    raise NotServing("it ended" if process.poll() is not None else f"not within {START_SECONDS:g} s")


def free_ports(count: int) -> list[int]:
    """Finds ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Scraper:
    """Scrapes a server every second as long as its block runs; nothing where it has no metrics."""

    def __init__(self, url: str) -> None:
        self._url, self.sizes = url, list[int]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        # Not through a proxy of the environment.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Scraper:
        if self._url:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._url:
            self._thread.join()

    def _run(self) -> None:
        # The first one within the second, as for any time that Prometheus comes.
        while not self._over.wait(SCRAPE_SECONDS / 2 if not self.sizes else SCRAPE_SECONDS):
            with self._opener.open(self._url, timeout=10) as answer:
                self.sizes.append(len(answer.read()))


def turns(rounds: int) -> Iterator[tuple[str, str]]:
    """Yields the order of each round: one first, then the other, A B B A."""
    for number in range(rounds):
        yield ("off", "on") if number % 2 else ("on", "off")


def measure(name: str, rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, Any]:
    """Takes the ratios of one model: p50 of one caller, and calls per second of CALLERS, on ÷ off."""
    # No two queries alike in a round: the service remembers them.
    requests = [load.request_of(f"{workloads.QUERY} {n}", ["a short document"]) for n in range(1_000)]
    p50: dict[str, list[float]] = {"on": [], "off": []}
    rate: dict[str, list[float]] = {"on": [], "off": []}
    sizes: list[int] = []
    with command(name, metrics=True) as on, command(name, metrics=False) as off:
        sides = {"on": on, "off": off}
        for side in sides.values():
            load.closed_loop(side.target, requests, CALLERS, seconds)
        for order in turns(rounds):
            for which in order:
                side = sides[which]
                with Scraper(side.metrics) as scraper:
                    answers, _ = load.closed_loop(side.target, requests, 1, seconds)
                    p50[which].append(1e3 * statistics.median(answer.seconds for answer in well(answers)))
                    answers, passed = load.closed_loop(side.target, requests, CALLERS, seconds)
                    rate[which].append(len(well(answers)) / passed)
                sizes += scraper.sizes
    return {
        "rounds": rounds,
        "seconds": seconds,
        "scrapes": len(sizes),
        "scrape_bytes": max(sizes, default=0),
        "p50_ms": p50,
        "calls_per_second": rate,
    }


def well(answers: Sequence[load.Answer]) -> Sequence[load.Answer]:
    """Passes answers on; ends the run where a call was refused, for its time would be another's."""
    codes = {answer.code for answer in answers} - {"OK"}
    if codes:
        raise SystemExit(f"metrics: calls ended with {', '.join(sorted(codes))}")
    return answers


def ratios(samples: dict[str, list[float]]) -> Spread:
    """Divides on by off, within each round."""
    return Spread.of([on / off for on, off in zip(samples["on"], samples["off"], strict=True)])


def rows(data: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """Says of each model what was asked, what was measured, and whether it was met."""
    found: list[tuple[str, str, str, bool | None]] = []
    for name, case in data.items():
        time, rate = ratios(case["p50_ms"]), ratios(case["calls_per_second"])
        pairs = f" of {time.count} pairs"
        what = f"with metrics ÷ without, {MODELS.get(name, name)}, one document"
        found += [
            (
                f"{what}, one caller: p50",
                f"≤ {MOST_TIME}",
                f"{time.text(3)}{pairs}",
                time.median <= MOST_TIME,
            ),
            (
                f"{what}, {CALLERS} callers: calls per second",
                f"≥ {LEAST_RATE}",
                f"{rate.text(3)}{pairs}",
                rate.median >= LEAST_RATE,
            ),
        ]
    return found


def section(data: dict[str, Any]) -> str:
    """Says in Markdown how it was measured, with the figures that the ratios are of."""
    lines = []
    for name, case in data.items():
        p50, rate = case["p50_ms"], case["calls_per_second"]
        lines.append(
            f"- {MODELS.get(name, name)}: p50 {statistics.median(p50['on']):.2f} ms with metrics, "
            f"{statistics.median(p50['off']):.2f} without; calls per second "
            f"{statistics.median(rate['on']):.0f} and {statistics.median(rate['off']):.0f}; "
            f"{case['rounds']} rounds, each of {case['seconds']:g} s with one caller and as long with "
            f"{CALLERS}, on each server; {case['scrapes']} scrapes of up to {case['scrape_bytes']:,} bytes"
        )
    return "\n".join(
        [
            "## With metrics and without",
            "The real command twice, with `--metrics-port` on and `off`; both are up all the time, one of",
            "them is called at a time, in turns (A B B A), and the one with metrics is scraped every second",
            "while it is called. A ratio is that of one round.",
            "",
            *lines,
        ]
    )
