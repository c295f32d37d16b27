"""Decides which sequences go into the next batch, and which calls are let in.

Pure: it knows no model, thread or clock. Times are passed in, and a forecast of
what tokens will take, so every decision can be tested by calling it.

The rules, in order:

1. A batch is a budget of tokens. A sequence larger than the budget goes alone.
2. Nothing is spent on requests that failed, were cancelled or are too late.
3. INTERACTIVE goes before BATCH, but BATCH, while it waits, earns an eighth of
   every batch.
4. Within a class the request that has had least goes first, one sequence at a
   time, and among equals the earliest deadline. Who comes is taken to have had
   what the others had on average. So a small request enters the next batch
   however large its neighbours are, and all get equal shares.
5. Equal sequences, of one request or of several, are run once.

A forecast may be wrong, and only batches correct it. So where nothing waits or
runs, a call is let in whatever the forecast says; and elsewhere it is refused
only if half of what is forecast exceeds its time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TypeAlias
from weakref import WeakSet

from rerank_grpc.engine.future import Future
from rerank_grpc.errors import DeadlineUnreachable, QueueFull
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, Sequence
from rerank_grpc.types import Priority

BATCH_SHARE = 1 / 8
# A forecast that exceeds the time left by less than this factor refuses nobody: it may be wrong by as much.
TOLERANCE = 2.0
# A shorter delay would invite hammering.
SHORTEST_RETRY_SECONDS = 0.1
# What waits is taken to need this long where there is no forecast.
UNKNOWN_SECONDS = 1.0

# The seconds that so many tokens will take.
Forecast: TypeAlias = Callable[[float], float]

# A request that waits for a sequence, and the sequence's index there.
Waiter: TypeAlias = tuple[Future, int]


class Item:
    """A sequence to be run once, and everybody who waits for it.

    Attributes:
        sequence: what to run.
        tokens: how many it has, with those of its prefix if it is the first to bring that.
        waiters: (request, index into its sequences) of all who asked for it.
        started: whether it has gone to the device.
    """

    __slots__ = ("sequence", "started", "tokens", "waiters")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.tokens = len(sequence.ids) // TOKEN_BYTES
        self.waiters: list[Waiter] = []
        self.started = False


def tokens_of(items: Iterable[Item]) -> int:
    """Adds up the tokens of items."""
    return sum([item.tokens for item in items])


@dataclass(slots=True)
class Queued:
    """A request in the queue, and what of it has not gone to the device.

    `served` is how many tokens it has had, counted from what others had when it came.
    """

    request: Future
    arrival: int
    items: list[Item]
    pending: deque[Item]
    pending_tokens: int = field(default=0)
    served: float = field(default=0.0)

    @property
    def urgency(self) -> tuple[float, int]:
        """Sorts the earliest deadline first, then the earliest arrival."""
        return self.request.deadline, self.arrival


class Scheduler:
    """The queue of one engine; every method is called under the engine's lock."""

    def __init__(self, *, max_batch_tokens: int, max_queue_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self.queued_tokens = 0
        self.running_tokens = 0
        self._items: dict[Sequence, Item] = {}
        # Counted already; what the runner keeps of a prefix lives as long as the object, too.
        self._prefixes: WeakSet[Prefix] = WeakSet()
        self._entries: dict[Future, Queued] = {}
        self._arrivals = 0
        self._batch_credit = 0.0
        # What a request of each class has had that waited from the beginning: where newcomers start.
        self._average = dict.fromkeys(Priority, 0.0)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def requests(self) -> list[Future]:
        """All requests that are not finished, in the order of arrival."""
        return list(self._entries)

    def check_room(self, tokens: int, forecast: Forecast | None = None) -> None:
        """Raises QueueFull if so many more tokens do not fit.

        An empty queue takes a request of any size, else one larger than the
        queue could never be served.
        """
        excess = self.queued_tokens + tokens - self.max_queue_tokens
        if self.queued_tokens and excess > 0:
            seconds = forecast(min(excess, self.queued_tokens)) if forecast else UNKNOWN_SECONDS
            raise QueueFull(
                "the queue is full: retry later, or call another replica",
                metadata={
                    "queue_tokens": str(self.queued_tokens),
                    "queue_capacity_tokens": str(self.max_queue_tokens),
                },
                retry_after=max(SHORTEST_RETRY_SECONDS, seconds),
            )

    def add(self, request: Future, now: float, forecast: Forecast | None = None) -> None:
        """Lets a request in.

        Raises QueueFull, or DeadlineUnreachable if by the forecast its deadline
        cannot be met by far; without one, nothing is known.
        """
        items, fresh = self._items_of(request)
        prefixes = self._bring_prefixes(fresh.values())
        tokens = tokens_of(fresh.values())
        self.check_room(tokens, forecast)
        if forecast and request.deadline != math.inf and (self.queued_tokens or self.running_tokens):
            self._check_deadline(request, tokens, now, forecast)
        self._items.update(fresh)
        self._prefixes.update(prefixes)
        pending = deque[Item]()
        for index, item in enumerate(items):
            waiters = item.waiters
            if waiters:
                request.joined += 1
            if item.started:
                request.started_at = now
            elif not waiters or waiters[-1][0] is not request:
                pending.append(item)
            waiters.append((request, index))
        self._arrivals += 1
        self.queued_tokens += tokens
        request.admitted_at = now
        self._entries[request] = Queued(
            request, self._arrivals, items, pending, tokens_of(pending), self._average[request.priority]
        )

    def _items_of(self, request: Future) -> tuple[list[Item], dict[Sequence, Item]]:
        """One item for each of a request's sequences, and those among them that are new."""
        fresh, known = dict[Sequence, Item](), self._items
        items = [
            known.get(sequence) or fresh.setdefault(sequence, Item(sequence))
            for sequence in request.sequences
        ]
        return items, fresh

    def _bring_prefixes(self, items: Iterable[Item]) -> set[Prefix]:
        """Counts each prefix to the first item that has it, and returns those not counted before."""
        brought: set[Prefix] = set()
        for item in items:
            prefix = item.sequence.prefix
            while prefix is not None and prefix not in brought and prefix not in self._prefixes:
                brought.add(prefix)
                item.tokens += len(prefix)
                prefix = prefix.before
        return brought

    def _check_deadline(self, request: Future, tokens: int, now: float, forecast: Forecast) -> None:
        remaining = request.deadline - now
        needed = forecast(self.running_tokens) + forecast(self._work_before(request, tokens) + tokens)
        if needed <= TOLERANCE * remaining:
            return
        backlog = self.running_tokens + sum(
            entry.pending_tokens
            for entry in self._entries.values()
            if entry.request.priority <= request.priority
        )
        # The part of the backlog beside which the call is admitted need not drain.
        wait = forecast(backlog) - max(0.0, TOLERANCE * remaining - forecast(tokens))
        raise DeadlineUnreachable(
            "the deadline cannot be met at the present load: retry later, or allow more time",
            metadata={"needed_seconds": f"{needed:.3f}", "remaining_seconds": f"{remaining:.3f}"},
            retry_after=max(SHORTEST_RETRY_SECONDS, wait),
        )

    def _work_before(self, request: Future, tokens: int) -> int:
        """Estimates the tokens that wait now and run before a new request of so many is finished.

        Those of its class are served in equal shares: by the time it has had
        `tokens`, so has each of the others, unless it needed less.
        """
        work = 0
        for entry in self._entries.values():
            if entry.request.priority == request.priority:
                work += min(entry.pending_tokens, tokens)
            elif entry.request.priority < request.priority:
                work += entry.pending_tokens
        return work

    def discard(self, request: Future) -> None:
        """Forgets a request and frees its room; work that others wait for too stays."""
        entry = self._entries.pop(request, None)
        if entry is None:
            return
        for item in dict.fromkeys(entry.items):  # each once: equal sequences of the request share theirs
            if not item.waiters:
                continue
            item.waiters = [waiter for waiter in item.waiters if waiter[0] is not request]
            if not item.waiters and not item.started:
                del self._items[item.sequence]
                self.queued_tokens -= item.tokens

    def drop_finished(self) -> None:
        """Forgets the requests that are done: answered, failed or cancelled."""
        for request in [request for request in self._entries if request.done]:
            self.discard(request)

    def expire(self, now: float) -> list[Future]:
        """Forgets the requests whose deadline passed before they were done, and returns them."""
        late = [request for request in self._entries if request.late(now)]
        for request in late:
            self.discard(request)
        return late

    def next_batch(self, now: float) -> list[Item]:
        """Takes the next batch off the queue; empty if nothing waits."""
        waiting = [entry for entry in self._entries.values() if entry.pending]
        if not waiting:
            return []
        if sum([entry.pending_tokens for entry in waiting]) <= self.max_batch_tokens:
            self._batch_credit = 0.0
            return self._start(_take_all(waiting), now)
        waiting.sort(key=lambda entry: entry.urgency)
        interactive = [entry for entry in waiting if entry.request.priority is Priority.INTERACTIVE]
        background = [entry for entry in waiting if entry.request.priority is Priority.BATCH]
        batch = _Filling(self.max_batch_tokens)
        shared = self._fill_background(batch, interactive, background) if interactive and background else 0
        taken = batch.fill(interactive)
        if not any(entry.pending for entry in interactive):
            shared += batch.fill(background)
        self._average[Priority.INTERACTIVE] += taken / max(1, len(interactive))
        self._average[Priority.BATCH] += shared / max(1, len(background))
        if not background:
            self._batch_credit = 0.0
        return self._start(batch.items, now)

    def _fill_background(self, batch: _Filling, interactive: list[Queued], background: list[Queued]) -> int:
        """Gives BATCH what it has earned beside INTERACTIVE; returns the tokens taken."""
        earned = self._batch_credit + self.max_batch_tokens * BATCH_SHARE
        self._batch_credit = min(earned, self.max_batch_tokens)
        limit = int(self._batch_credit)
        # What does not fit beside BATCH's share goes before it, until that has grown to a whole batch.
        room = self.max_batch_tokens - limit
        if limit < self.max_batch_tokens and any(entry.pending[0].tokens > room for entry in interactive):
            return 0
        taken = batch.fill(background, limit=limit)
        self._batch_credit -= taken
        return taken

    def _start(self, items: list[Item], now: float) -> list[Item]:
        for item in items:
            for request, _ in item.waiters:
                if not request.started_at:
                    request.started_at = now
        tokens = tokens_of(items)
        self.queued_tokens -= tokens
        self.running_tokens += tokens
        return items

    def keep_wanted(self, items: Iterable[Item]) -> list[Item]:
        """Forgets started items that nobody waits for any more, and returns the others.

        Who asks for a forgotten one later has it run anew, instead of joining a run that ended.
        """
        wanted = []
        for item in items:
            if any(not request.done for request, _ in item.waiters):
                wanted.append(item)
            else:
                self.finish([item])
        return wanted

    def finish(self, items: ListOf[Item]) -> list[list[Waiter]]:
        """Forgets items that have run, and returns who waits for each."""
        self.running_tokens -= tokens_of(items)
        waiters = []
        for item in items:
            del self._items[item.sequence]
            waiters.append(item.waiters)
            item.waiters = []
        return waiters


def _take_all(entries: Iterable[Queued]) -> list[Item]:
    """Takes everything that waits, which needs no rules where all of it fits."""
    items = []
    for entry in entries:
        for item in entry.pending:
            if not item.started:
                item.started = True
                items.append(item)
        entry.pending.clear()
        entry.pending_tokens = 0
    return items


class _Filling:
    """A batch being filled: a budget of tokens and what has been taken on it."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.items: list[Item] = []

    def fill(self, entries: list[Queued], limit: int | None = None) -> int:
        """Takes sequences of who has had least, the first among equals; returns the tokens taken.

        With a `limit`, takes no more than that, and nothing past the first that does not fit it: else
        small sequences would for ever spend what a larger one waits for.
        """
        before = self.budget
        floor = 0 if limit is None else max(0, self.budget - limit)
        least = [(entry.served, place) for place, entry in enumerate(entries)]
        heapify(least)
        while least:
            _, place = heappop(least)
            entry = entries[place]
            taken = self._take(entry, floor)
            entry.served += taken
            if taken and entry.pending:
                heappush(least, (entry.served, place))
            elif entry.pending and limit is not None:
                break
        return before - self.budget

    def _take(self, entry: Queued, floor: int) -> int:
        """Takes the next sequence of an entry if it fits; returns its tokens."""
        while entry.pending:
            item = entry.pending[0]
            alone = not self.items and floor == 0
            if not (item.started or alone or self.budget - item.tokens >= floor):
                break
            entry.pending.popleft()
            entry.pending_tokens -= item.tokens
            if not item.started:
                item.started = True
                self.items.append(item)
                self.budget -= item.tokens
                return item.tokens
        return 0
