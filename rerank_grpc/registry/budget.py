"""Chooses how many tokens go to a device at once: measures candidates in turns, and keeps the choice."""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import pairwise
from math import exp, log
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeAlias

import torch

from rerank_grpc import __version__
from rerank_grpc.kept import Kept, Key
from rerank_grpc.models.base import ModelCard

SMALLEST_BATCH_TOKENS = 512
LARGEST_BATCH_TOKENS = 131_072
LARGEST_ON_CPU = 8_192  # beyond it no model became faster by NEARLY, and a memory limit must hold a batch
NEARLY = 1.005  # the cost beside the best for which a smaller batch is taken: other calls wait less for it
LONGEST_BATCH_SECONDS = 1.0  # a longer batch makes all calls wait, however well it fills the device

# A batch usually costs as much beside its tokens as so many tokens, on CPUs 40 to 70 by model and precision.
# That is believed as much as so many rounds.
USUAL_FIXED_TOKENS, USUAL_ROUNDS = 56, 4
CHEAPEST, DEAREST = 0.48, 1.4  # what a doubling makes of a token's cost; a ratio beyond is a spike's

MOST_ROUNDS, LEAST_ROUNDS = 9, 3
# Of the device's own seconds. A candidate is left out if too few rounds with it would fit the longest search.
SEARCH_SECONDS, LONGEST_SEARCH_SECONDS = 2.3, 3.4
MOST_PASSED = 3  # times those seconds, while other processes leave the device less
# The device's share of the time that passed, below which other processes disturbed the measurement.
UNDISTURBED_SHARE = 0.6
SAME_SHARE = 0.1  # of a share, by which that of a later measurement may differ and still be the machine's own


class Cost(NamedTuple):
    """One batch: its tokens, the device's own seconds for it, and the seconds that passed.

    A processor's own seconds are its time for this process ÷ threads: other processes hardly change them.
    Those of another engine's batches are among them, unless the batch was `alone` on the device. `fits` tells
    whether the memory held it.
    """

    tokens: int
    seconds: float
    passed: float
    alone: bool = True
    fits: bool = True


Round: TypeAlias = dict[int, Cost]  # by budget


class Choice(NamedTuple):
    """A budget, whether others disturbed its measurement, and the device's share of the time that passed."""

    tokens: int
    disturbed: bool
    reason: str
    share: float = 1.0

    def has_share_of(self, earlier: Choice) -> bool:
        """Whether the device had the same share of the time as in an earlier measurement."""
        return abs(self.share - earlier.share) <= SAME_SHARE * earlier.share


def measure(sample: Callable[[int], Cost], fits: Callable[[int], bool] = lambda _: True) -> list[Round]:
    """Runs batches of every budget that is short enough and fits the memory, round after round.

    What slows the device for a while slows all budgets of a round. A budget that the memory did not hold
    is left out, and all larger ones.
    """
    rounds = [_first_round(sample, fits)]
    while len(budgets := _held(rounds)) > 1 and len(rounds) < MOST_ROUNDS:
        limit = LONGEST_SEARCH_SECONDS if len(rounds) <= LEAST_ROUNDS else SEARCH_SECONDS
        with_another = 1 + 1 / len(rounds)
        if _seconds(rounds) * with_another > limit or _passed(rounds) * with_another > MOST_PASSED * limit:
            break
        order = -1 if len(rounds) % 2 else 1
        rounds.append({budget: sample(budget) for budget in budgets[::order]})
    return [{budget: each[budget] for budget in budgets} for each in rounds]


def _first_round(sample: Callable[[int], Cost], fits: Callable[[int], bool]) -> Round:
    """Doubles the budget until the next one would take too long, which two samples must say."""
    found, budget = Round(), SMALLEST_BATCH_TOKENS
    while budget <= LARGEST_BATCH_TOKENS and (not found or fits(budget)):
        found[budget] = sample(budget)
        if not found[budget].fits:
            break
        if _next_is_too_long(found, budget):
            found[budget] = min(found[budget], sample(budget), key=_by_token)
            if _next_is_too_long(found, budget):
                break
        budget *= 2
    return found


