"""The seconds of a batch, and of all else in a call: given, fitted, or read from committed results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from benchmarks import report
from benchmarks.targets import Data


@dataclass(frozen=True, slots=True)
class Cost:
    """A batch takes `fixed_seconds` and so many seconds for each of its tokens.

    `budget` is the most tokens of a batch as the warm-up would choose them; of a call, what is no device's
    work takes `call_seconds` and `document_seconds` for each document, before its sequences are queued.
    """

    fixed_seconds: float
    seconds_per_token: float
    budget: int = 1_024
    call_seconds: float = 0.0
    document_seconds: float = 0.0

    def of(self, tokens: float) -> float:
        """The seconds of a batch of so many tokens."""
        return self.fixed_seconds + tokens * self.seconds_per_token

    @property
    def tokens_per_second(self) -> float:
        """The rate of full batches."""
        return self.budget / self.of(self.budget)


def fitted(batches: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Fixed seconds and seconds a token of (tokens, seconds) of batches, by medians.

    A batch during which the processor was busy with something else moves neither (Theil and Sen's line).
    """
    pairs = combinations(batches, 2)
    slope = median(
        (after - before) / (large - small) for (small, before), (large, after) in pairs if large != small
    )
    return max(0.0, median(seconds - slope * tokens for tokens, seconds in batches)), slope


# Shapes with a measured rate (cpu.json) and measured rates by budget (budgets.json).
MEASURED = {"base-bf16": "base", "base-int8": "base", "minilm-bf16": "minilm"}


def measured(name: str) -> Cost:
    """The cost of a shape on the machine of the committed results; raises KeyError for another name."""
    shape, precision = MEASURED[name], name.partition("-")[2]
    budgets, quick = read("budgets")["models"][shape], read("quick")
    budget = int(median(budgets["chosen"]))
    if shape == "minilm":
        rate, budget = quick["concurrent"]["engine_alone"]["median"], quick["single_calls"]["W2"]["budget"]
    else:
        case = read("cpu")["cases"][f"{shape}/W2"]
        seconds = median(each["seconds"][f"rerank-grpc {precision}"] for each in case["rounds"])
        rate = case["tokens"] / seconds
    best = rate / budgets["rates"][str(budget)]  # the rates by budget are shares of the best, of bf16
    # tokens ÷ share of the best rate is the time of such a batch, in tokens at the best rate.
    points = [(int(tokens), int(tokens) / share / best) for tokens, share in budgets["rates"].items()]
    fixed, per_token = fitted(points)
    overhead = quick["overhead"]
    call, hundred = (overhead[key]["median"] / 1e3 for key in ("service_1_ms", "service_100_ms"))
    return Cost(fixed, per_token, budget, call, (hundred - call) / 99)


def given(text: str, budget: int | None = None) -> Cost:
    """Reads a name of MEASURED, or FIXED_MS,TOKENS_PER_SECOND; raises ValueError with a line for the user."""
    if text in MEASURED:
        cost = measured(text)
    else:
        fixed, _, rate = text.partition(",")
        try:
            cost = Cost(float(fixed) / 1e3, 1 / float(rate))
        except (ValueError, ZeroDivisionError):
            names = ", ".join(MEASURED)
            raise ValueError(
                f"a cost is one of {names}, or FIXED_MS,TOKENS_PER_SECOND; not {text!r}"
            ) from None
        if cost.fixed_seconds < 0 or cost.seconds_per_token <= 0:
            raise ValueError(f"a cost is never negative: {text!r}")
    if budget is None:
        return cost
    return Cost(cost.fixed_seconds, cost.seconds_per_token, budget, cost.call_seconds, cost.document_seconds)


def read(name: str) -> Data:
    """The committed results of another benchmark."""
    found: Data = json.loads((report.RESULTS / f"{name}.json").read_text("utf-8"))
    return found
