"""Rows of a weight are read where it has them, and never behind its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.bodies.model import Files


def test_the_rows_of_answers_end_with_the_weight(directories: dict[str, Path]) -> None:
    directory, name = directories["bert"], "bert.embeddings.word_embeddings.weight"
    expected = load_file(directory / "model.safetensors")[name]
    rows, columns = expected.shape
    files = Files(open_checkpoint(str(directory), directory))
    found = files.rows(name, (rows, columns), (rows - 1, 0))
    torch.testing.assert_close(found, expected[[rows - 1, 0]], rtol=0, atol=0)
    with pytest.raises(ModelLoadError, match=rf"token {rows}, but the weights know {rows} tokens"):
        files.rows(name, (rows, columns), (0, rows))
