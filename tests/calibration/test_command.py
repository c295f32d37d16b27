"""`rerank-grpc calibrate` on real pairs, its file served, and what an operator can do wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.calibration.file import read_calibration, write_calibration
from rerank_grpc.calibration.maps import IsotonicMap, PlattMap
from rerank_grpc.cli import main
from rerank_grpc.client import Client
from rerank_grpc.config.settings import EMBEDDED, ServerSettings
from rerank_grpc.evaluation.journal import folder_of
from tests.calibration.made import made
from tests.command import environment, run, served
from tests.evaluation.files import write_collection
from tests.support import serving

COLLECTION = Path(__file__).parents[1] / "evaluation" / "collection"
BEIR = ("--beir", str(COLLECTION), "--candidates", "4")
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrated") / "embedded.calibration.json"


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """Every second query of the small real collection, which halves the pairs that are scored."""
    folder = tmp_path_factory.mktemp("collection")
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").symlink_to(COLLECTION / "corpus.jsonl")
    queries = (COLLECTION / "queries.jsonl").read_text("utf-8").splitlines(keepends=True)[::2]
    names = {json.loads(line)["_id"] for line in queries}
    head, *judged = (COLLECTION / "qrels" / "test.tsv").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in judged if line.split("\t")[0] in names]
    (folder / "queries.jsonl").write_text("".join(queries), "utf-8")
    (folder / "qrels" / "test.tsv").write_text("".join([head, *kept]), "utf-8")
    return ("--beir", str(folder), "--candidates", "4")


@pytest.fixture(scope="module")
def target():
    with serving(ServerSettings(models=(EMBEDDED,))) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def calibrated(output, beir, target):
    """The command's whole path on real pairs, scored by a server, and what it printed."""
    done = run("calibrate", *beir, "--target", target, "--model", "embedded", "-o", str(output), timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def found(calibrated, output) -> Calibration:
    assert calibrated
    return read_calibration(output)


def refused(capsys, *arguments) -> str:
    """Runs the command in this process; returns its one line of error."""
    assert main(["calibrate", *map(str, arguments)]) in (1, 2)
    *_, last = capsys.readouterr().err.splitlines()
    return str(last).removeprefix("rerank-grpc: error: ")


def test_on_the_small_collection_the_error_of_the_held_out_half_is_small(found):
    figures = found.figures
    assert figures.after.ece <= 0.05
    assert figures.before.ece > 0.3
    assert figures.auc_low < figures.before.auc < figures.auc_high
    assert figures.clean_separation
    assert isinstance(found.map, PlattMap)
    assert found.fitted_on.queries + found.held_out.queries == 85
    assert sum(each.relevant + each.irrelevant for each in (found.fitted_on, found.held_out)) == 85 * 4


def test_the_file_names_the_model_as_the_server_lists_it(found, target):
    with Client(target) as client:
        (info,) = client.list_models()
    assert found.model.name == "embedded"
    assert found.model.revision == info.revision
    assert (found.model.scoring, found.model.precision) == (info.scoring, info.precision)
    assert found.mismatch(revision=info.revision, scoring=info.scoring, precision=info.precision) == ""


def test_what_is_printed_agrees_with_the_file(calibrated, found, output):
    assert f"{found.figures.after.ece:.4f}" in calibrated
    assert f"{found.figures.before.ece:.4f}" in calibrated
    assert "recall 0.9" in calibrated
    assert f"serve --model embedded --calibration embedded={output}" in calibrated
    assert output.with_suffix(".png").read_bytes().startswith(PNG)


def test_another_method_takes_the_scores_that_are_there(found, output, beir, target, tmp_path, capsys):
    scores, other = output.with_suffix(".scores"), tmp_path / "other.json"
    shutil.copytree(scores, other.with_suffix(".scores"))
    options = ("--method", "isotonic", "--for-precision", "0.5", "--for-recall", "0.9", "-o", str(other))
    assert main(["calibrate", *beir, "--target", target, "--model", "embedded", *options]) == 0
    assert "follows chance: take --method platt" in capsys.readouterr().err
    isotonic = read_calibration(other)
    assert isinstance(isotonic.map, IsotonicMap)
    assert (isotonic.model, isotonic.held_out) == (found.model, found.held_out)
    assert [(each.aim, each.asked) for each in isotonic.thresholds] == [("precision", 0.5), ("recall", 0.9)]
    (before,), (after,) = (each.glob("*.jsonl") for each in (scores, other.with_suffix(".scores")))
    assert after.read_bytes() == before.read_bytes()


def test_the_served_probability_is_the_files_map_of_the_logit(found, output):
    documents = ["Python's list has a method sort.", "Use a dictionary.", "", "Bananas are yellow."]
    with served("--calibration", f"embedded={output}") as server, Client(server.target) as client:
        (info,) = client.list_models()
        response = client.rerank("How do I sort a list?", documents)
    assert info.calibration is not None
    assert info.calibration.created == found.made
    assert len(response.results) == 4
    expected = found.probabilities([result.logit for result in response.results])
    given = [result.calibrated_score or 0.0 for result in response.results]
    assert given == pytest.approx(expected, abs=1e-6)
    assert given == sorted(given, reverse=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/m.json", "-o: {}: there is no folder"),
        ("m.png", "-o: {}: the diagram takes .png"),
        ("m.scores", "-o: {}: the folder of scores takes .scores"),
        (".", "-o: {}: is a directory: name a file in it"),
        ("fifo", "-o: {}: is no regular file"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(tmp_path, capsys, name, said):
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / name
    assert refused(capsys, "--beir", tmp_path / "nowhere", "-o", path).startswith(said.format(path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "beta"), "argument --method: invalid choice: 'beta'"),
        (("--for-precision", "90"), "argument --for-precision: '90' is not a number above 0 and up to 1"),
        (("--for-recall", "nan"), "argument --for-recall: 'nan' is not a number above 0 and up to 1"),
        (("--seed", "-1"), "argument --seed: "),
        (("--unjudged", "relevant"), "argument --unjudged: invalid choice"),
        (("--instruction", "a\udcff"), "--instruction: holds a lone surrogate"),
        ((), "a collection is --beir DIR, or --queries, --corpus and --qrels"),
    ],
)
def test_a_bad_option_is_named(tmp_path, capsys, arguments, said):
    assert refused(capsys, "-o", tmp_path / "m.json", *arguments).startswith(said)


def test_the_output_must_be_named(capsys):
    assert "-o" in refused(capsys, *BEIR)


def test_too_few_pairs_are_told_before_anything_is_scored(tmp_path, capsys):
    line = refused(capsys, *write_collection(tmp_path), "-o", tmp_path / "m.json")
    assert line.startswith("too few pairs: 2 queries have 2 relevant candidates")
    assert not (tmp_path / "m.scores").exists()


def test_one_label_alone_is_told_with_the_option_that_helps(tmp_path, capsys):
    line = refused(capsys, *BEIR, "--unjudged", "left-out", "-o", tmp_path / "m.json")
    assert "0 irrelevant ones" in line
    assert "(--unjudged irrelevant)" in line


def test_a_server_that_is_away_leaves_the_old_file(tmp_path, capsys):
    path = tmp_path / "m.json"
    write_calibration(path, made())
    arguments = ("--target", "127.0.0.1:1", "--timeout", "1", "-o", path)
    assert "127.0.0.1:1" in refused(capsys, *BEIR, *arguments)
    assert read_calibration(path) == made()


def test_two_commands_do_not_write_the_same_scores(tmp_path, capsys):
    with folder_of(tmp_path / "m.scores"):
        line = refused(capsys, *BEIR, "--target", "127.0.0.1:1", "-o", tmp_path / "m.json")
    assert "is in use by another process" in line
    assert not (tmp_path / "m.json").exists()


def test_ctrl_c_while_the_server_is_silent_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.json"
    write_calibration(path, made())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "rerank_grpc", "calibrate", *BEIR, "--target", target]
        process = subprocess.Popen([*command, "-o", str(path)], env=environment(), stderr=subprocess.PIPE)
        connection, _ = silent.accept()  # it has asked, and gets no answer
        with connection, process:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in said
    assert read_calibration(path) == made()
    assert {each.name for each in tmp_path.iterdir()} == {"m.json", "m.scores"}
