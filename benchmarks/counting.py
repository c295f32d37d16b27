"""The tokens of a workload as a checkpoint reads it, counted by the tokenizers library alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import QWEN3_NAME, Shape
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Counted:
    """The lengths of all sequences, in tokens, and that of the prefix which they share."""

    lengths: list[int]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths) + self.prefix


def count(shape: Shape, path: Path, workload: Workload) -> Counted:
    """Counts what one pass over the workload has to read at the least."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    if shape.reads == "prompt":
        return _prompted(tokenizer, workload)
    most = min(workload.max_tokens, shape.positions)
    if shape.reads == "texts":
        tokenizer.enable_truncation(most)
        texts = [workload.query, *dict.fromkeys(workload.documents)]
        return Counted([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])
    tokenizer.enable_truncation(most, strategy="only_second")
    return Counted([len(encoding.ids) for encoding in tokenizer.encode_batch(workload.pairs)])


def _prompted(tokenizer: Any, workload: Workload) -> Counted:
    """Counts documents with what stands after them; all before them is the prefix."""
    before, after = prompt_around(workload.query)

    def size(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return Counted([size(text) + size(after) for text in workload.documents], size(before))


def prompt_around(query: str) -> tuple[str, str]:
    """What a Qwen3-Reranker is asked, up to the document and from its end on."""
    from rerank_grpc.checkpoints.catalogue import builtin

    known = builtin().find(QWEN3_NAME)
    if known is None:
        raise SystemExit(f"the catalogue has no {QWEN3_NAME}")
    text = "".join(known.prompt["segments"])
    before, _, after = text.partition("{document}")
    return before.format(instruction=known.prompt["instruction"], query=query), after


def texts_of(workload: Workload) -> str:
    """All that makes the workload what it is, as one text."""
    return json.dumps([workload.query, workload.documents, workload.max_tokens])
