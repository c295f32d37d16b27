"""Models of late interaction give the rows of sentence-transformers' MultiVectorEncoder, and its MaxSim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.evidence.facts import Chain, Evidence
from rerank_grpc.evidence.late import read_late
from rerank_grpc.evidence.modules import read_saved_model
from rerank_grpc.kernels import operations_for
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Operations
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.bert import BertBody
from rerank_grpc.models.hooked import HOOK, HookedBody
from rerank_grpc.models.late import LateEncoder, ids_of
from rerank_grpc.models.weights import read_network
from rerank_grpc.runner.runner import CpuRunner
from rerank_grpc.sequence import Sequence, TokenizedRequest
from rerank_grpc.tokenizer.tokenizer import Tokenizer, tokenizer_for
from rerank_grpc.types import Document, RerankRequest
from tests import late_models
from tests import random_models as checkpoints
from tests.support import token_ids

BOUND = 1e-4
CPU = torch.device("cpu")
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
    "native": late_models.native,
    "native, modernbert": lambda path: late_models.native(path, "modernbert"),
    "native, unattended": lambda path: late_models.native(
        path, query_expansion={"strategy": "min", "length": 14, "attend": False, "token": "[SEP]"}
    ),
}


class Ours:
    """A model of late interaction as the loader makes one, with its tokenizer and its runner."""

    def __init__(self, directory: Path, operations: Operations | None = None) -> None:
        checkpoint = open_checkpoint(str(directory), directory)
        evidence = read_late(checkpoint, read_saved_model(directory))
        assert evidence.late is not None
        facts: dict[str, Any] = {
            "source": str(directory),
            "revision": checkpoint.revision,
            "family": evidence.family,
            "kind": evidence.kind,
            "scoring": evidence.scoring,
            "max_tokens": min(evidence.max_tokens or checkpoints.MAX_TOKENS, checkpoints.MAX_TOKENS),
            "device": "cpu",
            "precision": "fp32",
            "attention": Attention.SDPA,
            "tokenizer_file": checkpoint.tokenizer_file,
            "pooling": evidence.pooling,
            "reading": evidence.reading,
            "late": evidence.late,
            "skipped_ids": ids_of(evidence.late.skipped, checkpoint.tokenizer_file),
        }
        card = ModelCard(**facts)
        network = read_network(transformers.AutoModel, checkpoint, attention=HOOK, **_options(evidence))
        if evidence.family == "bert":
            parameters = dict(network.named_parameters())
            computed = operations or operations_for(CPU, card.precision, card.attention)
            body: Any = BertBody(network.config, parameters.__getitem__, "", computed, first_only=False)
        else:
            body = HookedBody(network, card.attention)
        assert isinstance(evidence.head, Chain)
        self.evidence = evidence
        self.model = LateEncoder(card, body, chain_of(evidence.head))
        self.tokenizer: Tokenizer = tokenizer_for(card)
        self.runner = CpuRunner(self.model)

    def tokenize(self, query: str, documents: list[str]) -> TokenizedRequest:
        return self.tokenizer.tokenize(RerankRequest(query, [Document(text) for text in documents]))

    def run(self, *sequences: Sequence) -> list[npt.NDArray[np.float32]]:
        """The matrices of a batch."""
        found = self.runner.launch(sequences)()
        assert all(isinstance(each, np.ndarray) for each in found)
        return [np.asarray(each) for each in found]


def _options(evidence: Evidence) -> dict[str, Any]:
    return {"add_pooling_layer": False} if evidence.family == "bert" else {}


def chain_of(head: Chain) -> nn.Module:
    """The modules over the rows, by torch's own."""
    steps: list[nn.Module] = []
    for module in head.modules:
        if module.type == "Normalize":
            steps.append(_Unit())
            continue
        weight = load_file(module.directory / "model.safetensors")["linear.weight"]
        steps.append(_Linear(weight, residual=bool(module.config.get("use_residual"))))
    return nn.Sequential(*steps)


class _Unit(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(rows)


class _Linear(nn.Module):
    def __init__(self, weight: torch.Tensor, *, residual: bool) -> None:
        super().__init__()
        self._weight, self._residual = weight, residual

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made = rows @ self._weight.T
        return made + rows if self._residual else made


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


def test_outputs_keep_nothing_of_the_batch_alive(ours: Ours) -> None:
    for matrix in ours.run(*ours.tokenize("list", ["one", "two"]).sequences):
        assert matrix.base is None
        assert matrix.dtype == np.float32
