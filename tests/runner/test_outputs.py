"""Matrices of late interaction come off a device as off the CPU, by kernels and by captured passes too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_grpc.kernels import cuda as operations
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.cuda import TorchOperations
from rerank_grpc.models import hooked
from rerank_grpc.models.bodies import model as bodies
from rerank_grpc.runner import graphs
from rerank_grpc.runner.cuda import CudaRunner
from rerank_grpc.runner.graphs import capture_all, shape_for
from rerank_grpc.runner.packing import pack, tensors
from rerank_grpc.runner.prefixes import Prefixes
from rerank_grpc.sequence import Sequence
from tests import late_models
from tests.kernels.test_attention import part_by_part
from tests.models.test_late import QUERIES, Ours, documents
from tests.runner.test_cuda import FakeDevice

WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": late_models.pylate,
    "modernbert": lambda path: late_models.pylate(path, "modernbert"),
    "modernbert, beyond the window": lambda path: late_models.pylate(path, "modernbert", query_length=64),
}


@pytest.fixture
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Ours]:
    """Makes a model whose attention is one call, which aligns windows to the last key."""
    for module in (hooked, operations):
        monkeypatch.setattr(module, "kernel_for", lambda _: part_by_part)
    made = TorchOperations(torch.device("cpu"), torch.float32, Attention.VARLEN)

    def make(directory: Path) -> Ours:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bodies, "operations_for", lambda *_: made)
            return Ours(directory)

    return make


@pytest.mark.parametrize("form", WRITERS)
def test_a_kernel_gives_the_rows_of_the_cpu(
    form: str, tmp_path: Path, with_kernel: Callable[[Path], Ours]
) -> None:
    directory = WRITERS[form](tmp_path)
    ours = with_kernel(directory)
    sequences = [each for query in QUERIES for each in ours.tokenize(query, documents()).sequences]
    assert any(sequence.unseen for sequence in sequences)
    found = CudaRunner(ours.model, FakeDevice(eager_copies=True), {}).launch(tuple(sequences))()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooked, "kernel_for", lambda _: None)
        expected = Ours(directory).run(*sequences)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=1e-4)


def test_captured_passes_give_the_rows_of_documents_and_queries_run_uncaptured(
    tmp_path: Path, with_kernel: Callable[[Path], Ours], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_CAPTURED", 128)
    ours = with_kernel(late_models.pylate(tmp_path))
    model, device = ours.model, FakeDevice()
    model.card = replace(model.card, capturable=True)
    query, *texts = ours.tokenize("list", documents()[1:6]).sequences
    assert query.unseen
    assert shape_for((query, *texts)) is None
    expected = ours.run(query, *texts)
    captured = capture_all(model, device)
    assert shape_for(tuple(texts)) in captured
    lengths: list[int] = []
    forward = model.forward

    def counting(packed: Any) -> torch.Tensor:
        lengths.append(len(packed.layout.lengths))
        return forward(packed)

    monkeypatch.setattr(model, "forward", counting)
    runner = CudaRunner(model, device, captured)
    found = [*runner.launch((query,))(), *runner.launch(tuple(texts))()]
    assert lengths == [1, 0], "the documents were replayed"
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=1e-4)


def test_documents_lose_the_rows_of_skipped_tokens_and_queries_none(tmp_path: Path) -> None:
    ours = Ours(late_models.pylate(tmp_path))
    comma = min(ours.model.card.skipped_ids)
    text = Sequence.of([2, comma, 500, comma, 3])
    as_query, as_document = ours.run(Sequence(text.ids, is_query=True), text)
    assert (len(as_query), len(as_document)) == (5, 3)
    np.testing.assert_allclose(as_document, as_query[[0, 2, 4]], rtol=0, atol=1e-5)


def test_keys_are_laid_out_where_tokens_are_unseen_and_nowhere_else() -> None:
    texts = [Sequence.of(ids) for ids in ([3, 4, 5, 9, 9], [1, 2], [6, 9])]
    batch = [Sequence(text.ids, unseen=unseen) for text, unseen in zip(texts, (2, 0, 1), strict=True)]
    packed = pack(batch, Prefixes({}, []))
    layout = tensors(packed, torch.from_numpy(packed.ints)).layout
    assert layout.keys is not None
    assert layout.key_rows is not None
    assert layout.key_rows.tolist() == [0, 1, 2, 5, 6, 7]
    assert layout.keys.starts.tolist() == [0, 3, 5, 6]
    assert (layout.keys.lengths, layout.lengths) == ((3, 2, 1), (5, 2, 2))
    packed = pack(texts, Prefixes({}, []))
    assert tensors(packed, torch.from_numpy(packed.ints)).layout.keys is None
