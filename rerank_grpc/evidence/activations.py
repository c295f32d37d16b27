"""The activation behind a cross-encoder's logit, by the file that states it first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.modules import SETTINGS, SavedModel

KNOWN = ("identity", "sigmoid", "tanh")


def name_of(checkpoint: Checkpoint, saved: SavedModel) -> str:
    """Returns one of KNOWN, "sigmoid" where no file states one; raises ModelLoadError for another."""
    for file, value in _stated(checkpoint, saved):
        if value is None:
            continue
        name = str(value).rpartition(".")[2].lower()
        if not str(value).startswith("torch.nn.") or name not in KNOWN:
            raise ModelLoadError(
                f"{checkpoint.directory}/{file}: the activation {str(value)[:80]!r} is not supported: "
                f"this version knows torch's Identity, Sigmoid and Tanh"
            )
        return name
    return "sigmoid"


def _stated(checkpoint: Checkpoint, saved: SavedModel) -> Iterator[tuple[str, Any]]:
    """Yields what the files state, in the order of sentence-transformers."""
    if saved.has_modules:
        yield SETTINGS, saved.settings.get("activation_fn")
    own = checkpoint.config.get("sentence_transformers")
    yield "config.json", own.get("activation_fn") if isinstance(own, dict) else None
    yield "config.json", checkpoint.config.get("sbert_ce_default_activation_function")
