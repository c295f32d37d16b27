"""The keys and values of prefixes: kept while a request refers to them, up to a token limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

from rerank_grpc.kernels.base import KeysValues
from rerank_grpc.sequence import Prefix, Sequence

# The most tokens whose keys and values a model keeps, over all requests: 0.9 GiB for
# Qwen3-Reranker-0.6B in bf16, and the prompts and queries of some 90 calls.
MAX_KEPT_TOKENS = 8_192


class Prefixes(NamedTuple):
    """The prefixes of one batch, each after the one which it continues; a pass computes the missing ones."""

    used: dict[Prefix, KeysValues]
    missing: list[Prefix]


class PrefixCache:
    """Keys and values by prefix; only the thread that runs the model reads and writes it.

    A prefix dies with its request, and its keys and values go at once. Past the
    limit the least recently used go earlier, and a later batch computes them again.
    """

    def __init__(self, max_tokens: int = MAX_KEPT_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._kept: WeakKeyDictionary[Prefix, KeysValues] = WeakKeyDictionary()

    @property
    def tokens(self) -> int:
        """The number of tokens whose keys and values are kept now."""
        return sum(kept.tokens for kept in list(self._kept.values()))

    def take(self, sequences: Iterable[Sequence]) -> Prefixes:
        """Finds the prefixes of a batch, and makes room for those that are missing."""
        prefixes = Prefixes({}, [])
        for sequence in sequences:
            prefix = sequence.prefix
            if prefix is not None and prefix not in prefixes.used:
                self._find(prefix, prefixes)
        return prefixes

    def _find(self, prefix: Prefix, prefixes: Prefixes) -> KeysValues:
        found = prefixes.used.get(prefix) or self._kept.get(prefix)
        if found is None:
            before = 0 if prefix.before is None else self._find(prefix.before, prefixes).tokens
            found = KeysValues(before + len(prefix))
            prefixes.missing.append(prefix)
        prefixes.used[prefix] = found
        return found

    def keep(self, used: Mapping[Prefix, KeysValues]) -> None:
        """Keeps the prefixes of a pass, and past the limit drops the oldest; the newest one always stays."""
        for prefix, computed in used.items():
            self._kept.pop(prefix, None)
            self._kept[prefix] = computed
        tokens = self.tokens
        for prefix in list(self._kept)[:-1]:
            if tokens <= self._max_tokens:
                return
            dropped = self._kept.pop(prefix, None)
            tokens -= dropped.tokens if dropped else 0

    def clear(self) -> None:
        """Forgets everything, to free memory."""
        self._kept.clear()
