"""The page on memory and processors follows the committed results, which keep their bounds."""

from __future__ import annotations

import json

import pytest

from benchmarks import report, resources


def test_the_pages_have_the_results_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert resources.main(["--check"]) == 0, capsys.readouterr().out


def test_a_table_that_differs_is_written_anew() -> None:
    page = resources.PAGES[1].read_text("utf-8")
    made = resources.tables(json.loads(resources.RESULTS.read_text("utf-8")))
    assert report.filled(page, "resources", made) == page
    other = report.filled(page, "resources", dict.fromkeys(made, "other"))
    assert other.count("other\n<!-- end -->") == page.count("<!-- resources: ") == len(made)


def test_base_lives_within_its_weights_and_500_mib_and_one_cpu_is_hardly_throttled() -> None:
    found = json.loads(resources.RESULTS.read_text("utf-8"))["limits"]
    assert found["load_mib"] <= found["weights_mib"] + resources.LOAD_MIB
    assert found["alive"]
    assert found["one_cpu"]
    for each in found["one_cpu"]:
        passed = each["nr_periods"] * resources.PERIOD_SECONDS
        assert each["throttled_time"] / 1e9 <= resources.THROTTLED * passed
