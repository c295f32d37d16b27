"""Scores checkpoints with sentence-transformers, in a process of its own: `… OUTPUT CLASS=DIRECTORY …`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.models.kinds.probes import Case, cases


def score(oracle: str, path: str) -> dict[str, Any]:
    """Scores all cases: {"activation": its name, "cases": [{"logits", "scores", "fits"} …]}."""
    return SCORERS[oracle](path)


def _cross_encoder(path: str) -> dict[str, Any]:
    from sentence_transformers import CrossEncoder

    model: Any = CrossEncoder(path, device="cpu", local_files_only=True)
    found = [_answer(model, case) for case in cases(instructed=True)]
    return {"activation": type(model.activation_fn).__name__, "cases": found}


def _answer(model: Any, case: Case) -> dict[str, list[Any]]:
    """Scores one request, and says which of its pairs fit."""
    prompt = case.instruction or None
    logits = model.predict(
        case.pairs, prompt=prompt, activation_fn=torch.nn.Identity(), convert_to_tensor=True
    )
    resolved = model._resolve_prompt(prompt, None)
    return {
        "logits": logits.tolist(),
        "scores": model.activation_fn(logits).tolist(),
        "fits": [length <= model.max_seq_length for length in _lengths(model, case, resolved)],
    }


def _lengths(model: Any, case: Case, prompt: str | None) -> list[int]:
    """Counts the tokens of pairs of which nothing is cut."""
    whole = {"text": {"truncation": False}}
    features = model.preprocess(case.pairs, prompt=prompt, processing_kwargs=whole)
    lengths: list[int] = features["attention_mask"].sum(1).tolist()
    return lengths


def _multi_vector(path: str) -> dict[str, Any]:
    from sentence_transformers import MultiVectorEncoder

    model: Any = MultiVectorEncoder(path, device="cpu", local_files_only=True)
    return {"activation": "MaxSim", "cases": [_late(model, case) for case in cases(instructed=False)]}


def _late(model: Any, case: Case) -> dict[str, list[Any]]:
    """Sums, for each document, the maxima of its rows; a score is the mean, mapped to [0, 1]."""
    query = model.encode_query([case.query])[0]
    rows = model.encode_document(list(case.documents))
    logits = [float((query @ own.T).amax(1).sum()) if len(own) else 0.0 for own in rows]
    return {
        "logits": logits,
        "scores": [(1 + logit / len(query)) / 2 for logit in logits],
        "fits": [True] * len(logits),
    }


def _sentence_transformer(path: str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(path, device="cpu", local_files_only=True)
    return {"activation": "Cosine", "cases": [_vectors(model, case) for case in cases(instructed=False)]}


def _vectors(model: Any, case: Case) -> dict[str, list[Any]]:
    query = model.encode_query([case.query], convert_to_tensor=True)
    rows = model.encode_document(list(case.documents), convert_to_tensor=True)
    logits = torch.nn.functional.cosine_similarity(query, rows).tolist()
    return {
        "logits": logits,
        "scores": [(1 + logit) / 2 for logit in logits],
        "fits": [True] * len(logits),
    }


SCORERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "cross-encoder": _cross_encoder,
    "multi-vector": _multi_vector,
    "sentence-transformer": _sentence_transformer,
}


def answers(wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Scores each CLASS=DIRECTORY; a checkpoint that cannot be scored has an "error" in place of cases."""
    for each in wanted:
        oracle, _, path = each.partition("=")
        try:
            found = score(oracle, path)
        except Exception as error:  # of one checkpoint; the others are scored all the same
            found = {"error": f"{type(error).__name__}: {error}"}
        yield Path(path).name, found


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps(dict(answers(sys.argv[2:]))))
