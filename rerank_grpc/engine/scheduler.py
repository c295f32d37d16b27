"""Decides which sequences go into the next batch, and which calls are let in.

The rules, in order:

1. A batch is a budget of tokens. A sequence larger than the budget goes alone.
2. Nothing is spent on calls that failed, were cancelled or are too late.
3. INTERACTIVE goes before BATCH, but BATCH, while it waits, earns an eighth of
   every batch.
4. Within a class callers have equal shares, whatever the number of their calls;
   what one cannot use goes to the others. The caller that needs least goes first
   until it is four batches ahead of its part; every fourth batch is shared
   equally at once (sharing.py).
5. Of one caller's calls that goes first which needs least, so that few calls wait
   for long, and among equals the earliest deadline. A small call enters the next
   batch however large its neighbours are.
6. A quarter of what a caller has goes to its call that has received least, one
   sequence at a time: no call gets less than a quarter of an equal share. A new
   call starts at the average of the calls that wait (filling.py).
7. Equal sequences, of one call or of several, are run once.
"""

from __future__ import annotations

import math
from collections import Counter
from operator import attrgetter
from weakref import WeakSet

from rerank_grpc.callers import ANYONE, Caller
from rerank_grpc.engine.filling import (
    EQUAL_SHARE,
    Batch,
    Filling,
    Item,
    Queued,
    Share,
    Standing,
    Waiter,
    take_all,
)
from rerank_grpc.engine.forecast import Forecast, Pending, tokens_before
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.sharing import EQUAL_TURNS, Contender, contenders_of, fill, fill_background, settle
from rerank_grpc.errors import DeadlineUnreachable, QueueFull
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, Sequence
from rerank_grpc.types import Priority

BACKGROUND_SHARE = 1 / 8  # of BATCH beside INTERACTIVE
# A call is refused if its forecast exceeds the time left by more than this factor: a forecast may be wrong
# by as much. Only batches correct it. An engine without work admits any call, so batches do run.
REFUSAL_FACTOR = 2.0
SHORTEST_RETRY_SECONDS = 0.1  # a shorter delay would invite hammering
UNKNOWN_SECONDS = 1.0  # the time that a full queue is taken to need where there is no forecast
# Of a full queue: the part beyond it that callers may fill who have less than an equal part of it.
RESERVE = 1 / 8
MOST_STANDINGS = 1_024  # beyond them those are forgotten of whom nothing waits


