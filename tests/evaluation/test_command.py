"""The command against a server and with a model of its own; ended half-way, and begun again."""

import fcntl
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from rerank_grpc import __version__
from rerank_grpc.cli import main
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.journal import ScoredQuery, ScoreJournal, folder_of, stem_of
from rerank_grpc.evaluation.scorers import PairScore
from tests.command import environment
from tests.evaluation.files import write_collection
from tests.support import CountingRunner, HeldRunner, serving, wait_for

QUERIES = {f"q{number:02}": f"number {number}" for number in range(12)}
CORPUS = {f"d{number:02}": f"the text of {number}" for number in range(12)}
QRELS = "".join(f"q{number:02} 0 d{number:02} 1\n" for number in range(12))
RUN = "".join(
    f"q{query:02} Q0 d{(query + place) % 12:02} {place} {9 - place} x\n"
    for query in range(12)
    for place in (0, 1, 2)
)
LINE = ScoredQuery("q1", [PairScore(0.5, 0.6)], 0.1, 0.2, 0.3)
BEGUN = {"collection": "c", "model": "m", "revision": "r", "precision": "fp32", "instruction": ""}


@pytest.fixture
def files(tmp_path):
    return write_collection(tmp_path, queries=QUERIES, corpus=CORPUS, qrels=QRELS, run=RUN)


def asked(server, files, output, *more):
    return ["eval", *files, "--target", f"127.0.0.1:{server.port}", "--output", str(output), *more]


def lines_of(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def has_lines(journal, count):
    return lines_of(journal) == count


def started(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "rerank_grpc", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(PYTHONPATH=os.getcwd()),
    )


def test_a_server_is_measured_with_several_calls_at_once(tmp_path, files, capsys):
    output = tmp_path / "out"
    with serving(runner=CountingRunner()) as server:
        assert main(asked(server, files, output, "--concurrency", "4", "--top-k", "1", "--top-k", "3")) == 0
        printed = capsys.readouterr()
        assert (
            "12 judged queries, 12 documents, 12 relevant; 36 candidates hold on average 100.0 %"
            in printed.out
        )
        assert "Recall@3    1.0000  1.0000" in printed.out
        assert "4 calls at once" in printed.out
        assert printed.err == ""  # no bar where stderr is no terminal
        names = {path.name for path in output.iterdir()} - {"_lock"}
        stem = next(name for name in names if name.endswith(".scores.jsonl")).removesuffix(".scores.jsonl")
        assert names == {
            *(
                f"{stem}.scores.jsonl",
                f"{stem}.trec",
                "before.trec",
                "qrels.txt",
                "results.json",
                "chart.png",
            ),
        }
        found = json.loads((output / "results.json").read_text())
        assert found["models"][0]["measures"]["Recall@1"]["before"]["mean"] == 1.0


def test_results_say_what_they_are_the_results_of(tmp_path, files, capsys):
    output = tmp_path / "out"
    with serving(runner=CountingRunner()) as server:
        assert main(asked(server, files, output, "--candidates", "2")) == 0
        text = (output / "results.json").read_text()
        found = json.loads(text)
        assert found["version"] == __version__
        assert (found["collection"]["depth"], found["collection"]["pairs"]) == (2, 24)
        assert found["options"]["candidates_from"] == "run"
        assert (found["options"]["candidates"], found["options"]["server"]) == (2, True)
        names = {
            "queries": "queries.jsonl",
            "corpus": "corpus.jsonl",
            "qrels": "qrels.txt",
            "run": "run.trec",
        }
        assert found["options"]["files"] == names
        assert str(tmp_path) not in text
        assert (found["intervals"]["seed"], found["intervals"]["resamples"]) == (0, 10_000)
        assert found["models"][0]["precision"] == "fp32"
        without_run = files[: files.index("--run")]
        assert main(asked(server, without_run, tmp_path / "other")) == 0
        found = json.loads((tmp_path / "other" / "results.json").read_text())
        assert (found["options"]["candidates_from"], found["options"]["candidates"]) == ("BM25", 100)


def test_bm25_shows_on_a_terminal_how_far_it_is(tmp_path, files):
    without_run = files[: files.index("--run")]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # one without a width has no bar
    with serving(runner=CountingRunner()) as server:
        command = [sys.executable, "-m", "rerank_grpc", *asked(server, without_run, tmp_path / "out")]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment(PYTHONPATH=os.getcwd())
        )
        os.close(theirs)
        said = b""
        with suppress(OSError):  # the terminal's other end is closed
            while part := os.read(ours, 65_536):
                said += part
        assert process.wait(60) == 0
    os.close(ours)
    assert "BM25" in said.decode()


def test_a_finished_output_is_not_scored_again(tmp_path, files, capsys):
    runner, output = CountingRunner(), tmp_path / "out"
    with serving(runner=runner) as server:
        assert main(asked(server, files, output)) == 0
        first, table = runner.sequences, capsys.readouterr().out
        assert main(asked(server, files, output)) == 0
        assert runner.sequences == first + 2  # the question which model it is, at the start and at the end
        assert capsys.readouterr().out == table


