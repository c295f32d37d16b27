"""Systems as processes, and samples of them that nothing else on the machine disturbs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, convert, environments
from benchmarks.environments import Unavailable
from benchmarks.systems import PEERS

# Others' share of the CPU from which a sample is taken again, how often, and after how long a wait.
DISTURBED = 0.05
TRIES = 3
QUIET_SECONDS = 30.0


class Worker:
    """A system in a process of its own; see worker.py."""

    def __init__(self, system: str, shape: str, threads: int) -> None:
        python = environments.python_of(PEERS[system.partition(" ")[0]])
        convert.provide(system, checkpoints.checkpoint(shape))
        root = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
        log = (checkpoints.cache_folder() / f"{system.replace(' ', '-')}.log").open("w")
        self._log = Path(log.name)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", system, shape, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        if not self._read():
            self.close()
            raise Unavailable(f"did not start: {self._last_words()}")

    def score(self, workload: str) -> dict[str, Any]:
        """Scores a workload of workloads.named once; raises Unavailable if the process has ended."""
        assert self._process.stdin
        self._process.stdin.write(workload + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if not answer:
            raise Unavailable(f"stopped: {self._last_words()}")
        return answer

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

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}

    def _last_words(self) -> str:
        lines = self._log.read_text().strip().splitlines() or ["no message"]
        return lines[-1].replace(str(checkpoints.cache_folder()), "$BENCH_CACHE")[:200]


def sample(running: Worker, workload: str, *, quiet: bool) -> tuple[dict[str, Any], float]:
    """Scores once; returns the answer, and others' share of the CPU meanwhile.

    If it is to be `quiet`, it waits until nobody else uses the CPU, and tries
    again where others came in between; after that the least disturbed answer counts.
    """
    best: tuple[dict[str, Any], float] = ({}, math.inf)
    for _ in range(TRIES if quiet else 1):
        if quiet:
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


def available_memory() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
    return int(line.split()[1]) * 1024


def resident(shape: str, precision: str) -> dict[str, float]:
    """Resident memory of loading, less what the imports cost, in bytes."""
    path = checkpoints.checkpoint(shape)
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), precision], check=True, capture_output=True, text=True
    ).stdout.split()
    peak, steady, imports = (int(value) * 1024 for value in found)
    size = (path / "model.safetensors").stat().st_size
    return {"peak": peak, "steady": steady, "imports": imports, "file": size}


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
