"""The rows that a pooling module reads, by its config.json in any of its forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Module

# Sentence-transformers' names, old and new, and ours.
NAMES = {
    "cls": "first",
    "cls_token": "first",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
}


def pooling_of(module: Module) -> str:
    """Returns "first", "mean", "max" or "last"; raises ModelLoadError for another pooling, or several."""
    where, config = module.directory / "config.json", module.config
    if not config:
        raise ModelLoadError(f"{where}: no such file, or an empty one: copy the whole checkpoint")
    chosen = _chosen(config)
    if len(chosen) != 1 or chosen[0] not in NAMES:
        raise ModelLoadError(f"{where}: pools by {', '.join(chosen) or 'nothing'}, which is not supported")
    if config.get("include_prompt", True) is False:
        raise ModelLoadError(f"{where}: leaves prompts out of the pooling, which is not supported")
    return NAMES[chosen[0]]


def _chosen(config: Mapping[str, Any]) -> list[str]:
    """Lists the poolings that a config.json chooses, in its old or new form."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return [str(each)[:40] for each in (mode if isinstance(mode, list) else [mode])]
    return [
        name.removeprefix("pooling_mode_")
        for name, value in config.items()
        if value is True and name.startswith("pooling_mode_")
    ]
