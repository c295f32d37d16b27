"""The benchmark of a GPU runs end to end without one, so that no card's time is spent on its mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "BENCH_CACHE": str(cache), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.timeout(260)
def test_a_dry_run_takes_every_step_and_writes_nothing(tmp_path: Path) -> None:
    results = {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").iterdir()}
    done = run("--dry-run", cache=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no figure of it means anything" in done.stdout
    assert "not measured" not in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| W2, tiny", "| tiny"))]
    assert len(rows) == 8 + 3
    assert [row.split("|")[-2].strip() for row in rows[-3:]] == ["yes"] * 3, "scores"
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").iterdir()} == results


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_card_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run(cache=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no CUDA device" in line
