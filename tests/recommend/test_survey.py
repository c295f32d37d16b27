"""Surveys of tiny models: real processes, one for each; what fails is one row."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from rerank_grpc.recommend.figures import FEW_CALLS
from rerank_grpc.recommend.measuring import STAT, ProcessorTime, latency_of
from rerank_grpc.recommend.survey import PREFIX, Basis, Survey, SurveyOptions
from tests.command import environment
from tests.recommend.shapes import candidate, settings_with, write_catalogue

SHORT = SurveyOptions(candidates=(2, 4), tokens=16, seconds=0.3)


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(own))
    return write_catalogue(tmp_path)


def left(catalogue: Path) -> list[str]:
    return [name for name in os.listdir(catalogue.parent / "temporary") if name.startswith(PREFIX)]


def test_models_are_measured_taken_from_their_like_estimated_and_refused(catalogue: Path) -> None:
    # Of these times each has two seconds: in a pause of the machine it would be of one call, or of none.
    longer = SurveyOptions(candidates=(2, 4), tokens=16, seconds=6.0)
    survey, steps = Survey(settings_with(catalogue), longer), list[str]()
    survey.watch = steps.append
    bert, twin, broken, large = (
        survey.add(candidate(catalogue, name))
        for name in ("tiny-bert", "tiny-twin", "tiny-broken", "tiny-large")
    )
    assert bert.basis is Basis.RANDOM
    figures = bert.figures
    assert figures is not None
    assert figures.complete
    assert [each.candidates for each in figures.latencies] == [2, 4]
    assert all(each.calls > 1 and 0 < each.p50 <= each.p95 for each in figures.latencies)
    assert figures.documents_per_second > 0
    assert figures.resident > 50 << 20  # of a process that has imported torch
    assert figures.tokens_per_document == pytest.approx(16, abs=6)
    assert steps[:3] == ["preparing", "writing random weights", "loading"]

    assert (twin.basis, twin.reference) == (Basis.SAME_SHAPE, "tiny-bert")
    assert twin.figures is not None
    assert twin.figures.latencies == figures.latencies
    # 45,000 words more, of 64 dimensions in four bytes
    assert twin.figures.resident - figures.resident == 45_000 * 64 * 4

    assert (broken.basis, broken.figures) == (Basis.NONE, None)
    assert "makes no bert" in broken.problem

    # 200 layers of 8,192 dimensions fit no machine that runs tests.
    assert large.basis is Basis.ESTIMATE
    assert "it would need" in large.problem or "its load would need" in large.problem
    assert large.figures is not None
    assert large.figures.documents_per_second < figures.documents_per_second / 1000
    assert not any(each.calls for each in large.figures.latencies)
    assert left(catalogue) == []


def test_a_process_that_is_killed_costs_one_row(catalogue: Path) -> None:
    survey = Survey(settings_with(catalogue), SHORT)

    def kill(step: str) -> None:
        if step == "1 of 3":
            for child in multiprocessing.active_children():
                child.kill()

    survey.watch = kill
    killed = survey.add(candidate(catalogue, "tiny-bert"))
    assert killed.basis is Basis.NONE
    assert killed.problem == "its process was ended by signal 9, perhaps for want of memory"
    assert left(catalogue) == []
    survey.watch = lambda _: None
    assert survey.add(candidate(catalogue, "tiny-bert")).basis is Basis.RANDOM


def test_an_interrupt_leaves_no_folder_and_no_process(catalogue: Path) -> None:
    survey = Survey(settings_with(catalogue), SHORT)

    def interrupt(step: str) -> None:
        if step == "1 of 3":
            raise KeyboardInterrupt

    survey.watch = interrupt
    with pytest.raises(KeyboardInterrupt):
        survey.add(candidate(catalogue, "tiny-bert"))
    assert left(catalogue) == []
    assert multiprocessing.active_children() == []
    assert survey.rows == []


# A survey that would last for minutes; it prints its steps.
LONG = """
import sys
from pathlib import Path
from rerank_grpc.recommend.survey import Survey, SurveyOptions
from tests.recommend.shapes import candidate, settings_with

catalogue = Path(sys.argv[1])
survey = Survey(settings_with(catalogue), SurveyOptions((2,), 16, seconds=600.0))
survey.watch = lambda step: print(step, flush=True)
survey.add(candidate(catalogue, "tiny-bert"))
"""


def test_a_command_that_is_killed_leaves_no_folder_and_no_process(catalogue: Path) -> None:
    command, own = [sys.executable, "-c", LONG, str(catalogue)], str(catalogue.parent / "temporary")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, encoding="utf-8", env=environment(TMPDIR=own)
    ) as process:
        assert process.stdout is not None
        steps = iter(process.stdout.readline, "")
        assert "1 of 2\n" in steps  # its model is loaded, in a process of its own
        assert len(left(catalogue)) == 1
        process.kill()
        assert list(steps) == []  # the output ends with the last process that could write to it
    assert left(catalogue) == []


def test_a_full_disk_is_one_row(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    row = Survey(settings_with(catalogue), SHORT).add(candidate(catalogue, "tiny-bert"))
    assert "where 1 B are free: set TMPDIR to another disk" in row.problem
    assert left(catalogue) == []


def test_without_time_nothing_is_begun(catalogue: Path) -> None:
    survey = Survey(settings_with(catalogue), SurveyOptions((2,), 16, 0.3, total_seconds=0.0))
    row = survey.add(candidate(catalogue, "tiny-bert"))
    assert row.problem == "no time was left, and no model that it could be compared with was measured"


def test_a_model_that_cannot_be_loaded_is_one_row(catalogue: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    known = candidate(catalogue, "tiny-bert")
    row = Survey(settings_with(catalogue), SHORT).add(
        type(known)("damaged", known.known, directory=directory)
    )
    assert "no model.safetensors" in row.problem


def test_the_p95_of_few_calls_is_the_slowest() -> None:
    for calls in (1, 2, FEW_CALLS - 1):
        few = latency_of(20, [0.1] * (calls - 1) + [9.0])
        assert (few.calls, few.p95, few.is_of_few) == (calls, 9.0, True)
    enough = latency_of(20, [0.1] * 20 + [9.0])
    assert (enough.p50, enough.p95, enough.is_of_few) == (0.1, 0.1, False)


def test_the_share_of_other_processes_is_what_is_busy_and_not_its_own() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    before, after = ProcessorTime(0, 0, 1.0), ProcessorTime(10 * ticks, 6 * ticks, 3.0)
    assert before.others(after) == pytest.approx(0.4)
    assert before.others(before) == 0


@pytest.mark.skipif(not STAT.exists(), reason="the system does not tell the time of its processors")
def test_the_time_of_the_processors_is_read() -> None:
    found = ProcessorTime.now()
    assert 0 < found.busy < found.total
    assert found.own > 0
