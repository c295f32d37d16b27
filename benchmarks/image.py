"""The image beside the same service outside of it: the time of int8, in one interleaved run.

    python -m benchmarks.image IMAGE              seven rounds of 32 documents of W2, on base's shape
    python -m benchmarks.image IMAGE --rounds 15  more rounds

Both have one thread, and the kernels of the best level of the processor: those of the image have come with
it, those outside are compiled by gcc at their first load. Processor time counts where other work runs
beside. podman runs the image, as root or as the owner of the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import checkpoints, report, workloads
from benchmarks.worker import engine_on

SHAPE, PRECISION, DOCUMENTS, ROUNDS = "base", "int8", 32, 7
BATCH_TOKENS = 2_048  # the same in both: each would measure one of its own
ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = "outside", "image"


def answer(source: str) -> None:
    """Scores the texts of each line of stdin, and tells the seconds of the processor and of the clock."""
    from rerank_grpc.kernels.library import library

    score, found = engine_on(source, 1, PRECISION, BATCH_TOKENS), library()
    print(json.dumps({"level": found and found.level}), flush=True)
    for line in sys.stdin:
        workload = workloads.Workload("W2", **json.loads(line))
        began, used = time.perf_counter(), time.process_time()
        scores = score(workload)
        took = {"processor": time.process_time() - used, "clock": time.perf_counter() - began}
        print(json.dumps(took | {"scores": scores}), flush=True)


def started(image: str | None) -> subprocess.Popen[str]:
    """Starts what answers, in a container of the image or outside."""
    path = checkpoints.checkpoint(SHAPE)
    words = ["-m", "benchmarks.image", "--answer"]
    if image is None:
        command = ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", sys.executable, *words, str(path)]
    else:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        command = ["podman", "run", "--rm", "-i", "--network=host", "--no-healthcheck", "--user=0:0"]
        command += [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=32768:32768"]
        # A group at the root, with the weight of one process: a busy machine slows both down alike.
        command += ["--cgroup-parent=/", "--cpu-shares=1024"]
        command += ["--env=OMP_NUM_THREADS=1", "--env=PYTHONPATH=/opt/service:/bench", "--entrypoint=python"]
        command += [f"--volume={ROOT / 'benchmarks'}:/bench/benchmarks:ro", f"--volume={path}:/weights:ro"]
        command += [image, *words, "/weights"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """Sends a line, and reads the answer; raises SystemExit where it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    said = process.stdout.readline()
    if not said:
        raise SystemExit("a process has ended: see above")
    found: dict[str, Any] = json.loads(said)
    return found


def measure(image: str, rounds: int) -> str:
    """Asks both in turn; returns the table of medians. Raises SystemExit where their levels differ."""
    called = workloads.passages(DOCUMENTS)
    line = json.dumps({"query": called.query, "documents": called.documents}) + "\n"
    processes = dict(zip(SYSTEMS, (started(None), started(image)), strict=True))
    try:
        levels = {name: ask(process, "")["level"] for name, process in processes.items()}
        if len(set(levels.values())) != 1:
            raise SystemExit(f"the kernels differ: {levels}")
        first = {name: ask(process, line)["scores"] for name, process in processes.items()}
        taken = [{name: ask(process, line) for name, process in processes.items()} for _ in range(rounds)]
    finally:
        for process in processes.values():
            process.communicate()
    rows = []
    for kind in ("processor", "clock"):
        outside, inside = (median(each[name][kind] for each in taken) for name in SYSTEMS)
        ratios = sorted(each["image"][kind] / each["outside"][kind] for each in taken)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append([kind, f"{outside:.2f}", f"{inside:.2f}", f"{inside / outside:.3f}", spread])
    apart = max(abs(a - b) for a, b in zip(*(first[name] for name in SYSTEMS), strict=True))
    head = f"{SHAPE} in {PRECISION}, {DOCUMENTS} documents of W2, kernels {levels['image']}, "
    head += f"logits at most {apart:.1g} apart\n\n"
    return head + report.table(["seconds of the", *SYSTEMS, "ratio", "in a round"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.answer:
        answer(asked.image)
    else:
        print(measure(asked.image, asked.rounds))


if __name__ == "__main__":
    main()
