"""What a balancer costs, how evenly it spreads calls, and what callers see when a server fails.

    python -m benchmarks.balancing              everything, into results/balancing.json and .md
    python -m benchmarks.balancing cost         one part: cost, or the faults of nginx, haproxy or client

Needs nginx and haproxy on the PATH; both run from deploy/, only ports and paths are others. The
cost is that of calls whose model costs nothing, one at a time, over four ways that take turns: a
channel to one server, the same client with both servers, and each proxy. The faults strike one of
two servers with the embedded model while 16 threads call.
"""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import report, servers
from benchmarks.workloads import passages
from rerank_grpc.client import Client
from tests import command
from tests.deploy.proxies import KINDS, proxy

_serve: Any = command.Served  # the tests have no types

ROUNDS, WARM_UP = 300, 50
CALLERS = 16
HANG_TIMEOUT = 3.0
CLIENT = "client"
WAYS = (*KINDS, CLIENT)
# A fault: how many calls, and after how many of them it strikes.
FAULTS = {"killed": (1_000, 300), "hangs": (1_500, 300), "restarted": (1_500, 300)}
SLOW_SECONDS = 1.0


def main() -> None:
    chosen = sys.argv[1:] or ["cost", *WAYS]
    path = report.RESULTS / "balancing.json"
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in chosen:
        if name == "cost":
            kept["cost"] = cost()
        else:
            kept.setdefault("faults", {})[name] = {fault: _strike(name, fault) for fault in FAULTS}
        kept["facts"] = {"machine": report.machine(), "load": report.load_average(), "at": report.now()}
        report.write("balancing", kept, page(kept))


def cost() -> dict[str, Any]:
    """Times calls of 1 and 100 documents over each way in turn, in milliseconds."""
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(servers.served("free")) for _ in range(2)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = [int(server.facts["port"]) for server in pair]
        targets = {"direct": pair[0].target, CLIENT: _both(ports)}
        for kind in KINDS:
            targets[kind] = f"127.0.0.1:{stack.enter_context(proxy(kind, ports, folder))}"
        clients = {
            way: stack.enter_context(
                # A connection of its own for each way.
                Client(target, token=servers.TOKEN, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for way, target in targets.items()
        }
        return {str(count): _rounds(clients, count) for count in (1, 100)}


def _rounds(clients: dict[str, Client], count: int) -> dict[str, Any]:
    documents = list(passages(count, seed=7).documents)
    times: dict[str, list[float]] = {way: [] for way in clients}
    for turn in range(WARM_UP + ROUNDS):
        for way, client in clients.items():
            began = perf_counter()
            client.rerank(f"query {turn}", documents)
            if turn >= WARM_UP:
                times[way].append((perf_counter() - began) * 1e3)
    direct = statistics.median(times["direct"])
    return {
        way: {
            "p50_ms": round(statistics.median(each), 3),
            "p99_ms": round(statistics.quantiles(each, n=100)[98], 3),
            "added_p50_ms": round(statistics.median(each) - direct, 3),
        }
        for way, each in times.items()
    }


def _strike(way: str, fault: str) -> dict[str, Any]:
    """Strikes one of two servers under load, behind a balancer."""
    count, after = FAULTS[fault]
    with _pair() as pair, tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ports = [int(server.target.rpartition(":")[2]) for server in pair]
        if way == CLIENT:
            target = _both(ports)
        else:
            target = f"127.0.0.1:{stack.enter_context(proxy(way, ports, Path(folder)))}"
        hang_timeout = HANG_TIMEOUT if way == CLIENT else None
        client = stack.enter_context(Client(target, hang_timeout=hang_timeout, timeout=20))
        struck, outcomes = _under_load(client, count, after, lambda: _do(fault, pair, ports))
    slow = [ended for began, ended, _ in outcomes if ended > struck and ended - began > SLOW_SECONDS]
    return {
        "calls": len(outcomes),
        "failed": dict(Counter(error for _, _, error in outcomes if error)),
        "calls_over_1_s": len(slow),
        "last_of_them_ended_after_s": round(max(slow, default=struck) - struck, 1),
    }


def _do(fault: str, pair: list[Any], ports: list[int]) -> None:
    if fault == "killed":
        pair[0].process.kill()
    elif fault == "hangs":
        pair[0].process.send_signal(signal.SIGSTOP)
    else:
        for index, port in enumerate(ports):
            pair[index].stop(signal.SIGTERM)
            pair[index] = _serve("--port", str(port))


def _under_load(
    client: Client, count: int, after: int, trouble: Callable[[], None]
) -> tuple[float, list[tuple[float, float, str]]]:
    """Calls from many threads; returns when the trouble began, and of each call its times and its error."""

    def one(number: int) -> tuple[float, float, str]:
        began, error = perf_counter(), ""
        try:
            client.rerank("query", [f"document {number}"])
        except Exception as failed:
            error = type(failed).__name__
        return began, perf_counter(), error

    with ThreadPoolExecutor(CALLERS) as threads:
        calls = [threads.submit(one, number) for number in range(count)]
        calls[after].result()
        struck = perf_counter()
        trouble()
        return struck, [call.result() for call in calls]


@contextlib.contextmanager
def _pair() -> Iterator[list[Any]]:
    pair = [_serve(), _serve()]
    try:
        yield pair
    finally:
        for server in pair:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
            server.close()


def _both(ports: list[int]) -> str:
    return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)


def page(found: dict[str, Any]) -> str:
    """Writes the results for people."""
    here = found["facts"]["machine"]
    lines = [
        "# Balancing",
        "",
        f"Measured by `python -m benchmarks.balancing` on {here['processor']}, {here['cores']} cores, "
        f"loopback. Load average at the end: {found['facts']['load']}; other work ran beside it, "
        "so differences below 0.3 ms mean little.",
        "",
    ]
    if "cost" in found:
        rows = [
            [way, documents, each["p50_ms"], each["added_p50_ms"], each["p99_ms"]]
            for documents, ways in found["cost"].items()
            for way, each in ways.items()
        ]
        lines += ["## Cost of a call", "", f"{ROUNDS} calls each, one at a time; the ways take turns.", ""]
        lines += [report.table(["way", "documents", "p50 ms", "added p50 ms", "p99 ms"], rows), ""]
    if "faults" in found:
        rows = [
            [
                way,
                fault,
                each["calls"],
                sum(each["failed"].values()),
                each["calls_over_1_s"],
                each["last_of_them_ended_after_s"],
            ]
            for way, faults in found["faults"].items()
            for fault, each in faults.items()
        ]
        header = [
            "way",
            "one of two is",
            "calls",
            "failed",
            "took over 1 s",
            "the last of them ended after, s",
        ]
        lines += ["## Faults", "", f"{CALLERS} callers with the Python client's retries.", ""]
        lines += [report.table(header, rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
