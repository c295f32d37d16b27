"""A shared prefix costs its tokens once: in the queue, in the batch, in the model's memory."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.scheduler import Scheduler
from rerank_grpc.errors import QueueFull
from rerank_grpc.kernels.base import KeysValues
from rerank_grpc.runner import runner as runner_module
from rerank_grpc.runner.prefixes import PrefixCache
from rerank_grpc.runner.runner import CpuRunner, OutOfMemory
from rerank_grpc.sequence import Prefix, Sequence
from rerank_grpc.tokenizer.tokenizer import tokenizer_for
from rerank_grpc.types import Call
from tests import random_models as checkpoints
from tests.conftest import load
from tests.prompts import QUERY
from tests.support import token_ids, wait_for
from tests.texts import tokenize

NUMBERS = iter(range(10**9))


def ids(tokens: int) -> bytes:
    """Token ids equal to no others."""
    return Sequence.of([next(NUMBERS)] + [0] * (tokens - 1)).ids


def request(prefix: Prefix, *tokens: int) -> Future:
    return Future([Sequence(ids(each), 0, prefix) for each in tokens])


def scheduler(batch: int = 100, queue: int = 10_000) -> Scheduler:
    return Scheduler(max_batch_tokens=batch, max_queue_tokens=queue)


def batches(queue: Scheduler) -> list[list[int]]:
    """Runs the queue empty; returns the tokens of each batch's items."""
    found = []
    while batch := queue.next_batch(0.0):
        found.append([item.tokens for item in batch.items])
        for item, waiters in zip(batch.items, queue.finish(batch), strict=True):
            for waiter, index in waiters:
                waiter.deliver([(index, float(len(item.sequence)))], 0.0)
    return found


def test_a_prefix_is_counted_once_and_in_the_batch_that_computes_it():
    queue = scheduler(batch=100)
    queue.add(request(Prefix(ids(40)), 30, 30, 30, 30, 30), now=0)
    assert queue.queued_tokens == 190
    assert batches(queue) == [[70, 30], [30, 30, 30]]
    assert queue.queued_tokens == queue.running_tokens == 0


def test_what_stands_before_several_prefixes_is_counted_once_for_all():
    queue = scheduler(batch=1_000)
    system = Prefix(ids(50))
    requests = [request(Prefix(ids(20), system), 10, 10) for _ in range(3)]
    for each in requests:
        queue.add(each, now=0)
    assert queue.queued_tokens == 50 + 3 * (20 + 10 + 10)
    assert sum(map(sum, batches(queue))) == 170
    queue.add(request(Prefix(ids(20), system), 10), now=0)
    assert queue.queued_tokens == 30


def test_a_prefix_is_counted_again_after_nobody_held_it():
    queue = scheduler()
    content = ids(40)
    for _ in range(2):
        asked = request(Prefix(content), 10)
        queue.add(asked, now=0)
        assert queue.queued_tokens == 50
        batches(queue)
        queue.discard(asked)
        del asked
        gc.collect()


def test_a_refused_request_leaves_its_prefix_uncounted():
    queue = scheduler(queue=100)
    queue.add(request(Prefix(ids(10)), 50), now=0)
    late = request(Prefix(ids(30)), 20)
    with pytest.raises(QueueFull):
        queue.add(late, now=0)
    batches(queue)
    queue.add(late, now=0)
    assert queue.queued_tokens == 50
    queue.discard(late)
    assert queue.queued_tokens == 0


def test_a_request_larger_than_the_budget_by_its_prefix_goes_alone():
    queue = scheduler(batch=100)
    queue.add(request(Prefix(ids(150)), 10, 10), now=0)
    assert batches(queue) == [[160], [10]]


def test_equal_sequences_with_equal_prefixes_are_one_and_with_others_are_not():
    content, body = ids(40), ids(10)
    queue = scheduler()
    first, second = (Future([Sequence(body, 0, Prefix(content))]) for _ in range(2))
    other = Future([Sequence(body, 0, Prefix(ids(40)))])
    for each in (first, second, other):
        queue.add(each, now=0)
    assert (first.shared, second.shared, other.shared) == (0, 1, 0)
    assert queue.queued_tokens == 100


def test_usage_counts_a_prefix_once_for_a_request():
    system = Prefix(ids(50))
    assert request(Prefix(ids(20), system), 10, 11, 12).tokens == 50 + 20 + 33


