"""Memory, start-up time and documents a second of each model and precision: the tables of docs/operations.

    python -m benchmarks.resources                      measures all, in some minutes, and writes the tables
    python -m benchmarks.resources base/bf16            measures these anew, and keeps the others
    python -m benchmarks.resources --limits             measures under limits of control groups, as root
    python -m benchmarks.resources --tables             writes the tables anew from results/resources.json
    python -m benchmarks.resources --check              fails if the page's tables are others

Each row is a server of its own: a first start with an empty home, and a later one, which is then called by
eight callers with 32 documents of W2 each. Memory is anonymous and shared memory, which the kernel cannot
take back, of the server and of its child processes together, looked at every 20 ms. That is what a control
group counts without the pages of files, but for some MiB of the kernel's own. The forecast of
`rerank-grpc plan` for the same model stands beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from benchmarks import checkpoints, load, report, servers, workloads

MIB = 1 << 20
RESULTS = report.RESULTS / "resources.json"
PAGES = (
    report.RESULTS / "resources.md",
    Path(__file__).resolve().parent.parent / "docs" / "operations" / "resources.md",
)
CASES = tuple(
    f"{model}/{precision}"
    for model in ("embedded", "base", "modernbert")
    for precision in ("fp32", "bf16", "int8")
)
CALLERS, DOCUMENTS, SECONDS = 8, 32, 8.0
START_SECONDS = 300.0
SAMPLE_SECONDS = 0.02
PORTS = ("--port=0", "--admin-port=off", "--rest-port=0", "--metrics-port=off", "--log-format=text")
CPU_HEADER = ("callers", "set", "periods", "throttled", "share of periods", "of time", "documents/s")
GROUPS = Path("/sys/fs/cgroup")
# The figures under limits, of base in bf16: beside its weights, and what is added for the container.
LOAD_MIB, SPARE = 500, 1.1
# With one CPU's time: the part of the time that may be throttled. Many periods are, for half a millisecond:
# the threads that parse and answer work beside the one that computes, which wants all of it.
THROTTLED, PERIOD_SECONDS = 0.02, 0.1


@dataclass
class Server:
    """A server that runs, its address once it serves, and the most memory since `mark`."""

    process: subprocess.Popen[str]
    began: float = field(default_factory=monotonic)
    target: str = ""
    seconds: float = 0.0
    peak: int = 0
    _ready: Event = field(default_factory=Event)
    _over: Event = field(default_factory=Event)
    _said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._threads = [Thread(target=work, daemon=True) for work in (self._read, self._sample)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Waits until it serves; raises SystemExit with its last lines where it ends before."""
        if not self._ready.wait(START_SECONDS) or not self.target:
            raise SystemExit(f"no server within {START_SECONDS:g} s: {''.join(self._said[-3:])}")

    def mark(self) -> int:
        """Begins a new count of the peak; returns that of the last one."""
        peak, self.peak = self.peak, 0
        return peak

    def stop(self) -> None:
        self._over.set()
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._said.append(line)
                if found := re.search(r"serves rerank.v1 at (\S+)", line):
                    self.target, self.seconds = found[1], monotonic() - self.began
                if "Ctrl-C stops it" in line:
                    self._ready.set()
        self._ready.set()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, held(self.process.pid))


