"""Models of late interaction give the rows of sentence-transformers' MultiVectorEncoder, and its MaxSim."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.late import LateEncoder
from rerank_grpc.runner.runner import CpuRunner
from rerank_grpc.sequence import Sequence, TokenizedRequest
from rerank_grpc.tokenizer.tokenizer import tokenizer_for
from rerank_grpc.types import Document, RerankRequest
from tests import late_models
from tests import random_models as checkpoints
from tests.conftest import load
from tests.support import token_ids

BOUND = 1e-4
QUERIES = ["What does a list hold?", "list", "", " ".join(["How are, dictionaries ordered"] * 12)]
FORMS: dict[str, Callable[[Path], Path]] = {
    "stanford": late_models.stanford,
    "stanford, attended": lambda path: late_models.stanford(path, attend_to_mask_tokens=True),
    "pylate": late_models.pylate,
    "pylate, two layers": lambda path: late_models.pylate(path, dense=2, attend_to_expansion_tokens=True),
    "pylate, not expanded": lambda path: late_models.pylate(path, do_query_expansion=False),
    "pylate, first releases": lambda path: late_models.pylate(path, model_type=None),
    "pylate, modernbert": lambda path: late_models.pylate(path, "modernbert"),
    "pylate, beyond the window": lambda path: late_models.pylate(path, "modernbert", query_length=64),
    "pylate, llama": lambda path: late_models.pylate(path, "llama", attend_to_expansion_tokens=True),
    "native": late_models.native,
    "native, modernbert": lambda path: late_models.native(path, "modernbert"),
    "native, unattended": lambda path: late_models.native(
        path, query_expansion={"strategy": "min", "length": 14, "attend": False, "token": "[SEP]"}
    ),
}


class Ours:
    """A model of late interaction as the loader makes one, with its tokenizer and its runner."""

    def __init__(self, directory: Path) -> None:
        model = load(directory)
        assert isinstance(model, LateEncoder)
        self.model = model
        self.tokenizer = tokenizer_for(model.card)
        self.runner = CpuRunner(model)

    def tokenize(self, query: str, documents: list[str]) -> TokenizedRequest:
        return self.tokenizer.tokenize(RerankRequest(query, [Document(text) for text in documents]))

    def run(self, *sequences: Sequence) -> list[npt.NDArray[np.float32]]:
        """The matrices of a batch."""
        found = self.runner.launch(sequences)()
        assert all(isinstance(each, np.ndarray) for each in found)
        return [np.asarray(each) for each in found]


def documents() -> list[str]:
    """From nothing and punctuation alone to more than fits."""
    joined = " ".join(checkpoints.texts()[100:140])
    return [
        "",
        ".,!?;",
        "list",
        joined[:90],
        joined[200:290] + " the end.",
        joined[:900],
        "[MASK] [Q] <mask>",
    ]


@pytest.fixture(scope="module", params=FORMS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FORMS[request.param](tmp_path_factory.mktemp("late") / "model")


@pytest.fixture(scope="module")
def ours(directory: Path) -> Ours:
    return Ours(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(directory), device="cpu")


def plain(text: str) -> bool:
    """Whether a text has no control tokens, which sentence-transformers would read as such."""
    return "[MASK]" not in text


def test_rows_and_sums_of_maxima_equal_those_of_the_reference(ours: Ours, theirs: Any) -> None:
    texts = [text for text in documents() if plain(text)]
    expected = theirs.encode_document(texts)
    for query in QUERIES:
        (wanted,) = theirs.encode_query([query])
        request = ours.tokenize(query, texts)
        assert request.query is not None
        matrices = ours.run(*request.sequences)
        rows = matrices[request.query]
        assert rows.shape == tuple(wanted.shape), query
        np.testing.assert_allclose(rows, wanted.numpy(), rtol=0, atol=BOUND)
        sums = theirs.similarity([wanted], expected)[0]
        for index, document in enumerate(request.documents):
            own = matrices[document.chunks[0].sequence]
            assert own.shape == tuple(expected[index].shape), texts[index]
            np.testing.assert_allclose(own, expected[index].numpy(), rtol=0, atol=BOUND)
            assert (rows @ own.T).max(axis=1).sum() == pytest.approx(float(sums[index]), abs=10 * BOUND)


def test_tokens_equal_those_of_the_reference(ours: Ours, theirs: Any) -> None:
    for query in QUERIES:
        (features,) = theirs.encode_query([query], output_value=None)
        (sequence, *_) = ours.tokenize(query, ["a"]).sequences
        assert token_ids(sequence) == features["input_ids"].tolist()


def test_a_text_alone_and_in_a_batch_has_the_same_rows(ours: Ours) -> None:
    requests = [ours.tokenize(query, documents()) for query in QUERIES]
    sequences = [sequence for request in requests for sequence in request.sequences]
    together = ours.run(*sequences)
    assert len(together) == len(sequences)
    for sequence, found in zip(sequences, together, strict=True):
        np.testing.assert_allclose(found, ours.run(sequence)[0], rtol=0, atol=1e-5)


def test_a_row_that_is_not_finite_spoils_its_own_text_only(ours: Ours) -> None:
    sequences = ours.tokenize("list", ["one", "two"]).sequences
    project = ours.model.project

    def spoiled(rows: torch.Tensor) -> torch.Tensor:
        made = project(rows).clone()
        made[len(sequences[0])] = torch.nan
        return made

    ours.model.project = spoiled
    try:
        found = ours.runner.launch(sequences)()
    finally:
        ours.model.project = project
    assert [each is None for each in found] == [False, True, False]


def test_a_decoder_whose_filling_is_not_attended_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"llama is a decoder, and fills queries up"):
        load(late_models.pylate(tmp_path, "llama"))
    path = tmp_path / "config.json"
    borrowed = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}  # which no own body computes
    path.write_text(json.dumps(json.loads(path.read_text()) | borrowed))
    with pytest.raises(ModelLoadError, match=r"llama is a decoder, and fills queries up"):
        load(tmp_path)


def test_a_padded_encoder_whose_filling_is_not_attended_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"deberta-v2 runs padded, and fills queries up"):
        load(late_models.pylate(tmp_path, "deberta"))


def test_outputs_keep_nothing_of_the_batch_alive(ours: Ours) -> None:
    for matrix in ours.run(*ours.tokenize("list", ["one", "two"]).sequences):
        assert matrix.base is None
        assert matrix.dtype == np.float32