def test_a_command_that_is_interrupted_and_then_killed_goes_on(tmp_path, files, capsys):
    output, whole = tmp_path / "out", tmp_path / "whole"
    with serving(runner=CountingRunner()) as server:
        assert main(asked(server, files, whole)) == 0
    journal = output / next(path.name for path in whole.glob("*.scores.jsonl"))
    for number, status, lines in ((signal.SIGINT, 130, 4), (signal.SIGKILL, -9, 7)):
        runner = HeldRunner()
        with serving(runner=runner) as server:
            runner.let(1 + 3)  # the question which model it is, and three queries
            process = started(asked(server, files, output, "--concurrency", "1"))
            wait_for(partial(has_lines, journal, lines), 60)
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
            assert (process.returncode, said) == (status, "")
    with journal.open("ab") as file:
        file.write(b'{"query": "q11", "scor')  # a line in whose middle it was killed
    with serving(runner=CountingRunner()) as server:
        assert main(asked(server, files, output, "--concurrency", "1")) == 0
    capsys.readouterr()
    assert lines_of(journal) == 13
    for name in ("before.trec", "qrels.txt", journal.name.replace(".scores.jsonl", ".trec")):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_a_server_that_goes_away_half_way_ends_the_command_with_what_is_scored(tmp_path, files, capsys):
    class Leaving(CountingRunner):
        def run(self, sequences):
            if len(self.batches) == 5:
                threading.Thread(target=server.stop, args=(0,)).start()
            return super().run(sequences)

    with serving(runner=Leaving()) as server:
        status = main(asked(server, files, tmp_path / "out", "--concurrency", "1", "--timeout", "2"))
    said = capsys.readouterr().err
    assert status == 1
    assert said.count("\n") == 1
    assert "of 12 queries are scored; the same command goes on" in said


def test_a_model_that_the_server_does_not_have_is_told(tmp_path, files, capsys):
    with serving(runner=CountingRunner()) as server:
        assert main(asked(server, files, tmp_path / "out", "--model", "absent")) == 1
    assert "absent" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(tmp_path, files, capsys):
    assert main(["eval", *files, "--model", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path) in said


def test_models_that_are_loaded_here_are_measured(tmp_path, files, model, capsys):
    output = tmp_path / "out"
    models = ["--model", "embedded", "--model", str(model)]
    assert main(["eval", *files, *models, "--output", str(output), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"{model} - embedded  nDCG@10" in printed
    assert {path.name for path in output.glob("*.trec")} == {
        "before.trec",
        "embedded.trec",
        f"{stem_of(str(model))}.trec",
    }


def test_options_that_do_not_go_together_are_refused(tmp_path, files, capsys):
    for arguments, said in (
        ([], "--queries is missing"),
        (["--queries", "q.tsv"], "--corpus is missing"),
        (["--beir", str(tmp_path), "--corpus", "c"], "leave out --corpus"),
        ([*files, "--split", "dev"], "--split names judgements of --beir"),
        ([*files, "--candidates", "0"], "not a whole number above 0"),
        ([*files, "--top-k", "many"], "not a whole number above 0"),
    ):
        assert main(["eval", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err


def test_a_journal_begun_with_anything_else_is_refused(tmp_path):
    path = tmp_path / "m.scores.jsonl"
    ScoreJournal(path, BEGUN).close()
    for name, said in (
        ("collection", "was begun with another collection: other judged queries, candidates or texts"),
        ("revision", "was begun with revision 'r', and now it is 'other'"),
        ("instruction", "was begun with instruction '', and now it is 'other'"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            ScoreJournal(path, {**BEGUN, name: "other"})
    path.write_text("something of mine\n")
    with pytest.raises(ConfigurationError, match="was not written by this command"):
        ScoreJournal(path, BEGUN)
    assert path.read_text() == "something of mine\n"


def test_a_journal_drops_a_torn_line_and_keeps_what_is_whole(tmp_path):
    path = tmp_path / "m.scores.jsonl"
    journal = ScoreJournal(path, BEGUN)
    journal.append(LINE)
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        journal = ScoreJournal(path, BEGUN)
        assert journal.done == {}
        journal.append(LINE)
        journal.close()
        assert path.read_bytes() == whole


def test_a_disk_that_is_full_half_way_is_told_and_loses_nothing(tmp_path):
    path = tmp_path / "m.scores.jsonl"
    journal = ScoreJournal(path, BEGUN)
    journal.append(LINE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(
            ConfigurationError, match=r"m\.scores\.jsonl: .*; the same command goes on from there"
        ):
            journal.append(LINE._replace(query="q2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.close()
    again = ScoreJournal(path, BEGUN)
    assert again.done == {"q1": LINE}
    again.close()


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    with folder_of(tmp_path / "out"), pytest.raises(ConfigurationError, match="in use by another process"):
        folder_of(tmp_path / "out").__enter__()
    with folder_of(tmp_path / "out"):
        pass


def test_an_output_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match=r"--output: .*file"), folder_of(tmp_path / "file"):
        pass


def test_models_files_are_named_apart():
    assert stem_of("bge-reranker-base") == "bge-reranker-base"
    names = ["a/model", "b/model", "model", "../model", "", "..", "x" * 300, "模型"]
    stems = [stem_of(name) for name in names]
    assert len(set(stems)) == len(names)
    assert all(Path(stem).name == stem and len(stem) <= 100 for stem in stems)
