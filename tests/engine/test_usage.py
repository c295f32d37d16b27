"""What metrics are made of: how full batches were, and for how long the device had one."""

import pytest

from rerank_grpc.engine.usage import Usage
from tests.engine.test_engine import outputs, running, sequences
from tests.engine.test_overlap import Ahead
from tests.support import CountingRunner


def test_shares_and_rates_follow_from_counts():
    usage = Usage().and_batch(50, 100, 0.5).and_batch(100, 100, 0.5)
    assert (usage.batches, usage.fill, usage.tokens_per_second) == (2, 0.75, 150)
    assert usage.since(Usage().and_batch(50, 100, 0.5)) == Usage(1, 100, 100, 0.5)


def test_nothing_done_is_no_division_by_zero():
    assert (Usage().fill, Usage().tokens_per_second) == (0, 0)


def test_a_sequence_longer_than_a_batch_fills_it():
    assert Usage().and_batch(300, 100, 1).fill == 1


@pytest.mark.parametrize("runner", [CountingRunner(), Ahead()], ids=["one at a time", "overlapping"])
def test_an_engine_counts_its_batches(runner: CountingRunner):
    with running(runner, max_batch_tokens=40) as engine:
        outputs(engine.submit(sequences(8)))
        usage = engine.usage
    assert usage.batches == len(runner.batches)
    assert usage.tokens == 80
    assert usage.fill == 1
    assert usage.busy_seconds > 0


def test_a_batch_that_waited_for_another_counts_only_its_own_time():
    runner = Ahead(held=True)
    with running(runner, max_batch_tokens=40) as engine:
        request = engine.submit(sequences(8))
        runner.await_launch(2)
        runner.let_all()
        outputs(request)
        assert engine.usage.busy_seconds <= engine._landed - request.admitted_at
