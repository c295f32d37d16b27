"""The quick benchmark compares a server with metrics and one without, and its page says so."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load, metrics_cost, quick

RESULTS = Path(quick.__file__).parent / "results"


def case(p50: list[float], rate: list[float]) -> dict[str, Any]:
    """Makes what was measured of one model, with 1 of each on the other side."""
    ones = [1.0] * len(p50)
    return {
        "rounds": len(p50),
        "seconds": 1.5,
        "scrapes": 30,
        "scrape_bytes": 40_000,
        "p50_ms": {"on": p50, "off": ones},
        "calls_per_second": {"on": rate, "off": ones},
    }


def test_the_servers_take_turns_a_b_b_a():
    assert list(chain(*metrics_cost.turns(4))) == ["on", "off", "off", "on", "on", "off", "off", "on"]


def test_a_ratio_is_that_of_a_round():
    found = metrics_cost.ratios({"on": [2.0, 30.0, 4.0], "off": [1.0, 10.0, 4.0]})
    assert (found.median, found.least, found.most, found.count) == (2.0, 1.0, 3.0, 3)


@pytest.mark.parametrize(
    ("p50", "rate", "met"),
    [(1.02, 0.98, (True, True)), (1.021, 1.2, (False, True)), (0.9, 0.979, (True, False))],
)
def test_two_percent_is_the_bound(p50: float, rate: float, met: tuple[bool, bool]):
    rows = metrics_cost.rows({"free": case([p50] * 3, [rate] * 3)})
    assert tuple(row[-1] for row in rows) == met
    assert [row[1] for row in rows] == ["≤ 1.02", "≥ 0.98"]
    assert rows[0][2] == f"{p50:.3f} ({p50:.3f}–{p50:.3f}) of 3 pairs"


def test_the_page_has_the_bound_and_how_it_was_measured():
    data = json.loads((RESULTS / "quick.json").read_text())
    data["metrics"] = {"free": case([1.0, 1.03, 1.1], [0.99] * 3), "minilm": case([1.0] * 3, [1.0] * 3)}
    page = quick.page_of(data)
    free = "| with metrics ÷ without, model that costs nothing, one document, "
    assert f"{free}one caller: p50 | ≤ 1.02 | 1.030 (1.000–1.100) of 3 pairs | **no** |" in page
    assert f"{free}16 callers: calls per second | ≥ 0.98 | 0.990 (0.990–0.990) of 3 pairs | yes |" in page
    assert "minilm's shape: p50 1.00 ms with metrics" in page
    assert "30 scrapes of up to 40,000 bytes" in page


def test_a_refused_call_ends_the_run():
    answers = [load.Answer(0.1, 0.0, 3), load.Answer(0.1, 0.0, 0, "RESOURCE_EXHAUSTED")]
    assert metrics_cost.well(answers[:1]) == answers[:1]
    with pytest.raises(SystemExit, match="RESOURCE_EXHAUSTED"):
        metrics_cost.well(answers)


@pytest.mark.timeout(240)
def test_a_trial_measures_both_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(metrics_cost, "SCRAPE_SECONDS", 0.1)
    found = metrics_cost.measure("tiny", 2, 1.0)
    for samples in (found["p50_ms"], found["calls_per_second"]):
        assert [len(samples[side]) for side in ("on", "off")] == [2, 2]
        assert min(samples["on"] + samples["off"]) > 0
    assert found["scrapes"] >= 4
    assert found["scrape_bytes"] > 1_000
