"""The small real collection, and a small model of random weights that scores it."""

from dataclasses import replace
from pathlib import Path

import pytest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.evaluation.collection import CollectionFiles, read_collection
from rerank_grpc.evaluation.journal import ScoreJournal
from rerank_grpc.evaluation.scorers import loaded_scorer
from rerank_grpc.evaluation.scoring import score_all
from tests import random_models

FOLDER = Path(__file__).parent / "collection"
SETTINGS = replace(ServerSettings(), device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def collection():
    """All of the collection, with ten candidates of BM25's for each query."""
    found, problems = read_collection(CollectionFiles.of_beir(FOLDER), candidates=10)
    assert problems.count == 0
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return random_models.bert(tmp_path_factory.mktemp("evaluated") / "bert")


@pytest.fixture(scope="session")
def scored(tmp_path_factory, collection, model):
    """The scores of the random model, of every query."""
    with loaded_scorer(str(model), SETTINGS) as scorer:
        journal = ScoreJournal(tmp_path_factory.mktemp("scored") / "bert.scores.jsonl", {"model": "bert"})
        score_all(collection, scorer, journal)
        journal.close()
        return scorer.identity, journal.done
