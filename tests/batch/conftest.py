"""A small model, and an input of rows."""

import pytest

from tests import random_models
from tests.batch.files import rerank, rows, write_lines

BLOCK = ("--block-pairs", "200", "--max-batch-tokens", "1024")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return random_models.bert(tmp_path_factory.mktemp("batch") / "bert")


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("input") / "in.jsonl", rows(400))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, source, model):
    """The output of an uninterrupted run, and its number of pairs."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    done = rerank(source, output, model, *BLOCK)
    assert done.returncode == 0, done.stderr
    return output
