"""How many replicas there should be: as many as bring the waiting work of each below a time.

Serve's controller imports this module, which needs neither torch nor grpc.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

# What replicas tell Serve: the seconds of work that wait, and the share of time that the device computes.
QUEUED_SECONDS, BUSY_SHARE = "queued_seconds", "busy_share"
# Replicas are not taken away below the number whose devices would be busy for this share of the time.
MOST_BUSY_SHARE = 0.8
# A rate that is not measured yet is taken for this one, in tokens a second: slow, so that work counts.
UNMEASURED_RATE = 1_000.0
# Rounding must not ask for one more replica.
TOLERANCE = 1e-9


def queued_seconds(queues: Iterable[tuple[int, float]]) -> float:
    """Adds up the seconds of work of queues, each given by its tokens and its tokens a second.

    A rate of 0 means that none is measured yet.
    """
    return sum(tokens / (rate if rate > 0 else UNMEASURED_RATE) for tokens, rate in queues)


def wanted_replicas(waiting: float, busy: float, target: float, *, now: int, least: int, most: int) -> int:
    """Tells how many replicas should run, from `least` to `most`.

    `waiting` is the seconds of work that wait in all replicas together, `busy` the sum of their busy shares,
    `target` the seconds that may wait in each. Numbers that are not finite leave the number as it is `now`.
    """
    if not math.isfinite(waiting) or not math.isfinite(busy):
        wanted = now
    else:
        by_queue = math.ceil(max(0.0, waiting) / target - TOLERANCE)
        by_load = math.ceil(max(0.0, busy) / MOST_BUSY_SHARE - TOLERANCE)
        # A busy device needs no further one while nothing waits: the share only holds what there is.
        wanted = max(by_queue, min(by_load, now), 1)
    return max(least, min(most, wanted))


class QueuedSeconds:
    """Serve's autoscaling policy; `target` is the seconds of work that may wait in each replica."""

    def __init__(self, target: float = 1.0) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas for an AutoscalingContext, and no state."""
        told = context.aggregated_metrics or {}
        number = wanted_replicas(
            _total(told.get(QUEUED_SECONDS)),
            _total(told.get(BUSY_SHARE)),
            self._target,
            now=context.target_num_replicas,
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
        )
        return number, {}


def _total(by_replica: Mapping[Any, float] | None) -> float:
    return float(sum((by_replica or {}).values()))