def test_a_sequence_scores_like_its_prefixes_and_itself_in_one():
    system = Prefix(Sequence.of([1, 2]).ids)
    found = Sequence(Sequence.of([5]).ids, 0, Prefix(Sequence.of([3, 4]).ids, system)).whole()
    assert token_ids(found) == [1, 2, 3, 4, 5]
    assert found.prefix is None


def computed(tokens: int) -> KeysValues:
    return KeysValues(tokens)


def kept_of(cache: PrefixCache, *prefixes: Prefix) -> list[bool]:
    """Whether the cache has each prefix."""
    return [not cache.take([Sequence(b"", 0, prefix)]).missing for prefix in prefixes]


def test_what_is_kept_of_a_prefix_goes_with_the_last_who_holds_it():
    kept = PrefixCache()
    held, dropped = Prefix(ids(4)), Prefix(ids(5))
    kept.keep({held: computed(4), dropped: computed(9)})
    assert kept.tokens == 13
    assert kept_of(kept, Prefix(held.ids)) == [True]
    del dropped
    gc.collect()
    assert kept.tokens == 4


def test_beyond_the_bound_what_was_used_least_recently_goes():
    kept = PrefixCache(max_tokens=100)
    prefixes = [Prefix(ids(30)) for _ in range(5)]
    values = {prefix: computed(30) for prefix in prefixes}
    for prefix in prefixes[:3]:
        kept.keep({prefix: values[prefix]})
    kept.keep({prefixes[0]: values[prefixes[0]]})
    kept.keep({prefixes[3]: values[prefixes[3]]})
    assert kept_of(kept, *prefixes) == [True, False, True, True, False]
    kept.keep({prefixes[4]: computed(5_000)})
    assert kept.tokens == 5_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = checkpoints.qwen3_reranker(tmp_path_factory.mktemp("prefix") / "qwen3")
    return load(path)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> PrefixCache:
    """The cache of the next runner."""
    kept = PrefixCache()
    caches = iter([kept])
    monkeypatch.setattr(runner_module, "PrefixCache", lambda: next(caches, None) or PrefixCache())
    return kept


def test_keys_and_values_live_as_long_as_the_request_through_all_its_batches(
    model: Any, cache: PrefixCache
) -> None:
    runner, tokenizer = CpuRunner(model), tokenizer_for(model.card)
    engine = Engine(runner, EngineSettings(max_batch_tokens=120))
    engine.start()
    try:
        documents = [f"document {number} of many" for number in range(40)]
        encoded = tokenize(tokenizer, QUERY, documents)
        expected = CpuRunner(model).launch(encoded.sequences)()
        with engine.admit(Call()) as admission:
            request = admission.submit(encoded.sequences, stepwise=True)
            seen = 0
            for _ in request.completed():
                seen = max(seen, cache.tokens)
            prefix = encoded.sequences[0].prefix
            assert prefix is not None
            system = sum(map(len, list(prefix.chain())[:-1]))
            assert seen == 2 * system + len(prefix)  # the second prefix begins with a copy of the first
            assert request.outputs == pytest.approx(expected, abs=1e-4)
        del admission, request, encoded, prefix

        def let_go() -> bool:  # the device thread lets go of its last batch a moment later
            gc.collect()
            return cache.tokens == system

        wait_for(let_go)
        assert let_go()
    finally:
        engine.close()


def test_a_pass_that_fails_keeps_nothing_and_out_of_memory_makes_room(
    model: Any, cache: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, tokenizer = CpuRunner(model), tokenizer_for(model.card)
    first, second = tokenize(tokenizer, "one", ["a"]), tokenize(tokenizer, "two", ["a"])
    runner.launch(first.sequences)()
    kept = cache.tokens
    errors = iter([RuntimeError("broken"), torch.OutOfMemoryError("no room")])

    def fail(_: object, packed: object) -> torch.Tensor:
        raise next(errors)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", fail)
        with pytest.raises(RuntimeError, match="broken"):
            runner.launch(second.sequences)()
        assert cache.tokens == kept
        with pytest.raises(OutOfMemory):
            runner.launch(second.sequences)()
        assert cache.tokens == 0
    (score,) = runner.launch(second.sequences)()
    assert isinstance(score, float)
    assert math.isfinite(score)
