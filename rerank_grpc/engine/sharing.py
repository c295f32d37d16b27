"""The part of each batch that each caller has: an equal one, whatever the number of its calls.

A batch entitles each caller that waits to an equal part of its tokens, or to all that it needs where that is
less. Tokens received beyond that are its debt, which parts that it leaves to others pay; those that it lacked
are its credit, and none grows while it has nothing waiting. With one caller there is nothing to settle.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rerank_grpc.engine.filling import Filling, Queued, Share, Standing
from rerank_grpc.types import Priority

# How many batches a caller may be ahead: as long as it needs little, it need not wait for its part of each.
LEAD_BATCHES = 4.0
EQUAL_TURNS = 4  # one of so many batches is shared equally


@dataclass(slots=True, eq=False)
class Contender:
    """One caller's calls of one class that wait for the next batch, by deadline and then by arrival."""

    standing: Standing
    calls: list[Queued]
    needed_tokens: float = math.inf  # of one that is alone nobody asks
    taken_tokens: int = 0

    @property
    def waits(self) -> bool:
        """Whether the batch has not taken everything."""
        return any(queued.pending for queued in self.calls)

    @property
    def claim_tokens(self) -> float:
        """The tokens that it lacks, were it entitled to none of this batch."""
        return self.standing.credit_tokens - self.taken_tokens

    def fill(self, batch: Filling, limit: float) -> None:
        """Has a batch take of its calls until a limit is reached or passed."""
        if limit > 0:
            share = self.standing.equal
            self.taken_tokens += batch.fill_by_need(self.calls, share, int(min(limit, batch.budget)) or 1)


def contenders_of(waiting: Iterable[Queued]) -> dict[Priority, list[Contender]]:
    """Groups calls by class and caller."""
    calls = defaultdict[Standing, list[Queued]](list)
    for queued in waiting:
        calls[queued.standing].append(queued)
    found: dict[Priority, list[Contender]] = {priority: [] for priority in Priority}
    for standing, own in calls.items():
        found[standing.priority].append(Contender(standing, own))
    for contenders in found.values():
        if len(contenders) > 1:
            for each in contenders:
                each.needed_tokens = sum([queued.pending_tokens for queued in each.calls])
    return found


def parts_of(needed: Sequence[float], tokens: float) -> list[float]:
    """Divides tokens equally, but gives nobody more than is needed; returns the parts in the same order."""
    parts = [0.0] * len(needed)
    ordered = sorted(range(len(needed)), key=needed.__getitem__)
    for count, index in zip(range(len(needed), 0, -1), ordered, strict=True):
        parts[index] = min(needed[index], tokens / count)
        tokens -= parts[index]
    return parts


def fill(batch: Filling, contenders: list[Contender], *, equally: bool) -> None:
    """Fills a batch with the calls of one class.

    The caller that needs least goes first, as long as it is not too far ahead of its part; with `equally`
    each has its part, those first that have received least. The rest goes to them in this order, too.
    """
    if len(contenders) == 1:
        contenders[0].fill(batch, batch.budget)
        return
    needed = [each.needed_tokens - each.taken_tokens for each in contenders]
    parts = dict(zip(contenders, parts_of(needed, batch.free_tokens), strict=True))
    if equally:
        for each in by_claim(contenders):
            each.fill(batch, parts[each])
    else:
        lead = LEAD_BATCHES * batch.budget
        for each in sorted(contenders, key=lambda each: each.needed_tokens):
            each.fill(batch, parts[each] + each.claim_tokens + lead)
    for each in by_claim(contenders):
        each.fill(batch, batch.free_tokens)


def fill_background(batch: Filling, share: Share, background: list[Contender], limit: int) -> None:
    """Gives at most `limit` tokens to calls of BATCH: of the caller, then of the call that received least."""
    for each in by_claim(background):
        taken = batch.fill_equally([queued for queued in each.calls if queued.pending], limit)
        each.taken_tokens += taken
        share.saved_tokens -= taken
        limit -= taken
        if each.waits:
            break


def by_claim(contenders: list[Contender]) -> list[Contender]:
    """Sorts those first that have received least of their part, and among equals those that need least."""
    return sorted(contenders, key=lambda each: (-each.claim_tokens, each.needed_tokens))


def settle(contenders: list[Contender], standings: Iterable[Standing]) -> None:
    """Notes what the calls of one class have received of a batch, against their parts.

    The part that a caller leaves to others pays its debt, also while it has nothing waiting.
    """
    for each in contenders:
        each.standing.average_tokens += each.taken_tokens / len(each.calls)
    present = {each.standing for each in contenders}
    absent = [each for each in standings if each.credit_tokens < 0 and each not in present]
    if len(contenders) + len(absent) < 2:
        return
    entitled = [each.standing for each in contenders] + absent
    needed = [each.needed_tokens for each in contenders] + [0.0] * len(absent)
    taken = [each.taken_tokens for each in contenders] + [0] * len(absent)
    owed = [need + max(0.0, -each.credit_tokens) for need, each in zip(needed, entitled, strict=True)]
    for standing, part, received in zip(entitled, parts_of(owed, sum(taken)), taken, strict=True):
        standing.credit_tokens += part - received
