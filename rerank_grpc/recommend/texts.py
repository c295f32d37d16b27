"""TextPool of a stated number of tokens, for any tokenizer: pieces of Python's own manual."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

from rerank_grpc.files.manual import manual

QUERY = "how does a program wait for a result that another one computes"
SAMPLED, ROUNDS = 8, 3  # documents whose tokens are counted, and corrections of their words


class TextPool(NamedTuple):
    """Documents of about the same length, of which each call gets others."""

    documents: tuple[str, ...]

    def take(self, call: int, count: int) -> list[str]:
        """Returns the documents of one call; the calls after it get those that follow."""
        start = call * count
        return [self.documents[(start + place) % len(self.documents)] for place in range(count)]


@functools.cache
def paragraphs() -> tuple[str, ...]:
    """The paragraphs of Python's manual; where it is not installed, those of the catalogue."""
    found = (" ".join(part.split()) for text in manual() for part in text.split("\n\n"))
    return tuple(part for part in found if len(part) > 40)


def make_texts(tokens: int, count: int, count_tokens: Callable[[str], int]) -> TextPool:
    """Makes documents of about so many tokens, as `count_tokens` counts those of a text.

    Where a model cuts texts before that, they have about as many as it reads.
    """
    words = [word for part in paragraphs() for word in part.split()]

    def documents(length: int, number: int) -> tuple[str, ...]:
        chance = random.Random(0)
        starts = (chance.randrange(max(1, len(words) - length)) for _ in range(number))
        return tuple(" ".join(words[start : start + length]) for start in starts)

    length = max(1, tokens // 2)
    for _ in range(ROUNDS):
        found = sum(map(count_tokens, documents(length, SAMPLED))) / SAMPLED
        length = max(1, min(round(length * tokens / max(1, found)), tokens))
    return TextPool(documents(length, count))
