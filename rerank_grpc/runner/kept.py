"""The prefixes of which a model has keys and values: kept while somebody holds them, within a bound."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from rerank_grpc.kernels.base import KeysValues
from rerank_grpc.kernels.causal import MAX_KEPT_TOKENS
from rerank_grpc.sequence import Prefix


class KeptPrefixes:
    """Keys and values by prefix; only the thread that runs the model reads and writes it.

    A request's prefix dies with the request, and what was computed of it goes
    at once. Past the bound, what was used least recently goes earlier, and is
    computed again if it is wanted again.
    """

    def __init__(self, max_tokens: int = MAX_KEPT_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._kept: WeakKeyDictionary[Prefix, KeysValues] = WeakKeyDictionary()

    @property
    def tokens(self) -> int:
        """How many tokens' keys and values are kept now."""
        return sum(kept.tokens for kept in list(self._kept.values()))

    def get(self, prefix: Prefix) -> KeysValues | None:
        """Returns what is kept of a prefix."""
        return self._kept.get(prefix)

    def keep(self, used: Mapping[Prefix, KeysValues]) -> None:
        """Takes what a pass has used and computed, and drops the oldest beyond the bound, but for one."""
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
        """Forgets everything, to make room."""
        self._kept.clear()
