"""The benchmark of attacks runs, so that it does not break unnoticed; its figures are for a quiet machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.attacks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_some_attacks_are_made_and_no_page_is_written():
    results = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    done = run("--only", "reflection,end-all")
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 2
    assert "the attack can be made" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == results


@pytest.mark.parametrize("names", ["none", "reflection,none"])
def test_an_unknown_attack_is_named(names: str):
    done = run("--only", names)
    assert done.returncode == 2
    assert "no such attack: none" in done.stderr