def held(pid: int) -> int:
    """The bytes that a process and those below it hold and the kernel cannot take back."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        below = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return 0
    table = dict(line.split(":", 1) for line in lines)
    own = sum(int(table[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem") if name in table)
    return own + sum(held(int(child)) for children in below for child in children)


@contextmanager
def serving(
    model: str, precision: str, home: Path, groups: Sequence[Path] = (), **environment: str
) -> Iterator[Server]:
    """Starts a server, in control groups, if any; it serves once `wait` has returned."""
    source = model if model == checkpoints.EMBEDDED else str(checkpoints.checkpoint(model))
    command = [sys.executable, "-m", "rerank_grpc", "serve", f"--model={source}", f"--precision={precision}"]
    enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    own = {name: text for name, text in os.environ.items() if not name.startswith("RERANK_")}
    server = Server(
        subprocess.Popen(
            ["sh", "-c", f'{enter}exec "$@"', "sh", *command, *PORTS],
            stderr=subprocess.PIPE,
            text=True,
            env=own | {"HOME": str(home), "RERANK_TOKENS": servers.TOKEN} | environment,
        )
    )
    try:
        yield server
    finally:
        server.stop()


def called(server: Server, seconds: float = SECONDS, callers: int = CALLERS) -> float:
    """Calls a server with W2; returns its documents a second. Raises SystemExit for a call that fails."""
    request = load.request_of(workloads.QUERY, workloads.passages(DOCUMENTS).documents)
    load.closed_loop(server.target, [request], 1, 0.5)
    answers, passed = load.closed_loop(server.target, [request], callers, seconds)
    if any(answer.code != "OK" for answer in answers):
        raise SystemExit(f"calls ended with {sorted({answer.code for answer in answers})}")
    return len(answers) * DOCUMENTS / passed


def measured(case: str) -> dict[str, Any]:
    """Starts a model twice and calls it; sizes are in MiB."""
    model, precision = case.split("/")
    found: dict[str, Any] = {"measured": report.now(), "load_average": report.load_average()}
    with tempfile.TemporaryDirectory() as home:
        with serving(model, precision, Path(home)) as server:
            server.wait()
            found |= {"first_seconds": round(server.seconds, 2), "load_mib": server.mark() // MIB}
        with serving(model, precision, Path(home)) as server:
            server.wait()
            found |= {"later_seconds": round(server.seconds, 2), "later_load_mib": server.mark() // MIB}
            sleep(1.0)  # until freed memory has been given back
            found["rest_mib"] = held(server.process.pid) // MIB
            server.mark()
            found["documents_per_second"] = round(called(server), 1)
            found["peak_mib"] = server.mark() // MIB
    return found | {"plan": planned(model, precision)}


def planned(model: str, precision: str) -> dict[str, int]:
    """The forecast of `rerank-grpc plan`, in MiB, with what waits left out: W2 does not fill a server."""
    source = model if model == checkpoints.EMBEDDED else str(checkpoints.checkpoint(model))
    command = [sys.executable, "-m", "rerank_grpc", "plan", source, f"--precision={precision}", "--json"]
    told = json.loads(subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout)
    queued = told["parts"]["queued"]
    sizes = {"load": told["load"], "rest": told["rest"], "peak": told["peak"], "queued": queued}
    return {name: count // MIB for name, count in sizes.items()} | {
        "weights": told["parts"]["weights"] // MIB
    }


# ---------------- Under limits


@contextmanager
def group(controller: str, **files: str) -> Iterator[Path]:
    """Makes a control group of version 1 with these files; raises SystemExit where that is not allowed."""
    path = GROUPS / controller / f"rerank-grpc-{os.getpid()}"
    try:
        path.mkdir()
        for name, text in files.items():
            (path / f"{controller}.{name}").write_text(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise SystemExit(f"{path}: {error.strerror}: control groups of version 1, and root") from error
    try:
        yield path
    finally:
        for _ in range(50):  # its processes are ended, and counted for a moment more
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            sleep(0.1)


def limits() -> dict[str, Any]:
    """Runs base in bf16 within a container's memory, and with one CPU's time."""
    weights = planned("base", "bf16")["weights"]
    most = int((weights + LOAD_MIB) * SPARE)
    found: dict[str, Any] = {"measured": report.now(), "weights_mib": weights, "limit_mib": most}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with (
            group("memory", limit_in_bytes=str(most * MIB)) as memory,
            serving("base", "bf16", home, [memory]) as server,
        ):
            server.wait()
            found["load_mib"] = server.mark() // MIB
            found["documents_per_second"] = round(called(server), 1)
            found |= {"peak_mib": server.mark() // MIB, "alive": server.process.poll() is None}
        found["one_cpu"] = [
            one_cpu(home, callers, **each)
            for callers in (1, 4)
            for each in ({}, {"OMP_NUM_THREADS": "1"}) * 3
        ]
    return found


def one_cpu(home: Path, callers: int, **environment: str) -> dict[str, Any]:
    """Counts the throttled periods of a server with one CPU's time, under W2 of so many callers."""
    period = str(int(PERIOD_SECONDS * 1e6))
    quota = {"cfs_quota_us": period, "cfs_period_us": period}
    with group("cpu", **quota) as cpu, serving("base", "bf16", home, [cpu], **environment) as server:
        server.wait()
        before = _counts(cpu / "cpu.stat")
        rate = called(server, callers=callers)
        after = _counts(cpu / "cpu.stat")
    spent = {name: after[name] - before[name] for name in ("nr_periods", "nr_throttled", "throttled_time")}
    return {"callers": callers, **spent, "documents_per_second": round(rate, 1), "variables": environment}


