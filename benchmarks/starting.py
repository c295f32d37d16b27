"""The time and the memory of a start: until READY, of the embedded model and of one of base's shape.

    python -m benchmarks.starting              three second starts of each, in turn, after a first one
    python -m benchmarks.starting embedded     those of one

A first start finds nothing that an earlier one has kept: each model has a home of its own for the run.
Processor time includes that of child processes, and counts where other work runs beside. Results go to
results/starting.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from time import monotonic
from typing import IO, Any

from benchmarks import checkpoints, report

STARTS = 3
SECONDS = 180  # until a server counts as hung
READY = "Ctrl-C stops it."  # the last line of what the command says
RESULTS = Path(__file__).parent / "results" / "starting.json"
PORTS = ("--port=0", "--admin-port=0", "--rest-port=0", "--metrics-port=0", "--log-format=text")
# The bytes of a weight in memory, and the precision that is asked for.
MODELS = {"embedded": (4, "fp32"), "base": (2, "bf16")}


def main(names: list[str]) -> None:
    names = names or list(MODELS)
    with TemporaryDirectory() as folder:
        homes = {name: Path(folder) / name for name in names}
        first = {name: start(name, homes[name]) for name in names}
        rounds = [{name: start(name, homes[name]) for name in names} for _ in range(STARTS)]
    found = {
        name: {
            "first": first[name],
            "starts": [each[name] for each in rounds],
            "median": {key: statistics.median(each[name][key] for each in rounds) for key in first[name]},
            "weights_mib": weights_bytes(name) / 2**20,
        }
        for name in names
    }
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(kept | found, indent=1) + "\n", "utf-8")
    print(report.table(["model", "ready s", "processor s", "RSS MiB", "less weights"], rows_of(found)))


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, each in found.items():
        median = each["median"]
        less = median["resident_mib"] - each["weights_mib"]
        rows.append(
            [
                name,
                f"{median['seconds']:.1f}",
                f"{median['processor_seconds']:.1f}",
                *(f"{mib:.0f}" for mib in (median["resident_mib"], less)),
            ]
        )
    return rows


def start(name: str, home: Path) -> dict[str, float]:
    """Starts a server and stops it once it is ready; returns seconds, processor seconds and MiB."""
    model = name if name == "embedded" else str(checkpoints.checkpoint(name))
    precision = MODELS[name][1]
    command = [sys.executable, "-m", "rerank_grpc", "serve", f"--model={model}", f"--precision={precision}"]
    environment = os.environ | {"HOME": str(home)}
    begin = monotonic()
    with subprocess.Popen([*command, *PORTS], stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        limit = Timer(SECONDS, server.kill)
        limit.start()
        try:
            _wait(server.stderr)
            seconds = monotonic() - begin
            return {"seconds": seconds} | _use(server.pid)
        finally:
            limit.cancel()
            server.kill()


def _wait(lines: IO[str]) -> None:
    """Reads a server's lines until it is ready; raises SystemExit with them if they end before."""
    said = []
    for line in lines:
        said.append(line)
        if READY in line:
            return
    raise SystemExit(f"no READY, or none within {SECONDS} s: {''.join(said)[-2000:]}")


def _use(pid: int) -> dict[str, float]:
    """What a process and its children have used: processor time, and memory of its own now and at most."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "processor_seconds": ticks / os.sysconf("SC_CLK_TCK"),
        "resident_mib": int(status["VmRSS"].split()[0]) / 1024,
        "peak_mib": int(status["VmHWM"].split()[0]) / 1024,
        "anonymous_mib": int(status["RssAnon"].split()[0]) / 1024,
    }


def weights_bytes(name: str) -> int:
    """The bytes of a model's weights in the precision that it is started in."""
    from rerank_grpc.checkpoints.checkpoint import find_weights, read_header
    from rerank_grpc.checkpoints.lookup import find_package

    directory = find_package() if name == "embedded" else checkpoints.checkpoint(name)
    assert directory is not None
    entries = [entry for path in find_weights(directory) for entry in read_header(path).values()]
    stored: int = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries)
    return stored * MODELS[name][0] // 4


if __name__ == "__main__":
    main(sys.argv[1:])
