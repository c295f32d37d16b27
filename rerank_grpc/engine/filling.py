"""A batch being filled: which sequences of one caller's calls go into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from rerank_grpc.engine.future import Future
from rerank_grpc.sequence import Sequence
from rerank_grpc.types import Priority

EQUAL_SHARE = 1 / 4  # of the calls that have received least, in what their caller has

Waiter: TypeAlias = tuple[Future, int]  # a future that waits for a sequence, and the sequence's index there


@dataclass(slots=True, eq=False)
class Item:
    """A sequence to be run once, and the futures that wait for it."""

    sequence: Sequence
    tokens: int  # with those of its prefix if it is the first to bring that
    waiters: list[Waiter] = field(default_factory=list)
    started: bool = False


class Batch(NamedTuple):
    """Items that go to the device together, and the sum of their tokens."""

    items: list[Item]
    tokens: int


@dataclass(slots=True)
class Share:
    """A part of every batch, which is saved until the next sequence fits it."""

    part: float
    saved_tokens: float = 0.0

    def earn(self, tokens: int, budget: int) -> int:
        """Adds the part of so many tokens; returns those that may be spent, at most a batch."""
        self.saved_tokens = min(budget, self.saved_tokens + tokens * self.part)
        return int(self.saved_tokens)


@dataclass(slots=True, eq=False)
class Standing:
    """The tokens that one caller's calls of one class have received, against its part and each other."""

    name: str
    priority: Priority
    equal: Share
    average_tokens: float = 0.0  # that a call has received which waited from the beginning
    credit_tokens: float = 0.0  # see sharing.py


@dataclass(slots=True)
class Queued:
    """A future in the queue; its pending items have not gone to the device."""

    future: Future
    items: list[Item]
    standing: Standing
    received_tokens: float  # those that went to the device, from the average at its arrival
    pending: deque[Item] = field(default_factory=deque)
    pending_tokens: int = 0


class Filling:
    """A batch being filled: the tokens that are free of its budget, and the items taken."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.free_tokens = budget
        self.items: list[Item] = []

    def fill_by_need(self, waiting: Iterable[Queued], share: Share, limit: int) -> int:
        """Takes of one caller's calls until `limit` is reached or passed; returns the tokens.

        A share of them goes to the calls that have received least, the others to those that need least.
        """
        waiting = [queued for queued in waiting if queued.pending]
        if not waiting:
            return 0
        before, floor = self.free_tokens, self.free_tokens - limit
        shortest_first = sorted(waiting, key=attrgetter("pending_tokens"))
        allowed = self.earn(share, min(limit, self.budget), beside=shortest_first[:1])
        if allowed is not None:
            share.saved_tokens -= self.fill_equally(waiting, allowed)
        for queued in shortest_first:
            while self.free_tokens > max(0, floor) and self._take(queued, floor=0):
                pass
        return before - self.free_tokens

    def earn(self, share: Share, tokens: int, *, beside: Iterable[Queued]) -> int | None:
        """Adds to a share its part of so many tokens; returns the tokens of this batch that it may have.

        A sequence too large to go `beside` the share goes first, until that is a batch: None.
        """
        limit = share.earn(tokens, self.budget)
        rest = self.free_tokens - limit
        if rest > 0 and any(queued.pending[0].tokens > rest for queued in beside):
            return None
        return limit

    def fill_equally(self, waiting: list[Queued], limit: int) -> int:
        """Takes sequences of the future that has received least, the first among equals; returns the tokens.

        Takes at most `limit` tokens, and nothing past the first sequence that does not fit: else small
        sequences would for ever spend the tokens that a larger one waits for.
        """
        before = self.free_tokens
        floor = max(0, self.free_tokens - limit)
        least = [(queued.received_tokens, index) for index, queued in enumerate(waiting)]
        heapify(least)
        while least:
            _, index = heappop(least)
            queued = waiting[index]
            taken = self._take(queued, floor)
            if taken and queued.pending:
                heappush(least, (queued.received_tokens, index))
            elif queued.pending:
                break
        return before - self.free_tokens

    def _take(self, queued: Queued, floor: int) -> int:
        """Takes the next sequence of a future if it fits; returns its tokens."""
        while queued.pending:
            item = queued.pending[0]
            alone = not self.items and floor == 0
            if not (item.started or alone or self.free_tokens - item.tokens >= floor):
                break
            queued.pending.popleft()
            queued.pending_tokens -= item.tokens
            if not item.started:
                item.started = True
                self.items.append(item)
                self.free_tokens -= item.tokens
                queued.received_tokens += item.tokens
                return item.tokens
        return 0


def take_all(waiting: Iterable[Queued]) -> list[Item]:
    """Takes all items, which needs no rules where all of them fit."""
    items = []
    for queued in waiting:
        for item in queued.pending:
            if not item.started:
                item.started = True
                items.append(item)
        queued.pending.clear()
        queued.pending_tokens = 0
    return items
