"""The page on scaling follows the committed results, and its arithmetic is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.scaling import balancing, layers, rates, series, tables
from benchmarks.scaling.__main__ import PAGE, main, written
from tests import command

ROOT = Path(__file__).resolve().parent.parent
ASSUMED = rates.Assumptions()


def test_the_page_has_the_results_tables():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--check"],
        cwd=ROOT,
        env=command.environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_differs_is_written_anew():
    with pytest.raises(ValueError, match="no <!-- scaling: rates -->"):
        written("no markers")
    page = PAGE.read_text("utf-8")
    other = page.replace("| calls on one connection | 192 |", "| calls on one connection | 1 |")
    assert other != page
    assert written(other) == page


def test_a_core_is_half_of_the_two_that_were_measured():
    case = json.loads((report.RESULTS / "cpu.json").read_text())["cases"]["base/W2"]
    seconds = sorted(each["seconds"]["rerank-grpc int8"] for each in case["rounds"])
    (rate,) = (each for each in rates.cores(ASSUMED) if each.name == "bge-reranker-base, int8")
    assert rate.per_second == pytest.approx(case["documents"] / seconds[len(seconds) // 2] / 2)


def test_a_card_is_its_published_rate_and_two_shares():
    case = json.loads((report.RESULTS / "cpu.json").read_text())["cases"]["v2-m3/W2"]
    (rate,) = (each for each in rates.cards(ASSUMED) if each.name == "bge-reranker-v2-m3, H100")
    assert rate.per_second == pytest.approx(989e12 * 0.7 * 0.6 / (case["flop"] / 100))


def test_units_and_prices_are_arithmetic():
    rate = rates.Rate("a", per_second=10.0, hour=3.6)
    assert rate.units(1_000, 0.5) == 200
    assert rate.units(1, 0.5) == 1
    assert rate.per_million(200, 1_000) == pytest.approx(200 * 3.6 / (1_000 * 3_600) * 1e6)
    paid = [rates.rented(cores, 32) for cores in (1, 16, 17, 32, 33, 3_200)]
    assert paid == [1, 16, 32, 32, 64, 3_200]
    texts = [rates.machines_of(cores, 32) for cores in paid]
    assert texts == ["1 core", "16 cores", "1", "1", "2", "100"]


def test_a_unit_that_is_hardly_asked_makes_documents_dear():
    (card,) = (each for each in rates.cards(ASSUMED) if each.name == "bge-reranker-base, H100")
    prices = [card.per_million(card.units(wanted, 0.7), wanted) for wanted in tables.WANTED]
    assert prices == sorted(prices, reverse=True)
    assert prices[0] == pytest.approx(4 / 36_000 * 1e6)


def test_other_prices_are_printed_and_nothing_is_written(capsys: pytest.CaptureFixture[str]):
    page = PAGE.read_bytes()
    assert main(["--core-hour", "0.08", "--gpu-hour", "H100=8"]) == 0
    told = capsys.readouterr().out
    dearer = replace(ASSUMED, core_hour=0.08, gpu_hour={**ASSUMED.gpu_hour, "H100": 8.0})
    assert told == "".join(tables.table(name, dearer) + "\n\n" for name in ("cpus", "gpus"))
    pairs = zip(rates.cards(dearer), rates.cards(ASSUMED), strict=True)
    assert {after.per_million(1, 10) / before.per_million(1, 10) for after, before in pairs} == {1.0, 2.0}
    assert PAGE.read_bytes() == page


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (["--gpu-hour", "T4=1"], "--gpu-hour is CARD=PRICE"),
        (["--gpu-hour", "H100"], "--gpu-hour is CARD=PRICE"),
        (["--busy", "2"], "--busy is above 0 and at most 1"),
        (["--core-hour", "-1"], "prices"),
        (["--cores", "0"], "--cores"),
    ],
)
def test_a_bad_option_is_one_line(capsys: pytest.CaptureFixture[str], option: list[str], error: str):
    assert main(option) == 2
    told = capsys.readouterr().err
    assert told.startswith("scaling: ")
    assert error in told
    assert told.count("\n") == 1


def test_no_rule_of_balancing_is_worse_than_chance_by_much():
    """What the page says of rules holds in the runs that it shows."""
    found = json.loads((report.RESULTS / "scaling.json").read_text())
    for case in found["balancing"]:
        rules = case["rules"]
        if case["load"] < 1:
            assert rules["least-queued"]["p99"] <= rules["random"]["p99"]
            assert rules["least-connections"]["p99"] <= rules["random"]["p99"]


def test_the_page_counts_calls_after_the_queues_have_grown(monkeypatch: pytest.MonkeyPatch):
    found = json.loads((report.RESULTS / "scaling.json").read_text())
    (over,) = (case for case in found["balancing"] if case["load"] > 1)
    # What is asked above what the devices can do is refused in the end, whoever chooses.
    assert all(1 - each["answered"] / each["calls"] > 1 - 1 / over["load"] for each in over["rules"].values())
    monkeypatch.setattr(balancing, "CALLS", 100)
    monkeypatch.setattr(balancing, "WARM_UP", 60.0)
    told = balancing.replayed(1, 0.5, "round-robin")
    assert told["calls"] == pytest.approx(100, rel=0.3)
    assert told["answered"] + sum(told["refused"].values()) == told["calls"]


def test_a_scrape_is_counted_by_lines_and_by_model():
    text = '# HELP a b\na{model="model"} 1\na{model="other"} 2\nb 3\n'
    assert series.counted(text, "model") == {"one_model": 3, "further_model": 1, "bytes": len(text)}


def test_the_series_are_those_of_todays_server():
    """Within a tenth, so that a further metric alone needs no new count."""
    found = json.loads((report.RESULTS / "scaling.json").read_text())["series"]
    assert series.count_series() == pytest.approx(found, rel=0.1)


def test_a_layer_is_what_its_results_say():
    balancing, ray = (
        json.loads((report.RESULTS / f"{name}.json").read_text()) for name in ("balancing", "ray")
    )
    found = {each.name: each for each in layers.layers()}
    assert [*found] == ["round robin by the client", "nginx", "HAProxy", "Ray Serve, HAProxy mode"]
    costs = balancing["cost"]
    assert found["nginx"].added == tuple(costs[size]["nginx"]["added_p50_ms"] for size in ("1", "100"))
    failed = balancing["faults"]["nginx"]["hangs"]
    assert found["nginx"].faults[1] == (sum(failed["failed"].values()), failed["calls"])
    assert found["Ray Serve, HAProxy mode"].faults[0] == (ray["kill"]["failed"], ray["kill"]["calls"])
