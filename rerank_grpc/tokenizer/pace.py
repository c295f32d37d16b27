"""Bounds how many threads tokenize at once, and stops an ended call between two blocks of its texts.

A tokenizer holds some hundred bytes for each token of its texts, so a large
request is tokenized in blocks, between which those of others may come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rerank_grpc.config.allowance import processors

# A block holds texts of this many characters together, or one longer text.
BLOCK_CHARACTERS = 1 << 18
# Fewer characters take about a millisecond, and are tokenized without a turn.
SMALL_CHARACTERS = 1 << 14
# The time between two checks by a thread that waits for its turn.
CHECK_SECONDS = 0.05


class Turns:
    """Lets a number of threads in at once, by default one per CPU, in the order of their arrival."""

    def __init__(self, count: int | None = None) -> None:
        self._free = count or processors().threads
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def one(self, check: Callable[[], None]) -> Iterator[None]:
        """Holds a turn while a `with` statement runs; raises like `check`, called during the wait."""
        mine = self._join()
        try:
            while mine is not None and not mine.acquire(timeout=CHECK_SECONDS):
                check()
            check()
            yield
        finally:
            self._leave(mine)

    def _join(self) -> threading.Lock | None:
        """Takes a free turn, or returns a lock that is released when the turn has come."""
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
            return mine

    def _leave(self, mine: threading.Lock | None) -> None:
        """Hands a turn to the next thread, or leaves the queue without having had one."""
        with self._lock:
            if mine is not None and mine in self._waiting:
                self._waiting.remove(mine)
            elif self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


@dataclass(frozen=True, slots=True)
class Pace:
    """Divides one request's texts into blocks, each tokenized at its turn, until `check` raises."""

    turns: Turns
    check: Callable[[], None]

    def blocks(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yields each block while its turn lasts; raises like `check`."""
        return iter([texts]) if sum(map(len, texts)) <= SMALL_CHARACTERS else self._in_turn(texts)

    def _in_turn(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        for block in _blocks(texts):
            with self.turns.one(self.check):
                yield block


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and characters + len(text) > BLOCK_CHARACTERS:
            yield texts[start:index]
            start, characters = index, 0
        characters += len(text)
    yield texts[start:]


UNHURRIED = Pace(Turns(), lambda: None)
