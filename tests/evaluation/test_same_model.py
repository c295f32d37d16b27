"""Scores of one journal are one model's in one precision; judgements are no part of that."""

import json
import time
from dataclasses import replace

import pytest

from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.cli import main
from rerank_grpc.client import Client
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.collection import CollectionFiles, read_collection
from rerank_grpc.evaluation.journal import ScoreJournal
from rerank_grpc.evaluation.scorers import ServerScorer
from rerank_grpc.evaluation.scoring import score_all
from rerank_grpc.server.server import RerankServer
from tests.evaluation.files import CORPUS, QRELS, write_collection
from tests.support import CountingRunner, ScriptedLoader, serving


class PreciseLoader(ScriptedLoader):
    """Loads a model that costs nothing, in the precision that is set."""

    def __init__(self, precision, runner=None):
        super().__init__(runner)
        self.precision = precision

    def load(self, spec, on_death):
        loaded = super().load(spec, on_death)
        return replace(loaded, card=replace(loaded.card, precision=self.precision))


@pytest.fixture
def server_in():
    """Starts servers in a precision, and ends them."""
    begun = []

    def start(precision, runner=None):
        loader = PreciseLoader(precision, runner)
        server = RerankServer(replace(ServerSettings(), port=0, admin_port=0), loader=loader)
        begun.append(server)
        server.start()
        assert server.wait_until_loaded(60)
        return server, loader

    yield start
    for server in begun:
        server.stop(5)


def asked(command, server, files, *more):
    return [command, *files, "--target", f"127.0.0.1:{server.port}", *more]


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_scores_of_a_server_in_another_precision_are_refused(tmp_path, server_in, capsys, command):
    names = [f"{number:02}" for number in range(40)]
    files = write_collection(
        tmp_path,
        queries={f"q{name}": f"number {name}" for name in names},
        corpus={f"d{name}": f"the text of {name}" for name in names},
        qrels="".join(f"q{name} 0 d{name} 1\n" for name in names),
        run="".join(f"q{name} Q0 d{other} 1 1 x\n" for name in names for other in {name, "00", "01"}),
    )
    output = ["--output", str(tmp_path / ("out" if command == "eval" else "m.calibration.json"))]
    first, _ = server_in("fp32")
    assert main(asked(command, first, files, *output)) == 0
    capsys.readouterr()
    second, _ = server_in("int8")
    assert main(asked(command, second, files, *output)) == 1
    said = capsys.readouterr().err
    assert "was begun with precision 'fp32', and now it is 'int8'" in said
    assert main(asked(command, first, files, *output)) == 0


def test_scores_of_a_precision_that_changed_under_way_are_taken_back(tmp_path, server_in):
    write_collection(tmp_path)
    texts = tmp_path / "queries.jsonl", tmp_path / "corpus.jsonl", tmp_path / "qrels.txt"
    collection, _ = read_collection(CollectionFiles(*texts, tmp_path / "run.trec"))
    server, loader = server_in("fp32")

    def replaced():
        if loader.precision == "fp32":
            loader.precision = "int8"
            server.registry.unload("embedded", deadline=time.monotonic() + 60)

    with Client(f"127.0.0.1:{server.port}") as client:
        scorer = ServerScorer(client, concurrency=1)
        assert scorer.identity.precision == "fp32"
        path = tmp_path / "m.scores.jsonl"
        journal = ScoreJournal(path, {})
        with pytest.raises(
            ConfigurationError, match=r"was embedded test fp32, and now it is embedded test int8"
        ):
            score_all(collection, scorer, journal, replaced)
        journal.close()
    assert journal.done == {}
    assert path.read_bytes().count(b"\n") == 1


def test_a_server_whose_models_may_not_be_listed_is_measured(tmp_path, capsys):
    files = write_collection(tmp_path)
    content = b'[mine]\ntoken = "t0ken"\nrights = ["rerank"]\n'
    settings = replace(ServerSettings(), token_file=TokenFile.of(tmp_path / "tokens.toml", content))
    with serving(settings, runner=CountingRunner()) as server:
        output, mine = tmp_path / "out", tmp_path / "mine"
        mine.write_text("t0ken\n")
        token = "--token-file", str(mine)
        assert main(asked("eval", server, files, *token, "--output", str(output))) == 0
    (model,) = json.loads((output / "results.json").read_text())["models"]
    assert model["precision"] == ""


def test_another_judgement_changes_the_figures_and_scores_nothing_again(tmp_path, capsys):
    runner, output = CountingRunner(), ["--output", str(tmp_path / "out")]
    results = []
    with serving(runner=runner) as server:
        for qrels in (QRELS, f"{QRELS}q1 0 d3 1\n"):
            files = write_collection(tmp_path, qrels=qrels)
            assert main(asked("eval", server, files, *output)) == 0
            results.append(json.loads((tmp_path / "out" / "results.json").read_text()))
            pairs = runner.sequences
            runner.batches.clear()
        assert pairs == 2  # the question which model it is, at the start and at the end
        assert results[0]["collection"]["digest"] == results[1]["collection"]["digest"]
        judgements = {each["collection"]["judgements_digest"] for each in results}
        assert len(judgements) == 2
        changed = write_collection(tmp_path, corpus={**CORPUS, "d1": "Other."})
        assert main(asked("eval", server, changed, *output)) == 1
        assert "was begun with another collection: other judged queries" in capsys.readouterr().err


def test_a_wrong_name_among_several_is_told_before_any_is_scored(tmp_path, capsys):
    files, output = write_collection(tmp_path), tmp_path / "out"
    runner = CountingRunner()
    with serving(runner=runner) as server:
        models = ["--model", "embedded", "--model", "absent"]
        assert main(asked("eval", server, files, *models, "--output", str(output))) == 1
        assert runner.sequences == 1
    assert "absent" in capsys.readouterr().err
    wrong = str(tmp_path / "typo")
    assert main(["eval", *files, "--model", "embedded", "--model", wrong, "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert wrong in said
    assert not list(output.glob("*.scores.jsonl"))
