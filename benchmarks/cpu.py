"""What the service makes of a CPU, and its peers beside it, in one interleaved run.

    python -m benchmarks.cpu                    all of it: an hour and a half on two cores
    python -m benchmarks.cpu --cases base/W2    one case
    python -m benchmarks.cpu --report           the page again, from the samples that are there

A case is a shape and a workload. In each round every system scores it once,
and the plain matrix product is measured too; efficiencies and ratios are taken
within a round, and their median over the rounds is reported. A finished round
is kept: the run can be interrupted and goes on where it was. `--fresh` starts
over. A sample during which other processes used the CPU is taken again. Peers
get environments of their own, see environments.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import checkpoints, cpu_page, environments, report, worker, workloads
from benchmarks.environments import Unavailable
from benchmarks.systems import CASES, OURS

THREADS = 2
ROUNDS = 5
# Others' share of the CPU from which a sample is taken again, how often, and after how long a wait.
DISTURBED = 0.05
TRIES = 3
QUIET_SECONDS = 30.0
SAMPLES = report.RESULTS / "cpu.json"
REFERENCE = "crossencoder fp32"

MEMORY = """
import sys
from pathlib import Path
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.registry.loading import ModelLoader

def kib(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1])

def load(source):
    return ModelLoader(ServerSettings(device="cpu", precision=sys.argv[2])).read_model(source)

