"""Decides which sequences go into the next batch, and which calls are let in.

The rules, in order:

1. A batch is a budget of tokens. A sequence larger than the budget goes alone.
2. Nothing is spent on calls that failed, were cancelled or are too late.
3. INTERACTIVE goes before BATCH, but BATCH, while it waits, earns an eighth of
   every batch.
4. Within a class the call that needs least goes first, so that few calls wait
   for long, and among equals the earliest deadline. A small call enters the next
   batch however large its neighbours are.
5. A quarter of every batch goes to the call that has received least, one
   sequence at a time: no call gets less than a quarter of an equal share. A new
   call starts at the average of the calls that wait.
6. Equal sequences, of one call or of several, are run once.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import NamedTuple, TypeAlias
from weakref import WeakSet

from rerank_grpc.engine.future import Future
from rerank_grpc.errors import DeadlineUnreachable, QueueFull
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, Sequence
from rerank_grpc.types import Priority

BACKGROUND_SHARE = 1 / 8  # of BATCH beside INTERACTIVE
EQUAL_SHARE = 1 / 4  # of the calls that have received least
# A call is refused if its forecast exceeds the time left by more than this factor: a forecast may be wrong
# by as much. Only batches correct it. An engine without work admits any call, so batches do run.
REFUSAL_FACTOR = 2.0
SHORTEST_RETRY_SECONDS = 0.1  # a shorter delay would invite hammering
UNKNOWN_SECONDS = 1.0  # the time that a full queue is taken to need where there is no forecast

Forecast: TypeAlias = Callable[[float], float]  # the seconds that tokens will take
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
class Queued:
    """A future in the queue; its pending items have not gone to the device."""

    future: Future
    items: list[Item]
    received_tokens: float  # those that went to the device, from the average at its arrival
    pending: deque[Item] = field(default_factory=deque)
    pending_tokens: int = 0


@dataclass(slots=True)
class Share:
    """A part of every batch, which is saved until the next sequence fits it."""

    part: float
    saved_tokens: float = 0.0

    def earn(self, budget: int) -> int:
        """Adds the part of one more batch; returns the tokens that may be spent, at most a batch."""
        self.saved_tokens = min(budget, self.saved_tokens + budget * self.part)
        return int(self.saved_tokens)


class Scheduler:
    """The queue of one engine, under whose lock each method is called; times and forecast are arguments."""

    def __init__(self, *, max_batch_tokens: int, max_queue_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self.queued_tokens = 0
        self.running_tokens = 0
        self._items: dict[Sequence, Item] = {}
        # Prefixes that are counted; the runner's keys and values of a prefix live as long as the object, too.
        self._prefixes: WeakSet[Prefix] = WeakSet()
        self._queued: dict[Future, Queued] = {}  # in the order of arrival
        self._background = Share(BACKGROUND_SHARE)
        self._equal = {priority: Share(EQUAL_SHARE) for priority in Priority}
        # The tokens that a future of each class has received if it waited from the beginning.
        self._average = dict.fromkeys(Priority, 0.0)

    def check_queue(self, tokens: int, forecast: Forecast | None = None) -> None:
        """Raises QueueFull; an empty queue takes any size, else one larger than itself were never served."""
        excess = self.queued_tokens + tokens - self.max_queue_tokens
        if self.queued_tokens and excess > 0:
            seconds = forecast(min(excess, self.queued_tokens)) if forecast else UNKNOWN_SECONDS
            sizes = {"queue_tokens": self.queued_tokens, "queue_capacity_tokens": self.max_queue_tokens}
            raise QueueFull(
                "the queue is full: retry later, or call another replica",
                metadata={name: str(tokens) for name, tokens in sizes.items()},
                retry_after=max(SHORTEST_RETRY_SECONDS, seconds),
            )

    def add(self, future: Future, now: float, forecast: Forecast | None = None) -> None:
        """Lets a future in; raises QueueFull, or DeadlineUnreachable by a forecast."""
        items, fresh, prefixes = self._items_of(future)
        tokens = sum([item.tokens for item in fresh.values()])
        self.check_queue(tokens, forecast)
        if forecast and future.deadline != math.inf and (self.queued_tokens or self.running_tokens):
            self._check_deadline(future, items, now, forecast)
        self._items.update(fresh)
        self._prefixes.update(prefixes)
        self.queued_tokens += tokens
        future.admitted_at = now
        self._queued[future] = queued = Queued(future, items, self._average[future.priority])
        for index, item in enumerate(items):
            waiters = item.waiters
            if waiters:
                future.shared += 1
            if item.started:
                future.started_at = now
            elif not waiters or waiters[-1][0] is not future:
                queued.pending.append(item)
                queued.pending_tokens += item.tokens
            waiters.append((future, index))

    def _items_of(self, future: Future) -> tuple[list[Item], dict[Sequence, Item], set[Prefix]]:
        """One item for each sequence, the new items, and their new prefixes, counted to the first of them."""
        items, fresh, prefixes, known = list[Item](), dict[Sequence, Item](), set[Prefix](), self._items
        for sequence in future.sequences:
            item = known.get(sequence) or fresh.get(sequence)
            if item is None:
                item = fresh[sequence] = Item(sequence, len(sequence.ids) // TOKEN_BYTES)
                prefix = sequence.prefix
                while prefix is not None and prefix not in prefixes and prefix not in self._prefixes:
                    prefixes.add(prefix)
                    item.tokens += len(prefix)
                    prefix = prefix.before
            items.append(item)
        return items, fresh, prefixes

    def _check_deadline(self, future: Future, items: list[Item], now: float, forecast: Forecast) -> None:
        remaining = future.deadline - now
        waiting = {item for item in items if not item.started}
        tokens = sum([item.tokens for item in waiting])
        ahead = self._pending_beside(waiting, future.priority)
        before = self._tokens_before(tokens, future.priority, ahead)
        needed = forecast(self.running_tokens) + forecast(before + tokens)
        if needed <= REFUSAL_FACTOR * remaining:
            return
        backlog = self.running_tokens + sum(pending for _, pending in ahead)
        # The part of the backlog beside which the call is admitted need not drain.
        wait = forecast(backlog) - max(0.0, REFUSAL_FACTOR * remaining - forecast(tokens))
        raise DeadlineUnreachable(
            "the deadline cannot be met at the present load: retry later, or allow more time",
            metadata={"needed_seconds": f"{needed:.3f}", "remaining_seconds": f"{remaining:.3f}"},
            retry_after=max(SHORTEST_RETRY_SECONDS, wait),
        )

    def _pending_beside(self, waiting: set[Item], priority: Priority) -> list[tuple[Priority, int]]:
        """The class and the pending tokens of each call not below a class, without the items it shares."""
        shared = Counter[Future]()
        for item in waiting:
            for future in {waiter[0] for waiter in item.waiters}:
                shared[future] += item.tokens
        return [
            (future.priority, queued.pending_tokens - shared[future])
            for future, queued in self._queued.items()
            if future.priority <= priority
        ]

    @staticmethod
    def _tokens_before(tokens: int, priority: Priority, ahead: list[tuple[Priority, int]]) -> float:
        """Predicts the tokens that run before a new call of `tokens` is done, if no other comes."""
        first = sum(pending for _, pending in ahead)
        mine = [pending for of, pending in ahead if of == priority]
        larger = deque(sorted(each for each in mine if each > tokens))
        first -= sum(larger)
        # Larger calls have their quarter meanwhile: those that need less before long go first, too.
        while larger and larger[0] - first * EQUAL_SHARE / len(larger) <= tokens:
            first += larger.popleft()
        return first + min(sum(larger), (first + tokens) * EQUAL_SHARE / (1 - EQUAL_SHARE))

    def discard(self, future: Future) -> None:
        """Forgets a future and frees its tokens; items that other futures wait for stay."""
        queued = self._queued.pop(future, None)
        if queued is None:
            return
        for item in dict.fromkeys(queued.items):  # each once: equal sequences of the future share theirs
            if not item.waiters:
                continue
            item.waiters = [waiter for waiter in item.waiters if waiter[0] is not future]
            if not item.waiters and not item.started:
                del self._items[item.sequence]
                self.queued_tokens -= item.tokens

    def oldest(self) -> float | None:
        """Tells when the oldest future was let in of which something waits; None without one."""
        waiting = (each.future for each in self._queued.values() if each.pending and not each.future.done)
        return next((future.admitted_at for future in waiting), None)

    def clear(self) -> list[Future]:
        """Forgets all futures, and returns them in the order of arrival."""
        futures = list(self._queued)
        for future in futures:
            self.discard(future)
        return futures

    def expire(self, now: float) -> list[Future]:
        """Forgets the futures that are done, and those that are late, which it returns."""
        late = []
        for future in list(self._queued):
            if future.done:
                self.discard(future)
            elif future.deadline <= now:
                self.discard(future)
                late.append(future)
        return late

    def next_batch(self, now: float) -> Batch | None:
        """Takes the next batch off the queue; None if nothing waits."""
        waiting = [queued for queued in self._queued.values() if queued.pending]
        if not waiting:
            return None
        if self.queued_tokens <= self.max_batch_tokens:
            self._background.saved_tokens = 0.0
            return self._start(_take_all(waiting), now)
        waiting.sort(key=lambda queued: queued.future.deadline)  # stable: then by arrival
        interactive = [queued for queued in waiting if queued.future.priority is Priority.INTERACTIVE]
        background = [queued for queued in waiting if queued.future.priority is Priority.BATCH]
        batch, shared = _Filling(self.max_batch_tokens), 0
        if interactive and background:
            shared = self._fill_share(batch, self._background, background, beside=interactive)
        taken = self._fill(batch, interactive, Priority.INTERACTIVE)
        if not any(queued.pending for queued in interactive):
            shared += self._fill(batch, background, Priority.BATCH)
        self._average[Priority.INTERACTIVE] += taken / max(1, len(interactive))
        self._average[Priority.BATCH] += shared / max(1, len(background))
        if not background:
            self._background.saved_tokens = 0.0
        return self._start(batch.items, now)

    def _fill(self, batch: _Filling, waiting: list[Queued], priority: Priority) -> int:
        """Fills a batch with the sequences of one class; returns the tokens taken."""
        waiting = [queued for queued in waiting if queued.pending]
        if not waiting:
            return 0
        shortest_first = sorted(waiting, key=attrgetter("pending_tokens"))
        taken = self._fill_share(batch, self._equal[priority], waiting, beside=shortest_first[:1])
        return taken + batch.fill(shortest_first)

    def _fill_share(
        self, batch: _Filling, share: Share, waiting: list[Queued], *, beside: list[Queued]
    ) -> int:
        """Gives a share to the futures that have received least; returns the tokens taken."""
        limit = share.earn(self.max_batch_tokens)
        # A sequence too large to go `beside` the share goes first, until that is a batch.
        rest = batch.free_tokens - limit
        if rest > 0 and any(queued.pending[0].tokens > rest for queued in beside):
            return 0
        taken = batch.fill_equally(waiting, limit)
        share.saved_tokens -= taken
        return taken

    def _start(self, items: list[Item], now: float) -> Batch | None:
        tokens = 0
        for item in items:
            tokens += item.tokens
            for future, _ in item.waiters:
                if not future.started_at:
                    future.started_at = now
        self.queued_tokens -= tokens
        self.running_tokens += tokens
        return Batch(items, tokens) if items else None

    def halves(self, batch: Batch) -> list[Batch]:
        """Splits a batch that failed, without the items that no future waits for any more."""
        wanted = []
        for item in batch.items:
            if any(not future.done for future, _ in item.waiters):
                wanted.append(item)
            else:  # a later future runs it again: it cannot join a batch that has ended
                self.finish(Batch([item], item.tokens))
        middle = len(wanted) // 2
        halves = [half for half in (wanted[:middle], wanted[middle:]) if half]
        return [Batch(half, sum(item.tokens for item in half)) for half in halves]

    def finish(self, batch: Batch) -> list[list[Waiter]]:
        """Forgets items that have run, and returns the waiters of each."""
        self.running_tokens -= batch.tokens
        finished = []
        for item in batch.items:
            del self._items[item.sequence]
            finished.append(item.waiters)
            item.waiters = []
        return finished


def _take_all(waiting: Iterable[Queued]) -> list[Item]:
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


class _Filling:
    """A batch being filled: the tokens that are free, and the items taken."""

    def __init__(self, free_tokens: int) -> None:
        self.free_tokens = free_tokens
        self.items: list[Item] = []

    def fill(self, waiting: list[Queued]) -> int:
        """Takes what fits of one future after the other; returns the tokens."""
        before = self.free_tokens
        for queued in waiting:
            while self.free_tokens > 0 and self._take(queued, floor=0):
                pass
        return before - self.free_tokens

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
