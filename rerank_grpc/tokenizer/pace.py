"""Bounds how many threads tokenize at once, and stops an ended call between two blocks of its texts.

A tokenizer holds some hundred bytes for each token of the texts it was given,
so a large request is tokenized in blocks, and a block of another request may
come between two of them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf
from contextlib import contextmanager

# A block holds texts of this many characters together, or one longer text.
BLOCK_CHARACTERS = 1 << 18
# Fewer characters take about a millisecond, and are tokenized without a turn.
SMALL_CHARACTERS = 1 << 14
# The time between two checks by a thread that waits for its turn.
CHECK_SECONDS = 0.05


class Turns:
    """Lets a number of threads in at once, by default one per CPU, in the order of their arrival."""

    def __init__(self, count: int | None = None) -> None:
        self._free = count or _cpus()
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def one(self, check: Callable[[], None]) -> Iterator[None]:
        """Holds a turn while a `with` statement runs; raises the error of `check`, called during the wait."""
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


class Pace:
    """Divides one request's texts into blocks, each tokenized at its turn, until `check` raises."""

    def __init__(self, turns: Turns, check: Callable[[], None]) -> None:
        self._turns = turns
        self._check = check

    def blocks(self, texts: ListOf[str]) -> Iterator[tuple[int, ListOf[str]]]:
        """Yields (index of the first text, texts) of each block while its turn lasts; raises like `check`."""
        if sum(map(len, texts)) <= SMALL_CHARACTERS:
            return iter([(0, texts)])
        return self._in_turn(texts)

    def _in_turn(self, texts: ListOf[str]) -> Iterator[tuple[int, ListOf[str]]]:
        for start, end in _blocks(texts):
            with self._turns.one(self._check):
                yield start, texts[start:end]


def _blocks(texts: ListOf[str]) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each block."""
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and characters + len(text) > BLOCK_CHARACTERS:
            yield start, index
            start, characters = index, 0
        characters += len(text)
    yield start, len(texts)


def _cpus() -> int:
    """Counts the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


UNHURRIED = Pace(Turns(), lambda: None)
