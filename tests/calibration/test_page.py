"""The page on calibration shows a file that is read, and options that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rerank_grpc.calibration.calibration import CLEAR_AUC
from rerank_grpc.calibration.file import read_calibration
from rerank_grpc.calibration.maps import PlattMap
from rerank_grpc.cli.parser import COMMANDS
from rerank_grpc.evaluation.calibrating.figures import BINS
from rerank_grpc.evaluation.calibrating.labelled import LEAST_OF_EACH
from rerank_grpc.evaluation.calibrating.thresholds import LEAST_ABOVE
from tests.batch.files import rerank, write_lines

PAGE = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text("utf-8")


def test_the_file_on_the_page_is_a_calibration(tmp_path):
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "page.json"
    path.write_text(text, "utf-8")
    found = read_calibration(path)
    assert isinstance(found.map, PlattMap)
    assert f"platt: 1 / (1 + exp(-({found.map.slope:.6g} · logit - 8.08208)))" in PAGE
    assert found.probabilities([0.64179])[0] > 0.4694  # the page's row for precision 0.7
    assert f"{found.figures.after.ece:.4f}  {found.figures.ece_of_chance:.4f} would be chance" in PAGE


def test_the_page_maps_the_logits_of_a_file_of_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    Path("embedded.calibration.json").write_text(text, "utf-8")
    row = {"id": "q1", "query": "How do I reset my password?", "documents": ["Closed.", "Forgot password?"]}
    pairs = write_lines(tmp_path / "pairs.jsonl", [row])
    assert rerank(pairs, Path("scores.jsonl"), "embedded").returncode == 0
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "calibration.md", "exec"), {})
    name, _, probabilities = capsys.readouterr().out.partition(" ")
    best, worst = json.loads(probabilities)
    assert name == "q1"
    assert best > worst


def test_each_option_on_the_page_is_there():
    flags = {f"--{each.name}" for command in COMMANDS for each in command.options}
    flags |= {flag for command in COMMANDS for name, _ in command.arguments for flag in name.split(", ")}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert len(named) > 10
    assert named - flags == set()


def test_the_pages_numbers_are_the_programs():
    assert f"below {CLEAR_AUC}," in PAGE
    assert f"into {BINS} bins" in PAGE
    assert f"At least {LEAST_OF_EACH} relevant and {LEAST_OF_EACH} irrelevant" in PAGE
    assert f"at least {LEAST_ABOVE} pairs above" in PAGE
