"""The alerts: promtool accepts them, each fires when it should, and the operators' page says what to do."""

from __future__ import annotations

import subprocess

import pytest

from tests.deploy.files import PROMETHEUS, alerts, read_yaml, table, tool

SIX = [
    *("RerankNotServing", "RerankErrors", "RerankQueueAge", "RerankRefusals", "RerankModelFailed"),
    "RerankCertificateEnds",
]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_has_no_complaint(arguments):
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_six_alerts_are_worth_waking_for():
    assert [rule["alert"] for rule in alerts()] == SIX
    for rule in alerts():
        assert rule["for"]
        assert rule["labels"] == {"severity": "critical"}
        assert set(rule["annotations"]) == {"summary", "description", "action"}


def test_each_is_tried_where_it_fires_and_where_it_does_not():
    tried = [
        (each["alertname"], bool(each["exp_alerts"]))
        for group in read_yaml(PROMETHEUS / "rules_test.yml")["tests"]
        for each in group["alert_rule_test"]
    ]
    assert set(tried) == {(name, fires) for name in SIX for fires in (True, False)}


def test_the_operators_page_repeats_what_to_do():
    said = {name.strip("`"): action for name, _, action in table("## The alerts")}
    assert said == {rule["alert"]: rule["annotations"]["action"] for rule in alerts()}


def test_the_job_that_is_scraped_is_the_one_that_the_rules_know():
    (job,) = read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    monitor = read_yaml(PROMETHEUS / "pod-monitor.yaml")["spec"]
    named = monitor["selector"]["matchLabels"][monitor["jobLabel"]]
    assert job["job_name"] == named == "rerank"
    assert f'up{{job="{named}"}}' in alerts()[0]["expr"]
