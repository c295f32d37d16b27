"""How many replicas there should be, without Ray: the policy is arithmetic on what replicas tell."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rerank_grpc.ray.autoscaling import (
    BUSY_SHARE,
    MOST_BUSY_SHARE,
    QUEUED_SECONDS,
    UNMEASURED_RATE,
    QueuedSeconds,
    queued_seconds,
    wanted_replicas,
)


def context(
    waiting: dict[str, float],
    busy: dict[str, float] | None = None,
    *,
    now: int = 1,
    least: int = 1,
    most: int = 8,
) -> Any:
    """Makes what the policy reads of Serve's context."""
    return SimpleNamespace(
        aggregated_metrics={QUEUED_SECONDS: waiting, BUSY_SHARE: busy or {}},
        target_num_replicas=now,
        capacity_adjusted_min_replicas=least,
        capacity_adjusted_max_replicas=most,
    )


@pytest.mark.parametrize(
    ("waiting", "target", "wanted"),
    [(0.0, 1.0, 1), (0.9, 1.0, 1), (1.0, 1.0, 1), (1.1, 1.0, 2), (5.5, 1.0, 6), (5.5, 0.5, 8), (5.5, 10, 1)],
)
def test_there_are_as_many_as_bring_the_work_of_each_below_the_target(
    waiting: float, target: float, wanted: int
):
    assert wanted_replicas(waiting, 0.0, target, now=1, least=1, most=8) == wanted


def test_the_bounds_hold_whatever_waits():
    assert wanted_replicas(1e9, 8.0, 1.0, now=3, least=2, most=4) == 4
    assert wanted_replicas(0.0, 0.0, 1.0, now=3, least=2, most=4) == 2
    assert wanted_replicas(0.0, 0.0, 1.0, now=0, least=0, most=4) == 1, "nothing is called that is not there"


def test_busy_devices_keep_their_replicas_and_ask_for_no_more():
    assert wanted_replicas(0.0, 2.9, 1.0, now=4, least=1, most=8) == math.ceil(2.9 / MOST_BUSY_SHARE)
    assert wanted_replicas(0.0, 1.0, 1.0, now=1, least=1, most=8) == 1
    assert wanted_replicas(0.0, 0.1, 1.0, now=4, least=1, most=8) == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_changes_nothing(number: float):
    assert wanted_replicas(number, 0.0, 1.0, now=3, least=1, most=8) == 3
    assert wanted_replicas(0.0, number, 1.0, now=3, least=1, most=8) == 3


def test_a_rate_that_is_not_measured_yet_divides_nothing_by_zero():
    assert queued_seconds([(2_000, 1_000.0), (500, 250.0)]) == 4.0
    assert queued_seconds([(2_000, 0.0)]) == 2_000 / UNMEASURED_RATE
    assert queued_seconds([]) == 0.0


def test_the_policy_adds_up_what_all_replicas_tell():
    policy = QueuedSeconds(target=1.0)
    assert policy(context({"a": 1.5, "b": 1.0})) == (3, {})
    assert policy(context({"a": 0.0, "b": 0.0}, {"a": 0.7, "b": 0.7}, now=2)) == (2, {})
    assert policy(context({})) == (1, {})
    nothing = context({})
    nothing.aggregated_metrics = None
    assert policy(nothing) == (1, {})


def test_the_controller_needs_neither_torch_nor_grpc_for_it():
    code = "import sys, rerank_grpc.ray.autoscaling; print({'torch', 'grpc', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
