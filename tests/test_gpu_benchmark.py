"""The benchmark of a GPU runs end to end without one, so that no card's time is spent on its mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# By shape, of those that take the places of the real ones.
ENCODERS = [
    "| W2, tiny: useful FLOP/s ÷ plain product",
    "| W2, tiny vs sentence-transformers",
    "| tiny: peak memory",
    "| tiny: 6 passages, one caller",
    "| tiny: one document",
    "| tiny: W4 at saturation",
    "| W2, tiny-modernbert: useful FLOP/s ÷ plain product",
]
DECODERS = [
    "| W2, tiny-qwen3: useful FLOP/s ÷ plain product",
    "| W2, tiny-qwen3 vs transformers",
    "| tiny-qwen3: one pair of 300 tokens",
    "| tiny-qwen3: 10 pairs a call of 300 tokens, open loop",
]


def run(*arguments: str, cache: Path, seconds: float = 340) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "BENCH_CACHE": str(cache), "OMP_NUM_THREADS": "2", "OUT": str(cache)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.mark.timeout(350)
def test_a_dry_run_takes_every_step_and_writes_nothing(tmp_path: Path) -> None:
    results = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    done = run("--dry-run", cache=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "no figure of it means anything" in done.stdout
    assert "not measured" not in done.stdout
    page = done.stdout.partition("# One GPU")[2].splitlines()
    for figure in ENCODERS + DECODERS:
        assert [line for line in page if line.startswith(figure)], figure
    scores = [line for line in page if line.startswith(("| tiny |", "| tiny-modernbert |", "| tiny-qwen3 |"))]
    assert len(scores) == 3
    assert all("**no**" not in row and "yes" in row and "equal" in row for row in scores), scores
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == results
    assert not list(tmp_path.glob("*.md"))


@pytest.mark.timeout(200)
def test_a_profile_names_kernels_and_budgets(tmp_path: Path) -> None:
    done = run("--dry-run", "--profile", "tiny-qwen3", cache=tmp_path, seconds=190)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for words in ("launch, ms", "full batch: a pass of", "one pair: a pass of", "| 1,024 |"):
        assert words in done.stdout, words


@pytest.mark.timeout(100)
def test_a_step_whose_time_is_up_shows_its_stacks_and_is_given_up(tmp_path: Path) -> None:
    done = run("--dry-run", "--steps", "base", "--limit", "1", cache=tmp_path, seconds=90)
    assert done.returncode == 1
    assert "base | not measured: its time was up before it was ready" in done.stdout
    assert "| base | — | not measured" in done.stdout
    assert "a step failed" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_card_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run(cache=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no CUDA device" in line
