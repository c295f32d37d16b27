"""The batch budget is found by measuring; best_budget is pure, so its devices are formulas."""

import pytest

from rerank_grpc.registry.warmup import LARGEST_BATCH_TOKENS, SMALLEST_BATCH_TOKENS, best_budget
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.support import serving, stub_of


def test_a_device_with_a_fixed_cost_a_batch_gets_larger_batches():
    assert best_budget(lambda tokens: 0.001 + tokens / 1e6) == 32_768


def test_a_device_whose_rate_is_flat_gets_the_smallest_batch():
    assert best_budget(lambda tokens: tokens / 1e5) == SMALLEST_BATCH_TOKENS


def test_gains_that_are_small_each_count_together():
    rates = {512: 1.00, 1_024: 1.03, 2_048: 1.06, 4_096: 1.09}
    assert best_budget(lambda tokens: tokens / 1e5 / rates.get(tokens, 1.09)) == 2_048


def test_a_slow_device_never_gets_a_batch_longer_than_a_second():
    budget = best_budget(lambda tokens: 0.3 + tokens / 4_000)
    assert 0.3 + budget / 4_000 <= 1
    assert budget == 1_024


def test_a_device_that_gets_slower_with_size_stops_there():
    assert best_budget(lambda tokens: 0.001 + tokens / 1e6 * (1 if tokens <= 4_096 else 2)) == 4_096


def test_a_device_without_end_gets_the_largest_batch():
    assert best_budget(lambda _: 0.001) == LARGEST_BATCH_TOKENS


@pytest.mark.timeout(60)
def test_a_served_models_budget_was_measured_before_it_was_ready():
    with serving() as server, stub_of(server.port) as stub:
        model = stub.ListModels(pb.ListModelsRequest()).models[0]
        health = stub.Health(pb.HealthRequest())
        assert SMALLEST_BATCH_TOKENS <= model.max_batch_tokens <= LARGEST_BATCH_TOKENS
        assert health.tokens_per_second > 0
