"""The dashboard is what Grafana needs, and what the operators' page says of it."""

from __future__ import annotations

import re
from itertools import combinations

from rerank_grpc.telemetry.families import FAMILIES
from tests.deploy.files import (
    DASHBOARD,
    GRAFANA,
    PANELS,
    PROMETHEUS,
    VARIABLES,
    expressions,
    read_yaml,
    table,
)

PROMISED = [
    "Traffic",
    "Errors",
    "Latency by stage",
    "Queue age",
    "Batch fill",
    "Refusals",
    "Models and memory",
    "Device busy share",
    "Tokens/s",
    "Restarts",
]
FROM_VARIABLE = {"type": "prometheus", "uid": "${datasource}"}


def area(panel: dict[str, dict[str, int]]) -> tuple[int, int, int, int]:
    place = panel["gridPos"]
    return place["x"], place["y"], place["x"] + place["w"], place["y"] + place["h"]


def test_it_has_the_ten_panels_that_an_operator_needs():
    assert [panel["title"] for panel in PANELS] == PROMISED
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_no_panel_covers_another_or_leaves_the_grid():
    for panel in PANELS:
        left, top, right, bottom = area(panel)
        assert 0 <= left < right <= 24, panel["title"]
        assert 0 <= top < bottom, panel["title"]
    for (left, top, right, bottom), (left_b, top_b, right_b, bottom_b) in combinations(map(area, PANELS), 2):
        assert right <= left_b or right_b <= left or bottom <= top_b or bottom_b <= top


def test_a_panel_says_in_one_sentence_what_it_shows_and_what_to_do():
    for panel in PANELS:
        assert re.fullmatch(r"[A-Z].*: .*[^.]\.|[A-Z].*, and .*[^.]\.", panel["description"]), panel["title"]
        assert ". " not in panel["description"]


def test_the_operators_page_repeats_the_panels():
    assert table("## The dashboard") == [[panel["title"], panel["description"]] for panel in PANELS]


def test_every_target_asks_the_datasource_that_the_viewer_has_chosen():
    for panel in PANELS:
        assert panel["datasource"] == FROM_VARIABLE
        assert panel["options"]["legend"]["showLegend"]
        names = [target["refId"] for target in panel["targets"]]
        assert names == sorted(set(names))
        assert names, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == FROM_VARIABLE
            assert target["expr"].strip()
            assert target["legendFormat"]
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["id"] == "byFrameRefID"
            assert override["matcher"]["options"] in names
    assert VARIABLES["datasource"] == VARIABLES["datasource"] | {"type": "datasource", "query": "prometheus"}
    assert [VARIABLES[name]["datasource"] for name in ("job", "instance", "model")] == [FROM_VARIABLE] * 3


def test_every_variable_is_one_of_the_dashboards_or_of_grafana():
    texts = [*expressions(), *(each["definition"] for each in VARIABLES.values() if "definition" in each)]
    used = {name for text in texts for name in re.findall(r"\$(\w+)", text)}
    assert used == {"job", "instance", "model", "__rate_interval"}
    for text in texts:
        # Each selector of a metric leaves out the servers that the viewer does not want to see.
        selectors = re.findall(r"(?:rerank|process)_\w+(\{[^}]*\})?", text)
        assert all('job=~"$job"' in selector for selector in selectors) or text.startswith("label_values(")


def test_every_metric_is_one_that_the_server_has():
    known = {family.name for family in FAMILIES}
    texts = [*expressions(), (PROMETHEUS / "rules.yml").read_text("utf-8")]
    used = {name for text in texts for name in re.findall(r"\brerank_[a-z_]+", text)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} - known == set()
    assert len(used) > 15


def test_rates_are_over_the_interval_that_grafana_chooses_and_no_share_divides_by_nothing():
    for text in expressions():
        interval = "1h" if text.startswith("changes(") else "$__rate_interval"
        assert set(re.findall(r"\}\[([^]]*)\]", text)) <= {interval}
        if "/" in text:
            assert text.rstrip(")").endswith("> 0")


def test_grafana_is_provisioned_with_it():
    (source,) = read_yaml(GRAFANA / "datasource.yml")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    interval = read_yaml(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = read_yaml(GRAFANA / "dashboards.yml")["providers"]
    assert provider["type"] == "file"
    assert DASHBOARD["id"] is None, "the number is the importing Grafana's to give"
    assert DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 39
