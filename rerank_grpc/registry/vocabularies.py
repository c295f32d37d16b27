"""Cuts a large vocabulary down to its first tokens: it is read at once, and all steps around it stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

# A vocabulary up to this size is read in 0.1 s.
SMALL = 40_000
KEPT = 4_000
# The letters of byte-level vocabularies, which may be ordered by frequency: without one of them, a text has
# unknown tokens, which it never has in the whole vocabulary.
ALPHABET = frozenset(ByteLevel.alphabet())
# What decides on a tokenizer's class and its settings; without vocabularies in other formats.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


@contextmanager
def small_vocabulary(tokenizer_file: Path, data: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a tokenizer.json whose vocabulary is small, with the files beside it; the file itself if so.

    `data` is the file's content.
    """
    if len(data["model"]["vocab"]) <= SMALL:
        yield tokenizer_file
        return
    with TemporaryDirectory() as folder:
        for path in (*map(tokenizer_file.with_name, BESIDE), *tokenizer_file.parent.glob("*.jinja")):
            if path.is_file():
                shutil.copy(path, folder)
        written = Path(folder) / "tokenizer.json"
        written.write_text(json.dumps(cut_down(data), ensure_ascii=False), "utf-8")
        yield written


def cut_down(data: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the first KEPT tokens of a tokenizer.json's vocabulary and all that is needed, with new ids."""
    added = {token["content"] for token in data["added_tokens"]}
    model, ids = _cut_model(data["model"], added | ALPHABET)
    for token in data["added_tokens"]:
        ids.setdefault(token["content"], len(ids))
    tokens = [{**token, "id": ids[token["content"]]} for token in data["added_tokens"]]
    tokens.sort(key=lambda token: int(token["id"]))
    processor = _renumbered(data.get("post_processor"), ids)
    return {**data, "model": model, "added_tokens": tokens, "post_processor": processor}


def _cut_model(model: Mapping[str, Any], needed: Set[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Keeps the first KEPT tokens of a model, its unknown token and those needed; returns their ids too."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram's, in which an id is a place
        unknown = model.get("unk_id")
        kept = [
            at for at, (piece, _) in enumerate(vocabulary) if at < KEPT or at == unknown or piece in needed
        ]
        cut = {**model, "vocab": [vocabulary[at] for at in kept]}
        if unknown is not None:
            cut["unk_id"] = kept.index(unknown)
        return cut, {vocabulary[at][0]: number for number, at in enumerate(kept)}
    listed = enumerate(sorted(vocabulary, key=vocabulary.__getitem__))
    unknown = model.get("unk_token")
    tokens = (token for at, token in listed if at < KEPT or token == unknown or token in needed)
    ids = {token: number for number, token in enumerate(tokens)}
    cut = {**model, "vocab": dict(ids)}
    if "merges" in model:
        cut["merges"] = [merge for merge in model["merges"] if ids.keys() >= set(_parts(merge))]
    return cut, ids


def _parts(merge: str | list[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def _renumbered(step: Any, ids: Mapping[str, int]) -> Any:
    """Gives a post-processor the new ids of its tokens, in any of its forms."""
    if isinstance(step, list):
        if len(step) == 2 and isinstance(step[0], str) and isinstance(step[1], int):
            return [step[0], ids.get(step[0], step[1])]
        return [_renumbered(each, ids) for each in step]
    if not isinstance(step, dict):
        return step
    if {"id", "ids", "tokens"} <= step.keys():
        return {**step, "ids": [ids[token] for token in step["tokens"]]}
    return {key: _renumbered(value, ids) for key, value in step.items()}
