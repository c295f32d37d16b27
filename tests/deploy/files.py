"""What the tests of deploy/ share: its files, what the dashboard asks, and the tools that check them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "rerank.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}


def read_yaml(path: Path) -> Any:
    """Reads a file of YAML that holds one document."""
    return yaml.safe_load(path.read_text("utf-8"))


def alerts() -> list[dict[str, Any]]:
    """Returns the rules of the alerts, in order."""
    return [rule for group in read_yaml(PROMETHEUS / "rules.yml")["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Returns every query of the dashboard's panels."""
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def table(heading: str) -> list[list[str]]:
    """Reads the cells of the first table below a heading of the operators' page."""
    page = (ROOT / "docs/operations/watching.md").read_text("utf-8")
    lines = page.partition(f"\n{heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def tool(name: str) -> str:
    """Finds a program of Debian's package prometheus; a machine without it skips the test."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is missing: Debian's package prometheus has it, which .ci/run brings"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