load("embedded")
before = kib("VmRSS")
model = load(sys.argv[1])
print(kib("VmHWM") - before, kib("VmRSS") - before, before)
"""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    shape: checkpoints.Shape
    workload: str
    path: Path
    flop: float
    tokens: int
    systems: dict[str, str]

    @classmethod
    def of(cls, name: str) -> Case:
        shape, _, rest = name.partition("/")
        path = checkpoints.checkpoint(shape)
        workload = rest.split()[0]
        lengths = worker.lengths(path, workloads.named(workload))
        flop = checkpoints.SHAPES[shape].useful_flop(lengths)
        return cls(name, checkpoints.SHAPES[shape], workload, path, flop, sum(lengths), CASES[name])


class Worker:
    """A system in a process of its own; see worker.py."""

    def __init__(self, system: str, peer: str, path: Path) -> None:
        python = environments.python_of(peer)
        name = system.partition(" ")[0]
        if name in ("onnxruntime", "openvino"):
            self._convert(path)
        root = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(THREADS)}
        log = (checkpoints.cache_folder() / f"{system.replace(' ', '-')}.log").open("w")
        self._log = Path(log.name)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", system, path, str(THREADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        if not self._read():
            lines = self._log.read_text().strip().splitlines() or ["no message"]
            raise Unavailable(f"{system}: did not start: {lines[-1][:200]}")

    @staticmethod
    def _convert(path: Path) -> None:
        if (worker.converted(path) / "int8.onnx").is_file():
            return
        print(f"converting {path.name} to ONNX", file=sys.stderr, flush=True)
        python = environments.python_of("onnxruntime")
        done = subprocess.run(
            [python, "-m", "benchmarks.worker", "convert", path, str(THREADS)], capture_output=True, text=True
        )
        if done.returncode:
            raise Unavailable(f"ONNX export of {path.name} failed: {done.stderr.strip().splitlines()[-1]}")

    def score(self, workload: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(workload + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if not answer:
            raise Unavailable(f"stopped: {self._log.read_text().strip().splitlines()[-1][:200]}")
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}

    def cpu_seconds(self) -> float:
        """What it and the processes it has started have used."""
        used, parents = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            number = int(path.parent.name)
            parents[number], used[number] = int(fields[1]), int(fields[11]) + int(fields[12])
        own = {self._process.pid}
        while more := {number for number, parent in parents.items() if parent in own} - own:
            own |= more
        return sum(used.get(number, 0) for number in own) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Lets it end by itself, so that it takes its server along."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--skip", nargs="*", default=[], help="systems to leave out, e.g. 'infinity fp32'")
    parser.add_argument("--fresh", action="store_true", help="forget the samples of these cases")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    options = parser.parse_args()
    data = json.loads(SAMPLES.read_text()) if SAMPLES.is_file() else {"cases": {}}
    if not options.report:
        report.RESULTS.mkdir(exist_ok=True)
        data |= {
            "machine": report.machine(),
            "threads": THREADS,
            "versions": report.versions("torch", "transformers", "tokenizers", "grpcio"),
        }
        for name in options.cases:
            if options.fresh:
                data["cases"].pop(name, None)
            measure(Case.of(name), data, options.rounds, options.skip)
        if "base/W2" in options.cases:
            data["memory"] = {kind: memory("base", kind) for kind in ("fp32", "bf16", "int8")}
        data["peers"] = {name: environments.versions_of(name) for name in environments.SHOWN}
        save(data)
    cpu_page.write(data)


def measure(case: Case, data: dict[str, Any], rounds: int, skip: list[str]) -> None:
    """Measures the rounds of a case that are missing."""
    found = data["cases"].setdefault(case.name, {"rounds": [], "errors": {}, "skipped": {}})
    found |= {"tokens": case.tokens, "flop": case.flop}
    if len(found["rounds"]) >= rounds:
        return
    workers: dict[str, Worker] = {}
    found["skipped"] = {name: "left out by hand" for name in case.systems if name in skip}
    try:
        for system, peer in case.systems.items():
            if system in found["skipped"]:
                continue
            progress(f"{case.name}: starting {system}")
            try:
                needed = (case.path / "model.safetensors").stat().st_size * 2.2
                if not system.startswith("product") and needed > available_memory():
                    raise Unavailable("not enough memory beside the other systems")
                workers[system] = Worker(system, peer, case.path)
                workers[system].score("W1")
            except Unavailable as error:
                found["skipped"][system] = str(error)
                progress(f"{case.name}: {system} skipped: {error}")
                workers.pop(system, None)
        while len(found["rounds"]) < rounds:
            found["rounds"].append(one_round(case, workers, found, rounds))
            save(data)
    finally:
        for running in workers.values():
            running.close()


def undisturbed(running: Worker, workload: str) -> tuple[dict[str, Any], float]:
    """Scores when nobody else uses the CPU; returns the answer, and others' share of the CPU meanwhile.

    Waits for quiet, and tries again where others came in between; after that
    the least disturbed answer counts.
    """
    best: tuple[dict[str, Any], float] = ({}, math.inf)
    for _ in range(TRIES):
        wait_for_quiet()
        busy, own, started = cpu_seconds(), running.cpu_seconds(), time.monotonic()
        answer = running.score(workload)
        elapsed = time.monotonic() - started
        others = (cpu_seconds() - busy) - (running.cpu_seconds() - own)
        share = max(0.0, others / elapsed / len(os.sched_getaffinity(0)))
        if share < best[1]:
            best = answer, share
        if share <= DISTURBED:
            break
    return best


def wait_for_quiet() -> None:
    end = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < end:
        busy = cpu_seconds()
        time.sleep(0.5)
        if (cpu_seconds() - busy) / 0.5 / len(os.sched_getaffinity(0)) <= DISTURBED:
            return


def cpu_seconds() -> float:
    """What all processes have used of all processors, and what others took of the machine."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def one_round(case: Case, workers: dict[str, Worker], found: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Runs every system once; products come as FLOP/s, all others as seconds."""
    number = len(found["rounds"])
    names = list(workers)
    names = names[number % len(names) :] + names[: number % len(names)]
    scores: dict[str, list[float]] = {}
    result: dict[str, Any] = {"at": report.now(), "seconds": {}, "rates": {}, "others": {}}
    rates: dict[str, list[float]] = {}
    products = [name for name in names if name.startswith("product")]
    systems = [name for name in names if not name.startswith("product")]
    # The product before each of ours and at both ends: its rate is that of the whole round.
    order = [*products, *systems, *products]
    for place in [place for place, name in enumerate(order) if name.split()[0] in OURS][::-1]:
        order[place:place] = [name for name in products if name.split()[1] == order[place].split()[1]]
    for name in order:
        answer, others = undisturbed(workers[name], case.workload)
        result["others"][name] = round(max(others, result["others"].get(name, 0)), 3)
        if name in products:
            rates.setdefault(name.split()[1], []).append(answer["scores"][0])
            shown = f"{answer['scores'][0] / 1e9:.0f} GFLOP/s"
        else:
            result["seconds"][name] = round(answer["seconds"], 4)
            scores[name] = answer["scores"]
            shown = f"{answer['seconds']:.2f} s, {case.flop / answer['seconds'] / 1e9:.0f} GFLOP/s"
        progress(f"{case.name}: round {number + 1} of {rounds}: {name}: {shown}, others {others:.0%}")
    result["rates"] = {kind: median(found) for kind, found in rates.items()}
    if REFERENCE in scores:
        found["errors"] = {name: error(each, scores[REFERENCE]) for name, each in scores.items()}
        found["deviation"] = deviation(scores[REFERENCE])
    return result


def error(found: list[float], expected: list[float]) -> dict[str, float]:
    """The differences' root mean square and largest, as shares of the reference's standard deviation."""
    differences = [a - b for a, b in zip(found, expected, strict=True)]
    square = sum(each * each for each in differences) / len(differences)
    scale = deviation(expected)
    return {"rms": square**0.5 / scale, "max": max(map(abs, differences)) / scale}


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


def memory(shape: str, precision: str) -> dict[str, float]:
    """Resident memory of loading, less what the imports cost, in bytes."""
    path = checkpoints.checkpoint(shape)
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), precision], check=True, capture_output=True, text=True
    ).stdout.split()
    peak, steady, imports = (int(value) * 1024 for value in found)
    size = (path / "model.safetensors").stat().st_size
    return {"peak": peak, "steady": steady, "imports": imports, "file": size}


def available_memory() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
    return int(line.split()[1]) * 1024


def save(data: dict[str, Any]) -> None:
    unfinished = SAMPLES.with_suffix(".part")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    unfinished.replace(SAMPLES)


def progress(text: str) -> None:
    print(f"{report.now()[11:19]} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
