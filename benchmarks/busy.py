"""How much of the time the device works while REST callers keep it supplied.

    python -m benchmarks.busy [shape] [seconds] [callers] [windows]

The server runs in a process of its own, with its REST port; callers send 5 to 40
passages each, and the next call as soon as one is answered. A window is measured
from the end of one batch to the end of another, so that none counts in part.
Writes results/busy.json, which the CPU page shows.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from benchmarks import report, workloads
from benchmarks.servers import TOKEN, Served, served

SHAPE, SECONDS, CALLERS, WINDOWS = "base", 20.0, 8, 3
FEWEST, MOST = 5, 40


def main(shape: str = SHAPE, seconds: str = "", callers: str = "", windows: str = "") -> None:
    count = int(callers or CALLERS)
    with served("rest", shape) as server:
        found = measured(server, float(seconds or SECONDS), count, int(windows or WINDOWS))
    shares = [each["busy_seconds"] / each["seconds"] for each in found]
    data: dict[str, Any] = {
        "shape": shape,
        "shares": shares,
        "windows": found,
        "header": [
            "shape",
            "precision",
            "callers",
            "device busy",
            "tokens a batch",
            "of its budget",
            "calls",
        ],
        "rows": [row(server, shape, count, shares, found)],
        "when": report.now(),
        "load": report.load_average(),
    }
    report.write("busy", data, report.table(data["header"], data["rows"]))
    print(report.table(data["header"], data["rows"]))


def row(
    server: Served, shape: str, callers: int, shares: list[float], windows: list[dict[str, Any]]
) -> list[str]:
    tokens = sum(each["tokens"] for each in windows) / sum(each["batches"] for each in windows)
    return [
        shape,
        server.facts["precision"],
        str(callers),
        report.Spread.of(shares).text(3),
        f"{tokens:.0f}",
        f"{tokens / server.facts['budget']:.2f}",
        str(sum(each["calls"] for each in windows)),
    ]


def measured(server: Served, seconds: float, callers: int, windows: int) -> list[dict[str, Any]]:
    """Measures windows one after the other while callers call; the first seconds warm the server up."""
    workloads.corpus_words()
    stop, done = Event(), [0] * callers
    found = []
    with ThreadPoolExecutor(callers) as threads:
        running = [
            threads.submit(call, server.facts["rest"], stop, done, number) for number in range(callers)
        ]
        try:
            server.ask(str(seconds / 4))
            for _ in range(windows):
                before = sum(done)
                found.append(server.ask(str(seconds)) | {"calls": sum(done) - before})
        finally:
            stop.set()
        for each in running:
            each.result()
    return found


def call(port: int, stop: Event, done: list[int], number: int) -> None:
    """Calls one after the other over one connection until it is told to stop."""
    chance = random.Random(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    while not stop.is_set():
        called = workloads.passages(chance.randint(FEWEST, MOST), seed=chance.randrange(1 << 30))
        body = json.dumps({"query": f"{called.query} {chance.random()}", "documents": called.documents})
        connection.request("POST", "/v1/rerank", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"REST answered {response.status}: {answer[:200]!r}")
        done[number] += 1
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