class Scheduler:
    """The queue of one engine, under whose lock each method is called; times and forecast are arguments."""

    def __init__(
        self, *, max_batch_tokens: int, max_queue_tokens: int, equal_share: float = EQUAL_SHARE
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self.queued_tokens = 0
        self.running_tokens = 0
        self._items: dict[Sequence, Item] = {}
        # Prefixes that are counted; the runner's keys and values of a prefix live as long as the object, too.
        self._prefixes: WeakSet[Prefix] = WeakSet()
        self._queued: dict[Future, Queued] = {}  # in the order of arrival
        self._background = Share(BACKGROUND_SHARE)
        self._equal_share = equal_share
        self._standings: dict[tuple[str, Priority], Standing] = {}
        self._turn = 0  # of the batches that callers share

    def check_queue(self, tokens: int, forecast: Forecast | None = None, caller: Caller = ANYONE) -> None:
        """Raises QueueFull; an empty queue takes any size, else one larger than itself were never served."""
        most, queued = self.max_queue_tokens, self.queued_tokens
        full = queued and queued + tokens > most
        if not full and caller.queue_share >= 1:
            return
        waiting = self._waiting_tokens()
        own = waiting.pop(caller.name, 0)
        if caller.queue_share < 1 and own and own + tokens > (share := caller.queue_share * most):
            excess = min(own + tokens - share, own)
            # Until then those who need less have theirs, and each other one as much.
            beside = sum([each if each <= own else excess for each in waiting.values()])
            what = f"{caller.name} has its share of the queue full"
            raise self._full(what, own, share, excess + beside, forecast)
        # Whoever has less than an equal part waiting finds room beside those that have filled the queue.
        fits = (
            waiting and own + tokens <= most / (len(waiting) + 1) and queued + tokens <= most * (1 + RESERVE)
        )
        if full and not fits:
            raise self._full("the queue is full", queued, most, min(queued + tokens - most, queued), forecast)

    def _waiting_tokens(self) -> Counter[str]:
        """The tokens that wait of each caller who has some, those that callers share counted for each."""
        found = Counter[str]()
        for each in self._queued.values():
            found[each.standing.name] += each.pending_tokens
        return +found

    @staticmethod
    def _full(what: str, queued: int, most: float, excess: float, forecast: Forecast | None) -> QueueFull:
        sizes = {"queue_tokens": queued, "queue_capacity_tokens": int(most)}
        return QueueFull(
            f"{what}: retry later, or call another replica",
            metadata={name: str(tokens) for name, tokens in sizes.items()},
            retry_after=max(SHORTEST_RETRY_SECONDS, forecast(excess) if forecast else UNKNOWN_SECONDS),
        )

    def add(self, future: Future, now: float, forecast: Forecast | None = None) -> None:
        """Lets a future in; raises QueueFull, or DeadlineUnreachable by a forecast."""
        items, fresh, prefixes = self._items_of(future)
        tokens = sum([item.tokens for item in fresh.values()])
        self.check_queue(tokens, forecast, future.caller)
        key = future.caller.name, future.priority
        standing = self._standings.get(key) or self._new_standing(*key)
        if forecast and future.deadline != math.inf and (self.queued_tokens or self.running_tokens):
            self._check_deadline(future, standing, items, now, forecast)
        self._items.update(fresh)
        self._prefixes.update(prefixes)
        self.queued_tokens += tokens
        future.admitted_at = now
        self._queued[future] = queued = Queued(future, items, standing, standing.average_tokens)
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

    def _new_standing(self, name: str, priority: Priority) -> Standing:
        """Begins to count what a caller's calls of a class receive."""
        if len(self._standings) >= MOST_STANDINGS:
            waiting = {each.standing for each in self._queued.values()}
            self._standings = {key: each for key, each in self._standings.items() if each in waiting}
        found = self._standings[name, priority] = Standing(name, priority, Share(self._equal_share))
        return found

    def _check_deadline(
        self, future: Future, standing: Standing, items: list[Item], now: float, forecast: Forecast
    ) -> None:
        remaining = future.deadline - now
        waiting = {item for item in items if not item.started}
        tokens = sum([item.tokens for item in waiting])
        ahead = self._pending_beside(waiting, future.priority)
        before = tokens_before(tokens, standing, ahead, self.max_batch_tokens)
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

    def _pending_beside(self, waiting: set[Item], priority: Priority) -> list[Pending]:
        """The pending tokens of each call not below a class, without the items it shares."""
        shared = Counter[Future]()
        for item in waiting:
            for future in {waiter[0] for waiter in item.waiters}:
                shared[future] += item.tokens
        return [
            Pending(queued.standing, queued.pending_tokens - shared[future])
            for future, queued in self._queued.items()
            if future.priority <= priority
        ]

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
            for standing in self._standings.values():  # nobody lacks anything
                standing.credit_tokens = 0.0
            return self._start(take_all(waiting), now)
        waiting.sort(key=attrgetter("future.deadline"))  # stable: then by arrival
        contenders = contenders_of(waiting)
        interactive, background = contenders[Priority.INTERACTIVE], contenders[Priority.BATCH]
        batch = Filling(self.max_batch_tokens)
        if not background:
            self._background.saved_tokens = 0.0
        elif interactive:
            self._fill_background(batch, background, interactive)
        self._turn = (self._turn + 1) % EQUAL_TURNS
        if interactive:
            fill(batch, interactive, equally=self._turn == 0)
        if background and not any(each.waits for each in interactive):
            fill(batch, background, equally=self._turn == 0)
        for priority, found in contenders.items():
            if found:
                settle(found, [each for each in self._standings.values() if each.priority is priority])
        return self._start(batch.items, now)

    def _fill_background(
        self, batch: Filling, background: list[Contender], interactive: list[Contender]
    ) -> None:
        """Gives BATCH its share, unless the next sequence of INTERACTIVE had no room then."""
        beside = [queued for each in interactive for queued in each.calls]
        limit = batch.earn(self._background, batch.budget, beside=beside)
        if limit is not None:
            fill_background(batch, self._background, background, limit)

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
