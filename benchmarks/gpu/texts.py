"""Calls whose pairs have an exact number of tokens, prompt and query included."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.decoder import rows_of
from benchmarks.workloads import Workload

QUERY_TOKENS = 12


class CountedTexts:
    """Texts of an exact number of tokens: to a byte-level tokenizer, words behind a space stand alone."""

    def __init__(self, tokenizer: Any) -> None:
        self._words = workloads.corpus_words()
        kinds = list(dict.fromkeys(self._words))
        rows = tokenizer([f" {word}" for word in kinds], add_special_tokens=False)["input_ids"]
        counts = {word: len(row) for word, row in zip(kinds, rows, strict=True)}
        self._ends = [0, *accumulate(counts[word] for word in self._words)]  # tokens before each word
        self._filler = next(word for word in kinds if counts[word] == 1 and word.isalpha())

    def text(self, chance: random.Random, tokens: int) -> str:
        """Words from a place of the corpus; one-token words fill up what the last one leaves."""
        start = chance.randrange(len(self._words) - tokens)
        wanted = self._ends[start] + tokens
        end = bisect_right(self._ends, wanted) - 1
        missing = wanted - self._ends[end]
        return " ".join(self._words[start:end] + [self._filler] * missing)


def counted_calls(path: Path, count: int, pairs: int, tokens: int) -> list[Workload]:
    """Calls of so many pairs of so many tokens, each with a query of its own; checks some of them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    made, chance = CountedTexts(tokenizer), random.Random(8)
    sample = Workload("sample", made.text(chance, QUERY_TOKENS), (made.text(chance, 20),))
    (row,) = rows_of(tokenizer, sample)
    room = tokens - (len(row) - 20)
    calls = []
    for _ in range(count):
        query = made.text(chance, QUERY_TOKENS)
        calls.append(Workload("load", query, tuple(made.text(chance, room) for _ in range(pairs))))
    lengths = {len(row) for call in calls[:20] for row in rows_of(tokenizer, call)}
    if lengths != {tokens}:
        raise SystemExit(f"pairs of {sorted(lengths)} tokens instead of {tokens}")
    return calls