def _counts(path: Path) -> dict[str, int]:
    return {name: int(number) for name, number in (line.split() for line in path.read_text().splitlines())}


# ---------------- The tables


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    return found


def save(data: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def tables(data: Mapping[str, Any]) -> dict[str, str]:
    """Makes the tables by their names in the pages."""
    header = ["model", "precision", "weights", "first load", "later load", "at rest", "under W2"]
    header += ["first start", "later start", "documents/s"]
    cases: Mapping[str, Any] = data["cases"]
    rows = [
        [
            *case.split("/"),
            each["plan"]["weights"],
            *(each[f"{name}_mib"] for name in ("load", "later_load", "rest", "peak")),
            *(f"{each[f'{name}_seconds']:.1f} s" for name in ("first", "later")),
            f"{each['documents_per_second']:.0f}",
        ]
        for case, each in sorted(cases.items(), key=lambda pair: CASES.index(pair[0]))
    ]
    beside = [
        [*case.split("/"), *(text for name in ("load", "rest", "peak") for text in _beside(each, name))]
        for case, each in sorted(cases.items(), key=lambda pair: CASES.index(pair[0]))
    ]
    told = ["model", "precision", "load, told", "measured", "rest, told", "measured", "W2, told", "measured"]
    machine = data["machine"]
    here = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    busy = max(each["load_average"] for each in cases.values())
    measured = f"MiB, on {here}, torch {data['versions']['torch']}; load average up to {busy:.0f}"
    return {
        "resources": f"{measured}.\n\n{report.table(header, rows)}",
        "plan": report.table(told, beside),
        "limits": _limits_table(data["limits"]),
    }


def _beside(each: Mapping[str, Any], name: str) -> tuple[int, int]:
    told = each["plan"][name] - (each["plan"]["queued"] if name == "peak" else 0)
    return max(told, each["plan"]["load"] if name == "peak" else 0), each[f"{name}_mib"]


def _limits_table(found: Mapping[str, Any]) -> str:
    cpus = [
        [
            each["callers"],
            "`OMP_NUM_THREADS=1`" if each["variables"] else "none",
            each["nr_periods"],
            each["nr_throttled"],
            f"{each['nr_throttled'] / max(1, each['nr_periods']):.1%}",
            f"{each['throttled_time'] / (each['nr_periods'] * PERIOD_SECONDS * 1e9):.1%}",
            each["documents_per_second"],
        ]
        for each in found["one_cpu"]
    ]
    lives = "lived" if found["alive"] else "was killed"
    return (
        f"base in bf16 (weights {found['weights_mib']} MiB) took {found['load_mib']} MiB at its first load, "
        f"and {lives} through W2 in a group with a limit of {found['limit_mib']} MiB, with "
        f"{found['peak_mib']} MiB at most.\n\n"
        + report.table(
            ["callers", "set", "periods", "throttled", "share of periods", "share of time", "documents/s"],
            cpus,
        )
    )


def main(arguments: Sequence[str]) -> int:
    """Measures what is asked for, and writes the pages; 1 if --check finds other tables."""
    cases = [each for each in arguments if not each.startswith("--")]
    data = {"cases": {}} | read()
    if not arguments or cases or "--limits" in arguments:
        data |= {"machine": report.machine(), "versions": report.versions("torch", "rerank-grpc")}
    for case in cases or (() if arguments else CASES):
        data["cases"][case] = measured(case)
        save(data)
        print(case, json.dumps(data["cases"][case]), flush=True)
    if "--limits" in arguments or (not arguments and os.access(GROUPS / "memory", os.W_OK)):
        data["limits"] = limits()
        save(data)
        print(json.dumps(data["limits"]), flush=True)
    made, other = tables(data), []
    for page in PAGES:
        text = page.read_text("utf-8")
        new = report.filled(text, "resources", made)
        if new != text:
            other.append(page.name)
            if "--check" not in arguments:
                page.write_text(new, "utf-8")
    if other and "--check" in arguments:
        print(f"{', '.join(other)}: not the results' tables: run python -m benchmarks.resources --tables")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