def _next_is_too_long(found: Round, budget: int) -> bool:
    of_next = 2 * found[budget].seconds
    of_search = LEAST_ROUNDS * (_seconds([found]) + of_next)
    passing = LEAST_ROUNDS * (_passed([found]) + 2 * found[budget].passed)
    too_long = of_next > LONGEST_BATCH_SECONDS or of_search > LONGEST_SEARCH_SECONDS
    return too_long or passing > MOST_PASSED * LONGEST_SEARCH_SECONDS


def _held(rounds: list[Round]) -> list[int]:
    """The budgets below the smallest that the memory did not hold; the first in any case."""
    first, *larger = rounds[0]
    not_held = [budget for each in rounds for budget, cost in each.items() if not cost.fits]
    return [first, *(budget for budget in larger if budget < min(not_held, default=budget + 1))]


def _seconds(rounds: list[Round]) -> float:
    return sum(cost.seconds for each in rounds for cost in each.values())


def _passed(rounds: list[Round]) -> float:
    return sum(cost.passed for each in rounds for cost in each.values())


def choose(rounds: list[Round]) -> Choice:
    """Takes the smallest budget whose tokens cost nearly as little as the best's.

    Each budget is compared with the one before it, within a round, by the median over the rounds, so one
    sample decides nothing. Few rounds count less than what is usual.
    """
    budgets, count = sorted(rounds[0]), len(rounds)
    costs = {budgets[0]: 0.0}  # of a token, in logarithms
    for smaller, larger in pairwise(budgets):
        ratios = [_by_token(each[larger]) / _by_token(each[smaller]) for each in rounds]
        plausible = [ratio for ratio in ratios if CHEAPEST <= ratio <= DEAREST]
        found = log(median(plausible or ratios))
        usual = log((1 + USUAL_FIXED_TOKENS / larger) / (1 + USUAL_FIXED_TOKENS / smaller))
        step = (count * found + USUAL_ROUNDS * usual) / (count + USUAL_ROUNDS)
        costs[larger] = costs[smaller] + step
    best = min(costs.values())
    tokens = min(budget for budget, cost in costs.items() if cost <= best + log(NEARLY))
    rates = ", ".join(f"{budget} {exp(best - cost):.2f}" for budget, cost in costs.items())
    share = _seconds(rounds) / _passed(rounds)
    alone = all(cost.alone for each in rounds for cost in each.values())
    disturbed = share < UNDISTURBED_SHARE or not alone
    return Choice(tokens, disturbed, f"rates ÷ the best in {count} rounds: {rates}", share)


def _by_token(cost: Cost) -> float:
    return cost.seconds / cost.tokens


class KeptBudget:
    """The budget of one model on this machine that an earlier start chose."""

    def __init__(self, card: ModelCard, kept: Kept) -> None:
        self._kept = kept
        self._key: Key = {
            "revision": card.revision,
            "precision": card.precision,
            "attention": card.attention_label,
            "device": device_name(torch.device(card.device)),
            "threads": torch.get_num_threads(),
            "version": __version__,
            "torch": torch.__version__,
        }

    def read(self) -> Choice | None:
        """Finds the choice; None if there is none, or one that no search makes."""
        found = self._kept.read(self._key) or {}
        tokens, disturbed, share = found.get("tokens"), found.get("disturbed"), found.get("share")
        if type(tokens) is not int or type(disturbed) is not bool or type(share) is not float:
            return None
        if not SMALLEST_BATCH_TOKENS <= tokens <= LARGEST_BATCH_TOKENS:
            return None
        return Choice(tokens, disturbed, "as an earlier start measured", share)

    def write(self, choice: Choice) -> None:
        value = {"tokens": choice.tokens, "disturbed": choice.disturbed, "share": choice.share}
        self._kept.write(self._key, value)


def device_name(device: torch.device) -> str:
    """Returns the name of the processor, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()  # the second starts a process
