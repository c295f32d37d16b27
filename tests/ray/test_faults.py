"""Replicas that die, hang, leave or are replaced under load: no call of the client is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks.ray_cluster import Cluster
from benchmarks.ray_serve import Load, up, wait_until_up
from tests.support import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

COST = 0.0001  # seconds for each token
LEFT_SECONDS = 8.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="1") as made:
        yield made


def two_replicas(cluster: Cluster) -> None:
    cluster.deploy({"replicas": 2}, seconds_per_token=COST)
    wait_until_up(cluster, 2)
    wait_for(lambda: len(cluster.replicas()) == 2, 60)


def begin(cluster: Cluster, calls: int, *, begun: int = 100) -> Load:
    """Begins a load, and waits until so many of its calls are over."""
    load = Load(cluster.target, calls).start()
    wait_for(lambda: len(load.calls) > begun, 60)
    return load


def test_one_of_two_is_killed(cluster: Cluster):
    two_replicas(cluster)
    load = begin(cluster, 1_000)
    os.kill(cluster.replicas()[0], signal.SIGKILL)
    assert load.wait()["errors"] == {}
    wait_until_up(cluster, 2)


def test_one_of_two_hangs(cluster: Cluster):
    """Its calls end as UNAVAILABLE when HAProxy has left it, and are called again."""
    two_replicas(cluster)
    load = begin(cluster, 1_500)
    hung = cluster.replicas()[0]
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: up(cluster) == 1, LEFT_SECONDS * 2)
    assert time.monotonic() - began < LEFT_SECONDS
    found = load.wait()
    assert found["errors"] == {}
    assert found["most_seconds"] < LEFT_SECONDS + 2
    wait_for(lambda: hung not in cluster.replicas(), 60)
    wait_until_up(cluster, 2)


def test_one_of_two_is_taken_away_and_the_other_stays(cluster: Cluster):
    two_replicas(cluster)
    before = cluster.replicas()
    load = begin(cluster, 100_000)
    cluster.deploy({"replicas": 1}, seconds_per_token=COST)
    wait_for(lambda: len(cluster.replicas()) == 1, 60)
    assert load.end()["errors"] == {}
    assert set(cluster.replicas()) < set(before)


def test_both_are_replaced_one_after_the_other(cluster: Cluster):
    two_replicas(cluster)
    before = set(cluster.replicas())
    load = begin(cluster, 100_000)
    cluster.deploy({"replicas": 2}, seconds_per_token=COST, load_seconds=0.1)
    wait_for(lambda: not before & set(cluster.replicas()), 60)
    assert load.end()["errors"] == {}


def test_replicas_follow_the_work_that_waits(cluster: Cluster):
    plan = {"min-replicas": 1, "max-replicas": 2, "queued-seconds": 0.2}
    # Replicas that follow the work would take two minutes to become one.
    for stage in ({"replicas": 1}, plan):
        cluster.deploy(stage, seconds_per_token=0.0005)
        wait_for(lambda: len(cluster.replicas()) == 1, 60)
    load = Load(cluster.target, 100_000).start()
    wait_for(lambda: len(cluster.replicas()) == 2, 60)
    assert load.end()["errors"] == {}


def test_a_replica_that_fits_nowhere_is_told_before_serve_waits(cluster: Cluster):
    cluster.ask_for({"gpus": 2})
    line = "no node of this cluster can hold a replica, which takes 1 CPU and 2 GPU: the most that one has is"
    wait_for(lambda: line in cluster.logs(), 60)


def test_bad_arguments_are_told_by_serve(cluster: Cluster):
    assert "modle: unknown argument; did you mean model?" in cluster.fail({"modle": "embedded"})
