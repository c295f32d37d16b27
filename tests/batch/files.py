"""Inputs for tests, and the command that reranks them."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

from tests.command import environment
from tests.random_models import texts

COUNTING = Path(__file__).parent / "counting"
ROOT = COUNTING.parent.parent.parent


def rows(count, *, seed=1, most=12):
    """Makes rows of documents of many lengths."""
    chosen, paragraphs = random.Random(seed), texts()
    return [
        {
            "id": f"q{number}",
            "query": chosen.choice(paragraphs)[:50],
            "documents": [
                chosen.choice(paragraphs)[: chosen.choice((20, 90, 300))]
                for _ in range(chosen.randint(1, most))
            ],
        }
        for number in range(count)
    ]


def write_lines(path, values):
    """Writes values as JSON lines, gzipped where the name says so; texts are written as they are."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in values]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def arguments(source, output, model, *more):
    return [
        *(sys.executable, "-m", "rerank_grpc", "batch", "--input", str(source), "--output", str(output)),
        *("--model", str(model), "--device", "cpu", "--precision", "fp32", *more),
    ]


def variables(counted=None, most=None):
    found = {"PYTHONPATH": f"{COUNTING}:{ROOT}"}
    if counted:
        found["COUNT_SCORED"] = str(counted)
    if most:
        found["MOST_SCORED"] = str(most)
    return environment(**found)


def rerank(source, output, model, *more, counted=None, timeout=100):
    """Runs the command to its end."""
    return subprocess.run(
        arguments(source, output, model, *more),
        capture_output=True,
        encoding="utf-8",
        env=variables(counted),
        timeout=timeout,
    )


def begin(source, output, model, *more, counted=None, most=None):
    """Starts the command; with `most`, its worker stands still before a further block, and it never ends."""
    return subprocess.Popen(
        arguments(source, output, model, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=variables(counted, most),
    )
