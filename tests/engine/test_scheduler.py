"""The scheduler decides by its arguments alone, so these tests need no thread and no clock."""

import math
import random

import pytest

from rerank_grpc.engine.filling import Batch, Item
from rerank_grpc.engine.forecast import Forecast
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.scheduler import REFUSAL_FACTOR, Scheduler
from rerank_grpc.errors import Cancelled, DeadlineUnreachable, QueueFull
from rerank_grpc.sequence import Sequence
from rerank_grpc.types import Priority
from tests.support import processor_time

NUMBERS = iter(range(10**9))


def sequence(tokens: int) -> Sequence:
    """A sequence equal to no other."""
    return Sequence.of([next(NUMBERS)] + [0] * (tokens - 1))


def request(*tokens: int, deadline: float = math.inf, priority: Priority = Priority.INTERACTIVE) -> Future:
    return Future([sequence(n) for n in tokens], deadline=deadline, priority=priority)


def at(rate: float) -> Forecast:
    """The forecast of a device that takes so many tokens a second."""
    return lambda tokens: tokens / rate


def scheduler(batch: int = 100, queue: int = 10_000) -> Scheduler:
    return Scheduler(max_batch_tokens=batch, max_queue_tokens=queue)


def owners(batch: Batch | None) -> list[Future]:
    return [item.waiters[0][0] for item in batch.items] if batch else []


def next_of(queue: Scheduler, now: float = 0.0) -> Batch:
    batch = queue.next_batch(now)
    assert batch is not None
    return batch


def drain(queue: Scheduler, now: float = 0.0) -> list[list[tuple[Future, int]]]:
    """Runs the queue empty; returns for each batch the first owner and the tokens of its items."""
    batches = []
    while batch := queue.next_batch(now):
        batches.append(list(zip(owners(batch), [item.tokens for item in batch.items], strict=True)))
        for item, waiters in zip(batch.items, queue.finish(batch), strict=True):
            for waiter, index in waiters:
                waiter.deliver([(index, float(item.tokens))], now)
    return batches


def test_the_oldest_is_the_first_that_came_of_which_something_waits():
    queue = scheduler(batch=10)
    assert queue.oldest() is None
    futures = [request(10), request(10), request(10)]
    for now, future in enumerate(futures):
        queue.add(future, float(now + 1))
    assert queue.oldest() == 1
    next_of(queue)
    assert queue.oldest() == 2
    futures[1].fail(Cancelled("the caller cancelled"))
    assert queue.oldest() == 3
    queue.discard(futures[2])
    assert queue.oldest() is None


def run(queue: Scheduler) -> None:
    """Runs one batch, whose items have a score each."""
    batch = queue.next_batch(1)
    assert batch is not None
    for waiters in queue.finish(batch):
        for waiter, index in waiters:
            waiter.deliver([(index, 0.5)], 1)


def batches_until(queue: Scheduler, most: int, started: Future | None = None) -> int:
    """Runs batches until a request has started, at most so many; returns how many."""
    for count in range(1, most + 1):
        run(queue)
        if started is not None and started.started_at:
            return count
    return most


def test_a_batch_holds_at_most_its_budget_of_tokens():
    queue = scheduler(batch=100)
    queue.add(request(*[30] * 10), now=0)
    assert [sum(tokens for _, tokens in batch) for batch in drain(queue)] == [90, 90, 90, 30]


def test_a_sequence_larger_than_the_budget_goes_alone():
    queue = scheduler(batch=100)
    queue.add(request(250, 10), now=0)
    assert [[tokens for _, tokens in batch] for batch in drain(queue)] == [[250], [10]]


def test_a_small_request_enters_the_next_batch_while_a_large_one_runs():
    queue = scheduler(batch=100)
    large = request(*[10] * 1000, deadline=1.0)
    small = request(10, deadline=30.0)
    queue.add(large, now=0)
    first = queue.next_batch(0)
    queue.add(small, now=0)
    second = queue.next_batch(0)
    assert set(owners(first)) == {large}
    assert small in owners(second)
    assert len(owners(second)) == 10


@pytest.mark.parametrize("warm", [0, 1, 2, 7])
@pytest.mark.parametrize("size", [10, 45, 50, 100, 250])
def test_a_lone_sequence_enters_the_next_batch_whatever_its_size(size: int, warm: int):
    """The large one's sequences do not fill a batch evenly, and are more urgent."""
    queue = scheduler(batch=100)
    small = request(size, deadline=30.0)
    queue.add(request(*[30] * 100, deadline=1.0), now=0)
    batches_until(queue, warm)
    queue.add(small, now=0)
    assert batches_until(queue, 10, small) <= 2


@pytest.mark.parametrize(("calls", "size"), [(2, 300), (4, 100), (8, 140), (8, 300)])
@pytest.mark.parametrize("lone", [100, 300, 512])
def test_no_number_of_large_calls_keeps_a_lone_sequence_waiting(calls: int, size: int, lone: int):
    """Equal lengths that leave a rest of every batch, after the queue has long been busy."""
    queue = scheduler(batch=512, queue=1_000_000)
    for _ in range(calls):
        queue.add(request(*[size] * 200, deadline=1.0), now=0)
    batches_until(queue, 60)
    small = request(lone, deadline=30.0)
    queue.add(small, now=0)
    assert batches_until(queue, 300, small) <= 1 + calls


def test_a_large_call_is_not_starved_by_an_endless_stream_of_newcomers():
    queue = scheduler(batch=100)
    large = request(*[30] * 40)
    queue.add(large, now=0)
    batches = 0
    while not large.done:
        queue.add(request(50), now=0)
        run(queue)
        batches += 1
        assert batches <= 50


@pytest.mark.parametrize("size", [95, 100, 250])
def test_batch_does_not_keep_a_long_interactive_sequence_waiting(size: int):
    queue = scheduler(batch=100, queue=100_000)
    long = request(size, deadline=30.0)
    queue.add(request(*[10] * 900, priority=Priority.BATCH), now=0)
    queue.add(request(*[10] * 900, deadline=1.0), now=0)
    batches_until(queue, 5)
    queue.add(long, now=0)
    assert batches_until(queue, 100, long) <= 3


def test_small_sequences_of_batch_do_not_spend_what_a_longer_one_waits_for():
    queue = scheduler(batch=100, queue=100_000)
    queue.add(request(*[10] * 900), now=0)
    queue.add(request(*[10] * 900, priority=Priority.BATCH, deadline=1.0), now=0)
    batches_until(queue, 5)
    longer = request(30, priority=Priority.BATCH)
    queue.add(longer, now=0)
    assert batches_until(queue, 100, longer) <= 8


def test_the_call_that_needs_least_goes_first_and_the_others_share_a_quarter():
    queue = scheduler(batch=100)
    requests = [request(*[10] * count) for count in (30, 20, 40)]
    for each in requests:
        queue.add(each, now=0)
    batches = [owners(next_of(queue)) for _ in range(2)]
    taken = [[batch.count(each) for batch in batches] for each in requests]
    assert [sum(each) for each in taken] == [2, 16, 2]


def test_equal_calls_end_one_after_the_other():
    queue = scheduler(batch=100)
    requests = [request(*[10] * 40) for _ in range(8)]
    for each in requests:
        queue.add(each, now=0)
    ends = list[int]()
    for number in range(1, 33):
        run(queue)
        ends += [number] * (sum(each.done for each in requests) - len(ends))
    assert ends[-1] == 32
    assert sum(ends) / 8 < 0.66 * 32  # with equal shares all end in the last batches


@pytest.mark.parametrize("calls", [2, 5, 9])
@pytest.mark.parametrize("small", [1, 3, 12])
def test_whatever_small_calls_come_a_large_one_gets_a_quarter_of_an_equal_share(calls: int, small: int):
    queue, large = scheduler(batch=100), request(*[10] * 60)
    queue.add(large, now=0)
    others, tokens = list[Future](), 0
    while not large.done:
        others = [each for each in others if not each.done]
        while len(others) < calls - 1:
            others.append(request(*[10] * small))
            queue.add(others[-1], now=0)
        run(queue)
        tokens += 100
        assert tokens <= 4 * calls * 600 + 200


def tokens_needed(queue: Scheduler, *tokens: int) -> float:
    """The forecast for a call, as its refusal says it, at a token a second."""
    with pytest.raises(DeadlineUnreachable) as refusal:
        queue.add(request(*tokens, deadline=0.001), now=0, forecast=at(1))
    return float(refusal.value.metadata["needed_seconds"])


@pytest.mark.parametrize("seed", range(60))
def test_the_forecast_for_a_call_is_right_within_what_a_refusal_allows_for(seed: int):
    chance = random.Random(seed)
    queue = scheduler(batch=100)
    for _ in range(chance.randint(1, 12)):
        queue.add(request(*[10] * chance.randint(1, 60)), now=0)
    for _ in range(chance.randint(0, 5)):
        queue.next_batch(0)
    if not queue.queued_tokens:
        return
    queue.running_tokens = 0
    size = [10] * chance.randint(1, 60)
    forecast, late, tokens = tokens_needed(queue, *size), request(*size), 0
    queue.add(late, now=0)
    while not late.done:
        batch = next_of(queue)
        tokens += batch.tokens
        for waiters in queue.finish(batch):
            for waiter, index in waiters:
                waiter.deliver([(index, 0.5)], 0)
    assert tokens / REFUSAL_FACTOR - 100 <= forecast <= tokens * REFUSAL_FACTOR + 100


def test_what_one_request_leaves_of_a_batch_goes_to_the_earliest_deadline():
    queue = scheduler(batch=100)
    late, early, small = request(*[10] * 100, deadline=9), request(*[10] * 100, deadline=5), request(10)
    for each in (late, early, small):
        queue.add(each, now=0)
    batch = owners(queue.next_batch(0))
    assert (batch.count(early), batch.count(late), batch.count(small)) == (8, 1, 1)


def test_the_earliest_deadline_goes_first_when_not_all_fit():
    queue = scheduler(batch=100)
    requests = [request(60, deadline=deadline) for deadline in (9, 3, 6)]
    for each in requests:
        queue.add(each, now=0)
    assert [owner.deadline for batch in drain(queue) for owner, _ in batch] == [3, 6, 9]


def test_interactive_goes_before_batch():
    queue = scheduler(batch=100)
    background = request(*[50] * 4, priority=Priority.BATCH)
    interactive = request(*[50] * 2)
    queue.add(background, now=0)
    queue.add(interactive, now=0)
    assert owners(queue.next_batch(0)) == [interactive, interactive]


def test_batch_is_not_starved_by_an_endless_stream_of_interactive_calls():
    queue = scheduler(batch=100)
    background = request(*[10] * 200, priority=Priority.BATCH)
    queue.add(background, now=0)
    served = 0
    for _ in range(80):
        queue.add(request(*[10] * 10), now=0)
        items = next_of(queue)
        served += owners(items).count(background)
        queue.finish(items)
    assert served == pytest.approx(80 * 10 / 8, abs=2)


def test_batch_work_longer_than_its_share_gets_its_turn_too():
    queue = scheduler(batch=100)
    background = request(100, priority=Priority.BATCH)
    queue.add(background, now=0)
    turns = 0
    while background.started_at == 0:
        turns += 1
        queue.add(request(*[10] * 20), now=1)
        queue.finish(next_of(queue, 1))
    assert turns == 8


@pytest.mark.parametrize("tokens", [85, 95, 120])
def test_a_large_interactive_sequence_does_not_wait_for_a_backlog_of_batch_work(tokens: int):
    queue = scheduler(batch=100)
    queue.add(request(*[10] * 900, priority=Priority.BATCH), now=0)
    interactive = request(tokens)
    queue.add(interactive, now=0)
    assert interactive in owners(queue.next_batch(0))


def test_large_interactive_sequences_without_end_do_not_starve_batch_work():
    queue = scheduler(batch=100)
    background = request(*[10] * 100, priority=Priority.BATCH)
    queue.add(background, now=0)
    served = []
    for _ in range(32):
        queue.add(request(95), now=0)
        items = next_of(queue)
        served.append(owners(items).count(background))
        queue.finish(items)
    assert sum(served) * 10 >= 32 * 100 / 8 * 0.9


def test_a_started_item_that_nobody_wants_is_run_anew_for_who_asks_later():
    queue = scheduler()
    same = sequence(10)
    gone, later = Future([same]), Future([same])
    queue.add(gone, now=0)
    items = next_of(queue)
    gone.fail(Cancelled("the caller left"))
    assert queue.halves(items) == []
    queue.add(later, now=0)
    assert owners(queue.next_batch(0)) == [later]
    assert later.shared == 0


def test_equal_sequences_of_several_requests_are_run_once():
    queue = scheduler()
    same = sequence(10)
    first, second = Future([same, same]), Future([same])
    queue.add(first, now=0)
    queue.add(second, now=0)
    assert queue.queued_tokens == 10
    assert [len(batch) for batch in drain(queue)] == [1]
    assert first.outputs == [10.0, 10.0]
    assert second.outputs == [10.0]
    assert (first.shared, second.shared) == (1, 1)


def test_a_request_joins_a_sequence_that_is_running():
    queue = scheduler()
    same = sequence(10)
    first, second = Future([same]), Future([same])
    queue.add(first, now=0)
    running = next_of(queue)
    queue.add(second, now=1)
    assert queue.next_batch(1) is None
    assert [waiter for waiters in queue.finish(running) for waiter, _ in waiters] == [first, second]


def test_nothing_is_run_for_a_request_that_was_cancelled_or_is_too_late():
    queue = scheduler()
    cancelled, late, good = request(10, deadline=5), request(10, deadline=5), request(10)
    for each in (cancelled, late, good):
        queue.add(each, now=0)
    cancelled.fail(Cancelled("gone"))
    assert queue.expire(now=0) == []
    assert queue.queued_tokens == 20
    assert queue.expire(now=5) == [late]
    assert queue.queued_tokens == 10
    assert owners(queue.next_batch(5)) == [good]


def test_a_cancelled_request_leaves_what_another_waits_for():
    queue = scheduler()
    same = sequence(10)
    first, second = Future([same, sequence(20)]), Future([same])
    queue.add(first, now=0)
    queue.add(second, now=0)
    queue.discard(first)
    assert queue.queued_tokens == 10
    assert drain(queue) == [[(second, 10)]]


def test_a_full_queue_refuses_and_says_when_there_will_be_room():
    queue = scheduler(queue=100)
    queue.add(request(80), now=0, forecast=at(100))
    with pytest.raises(QueueFull) as refusal:
        queue.add(request(60), now=0, forecast=at(100))
    assert refusal.value.retry_after == pytest.approx(0.4)
    assert refusal.value.metadata == {"queue_tokens": "80", "queue_capacity_tokens": "100"}


def test_an_empty_queue_takes_a_request_larger_than_itself():
    queue = scheduler(queue=100)
    queue.add(request(500), now=0, forecast=at(100))
    assert queue.queued_tokens == 500


def test_a_full_queue_that_empties_soon_never_invites_an_immediate_retry():
    queue = scheduler(queue=100)
    queue.add(request(80), now=0)
    with pytest.raises(QueueFull) as refusal:
        queue.add(request(60), now=0, forecast=at(1_000_000))
    assert refusal.value.retry_after == 0.1


def test_a_full_queue_without_a_forecast_asks_for_a_second():
    queue = scheduler(queue=100)
    queue.add(request(100), now=0)
    with pytest.raises(QueueFull) as refusal:
        queue.check_queue(1)
    assert refusal.value.retry_after == 1


def test_a_deadline_that_the_load_does_not_allow_is_refused_with_a_time_to_retry():
    queue = scheduler()
    queue.add(request(*[100] * 10), now=0, forecast=at(1000))
    late = request(*[100] * 5, deadline=0.3)
    with pytest.raises(DeadlineUnreachable) as refusal:
        queue.add(late, now=0, forecast=at(1000))
    assert refusal.value.metadata == {"needed_seconds": "0.667", "remaining_seconds": "0.300"}
    assert refusal.value.retry_after == pytest.approx(0.9)
    while queue.queued_tokens > 100:  # after those 0.9 s
        run(queue)
    queue.add(late, now=0, forecast=at(1000))


def test_a_forecast_that_may_be_wrong_by_half_refuses_nobody():
    queue = scheduler()
    queue.add(request(1_000), now=0)
    queue.add(request(1_000, deadline=1.01), now=0, forecast=at(1000))
    assert len(queue.clear()) == 2


@pytest.mark.parametrize("running", [False, True], ids=["queued", "running"])
def test_a_call_that_could_never_be_in_time_is_refused_until_all_has_drained(running: bool):
    queue = scheduler()
    queue.add(request(100), now=0)
    if running:
        queue.next_batch(0)
    with pytest.raises(DeadlineUnreachable) as refusal:
        queue.add(request(5_000, deadline=0.1), now=0, forecast=at(100))
    assert refusal.value.retry_after == pytest.approx(1.0)


def test_an_idle_engine_lets_every_call_in_whatever_the_forecast():
    queue = scheduler()
    queue.add(request(1000, deadline=0.5), now=0, forecast=at(1))
    drain(queue)
    queue.add(request(1000, deadline=0.5), now=0, forecast=at(1))
    assert len(queue.clear()) == 2


@pytest.mark.parametrize("running", [False, True], ids=["queued", "running"])
def test_a_repeated_call_needs_all_that_it_waits_for_and_that_once(running: bool):
    queue, first = scheduler(batch=100), request(*[10] * 30)
    queue.add(first, now=0)
    if running:
        queue.next_batch(0)
    queue.add(request(*[10] * 10), now=0)
    with pytest.raises(DeadlineUnreachable) as refusal:
        queue.add(Future(first.sequences, deadline=0.19), now=0, forecast=at(1000))
    assert refusal.value.metadata["needed_seconds"] == "0.400"
    queue.add(Future(first.sequences, deadline=0.21), now=0, forecast=at(1000))


def test_a_small_call_with_a_short_deadline_is_let_in_behind_a_large_one():
    queue = scheduler(batch=100)
    queue.add(request(*[10] * 500), now=0, forecast=at(1000))
    queue.add(request(10, deadline=0.5), now=0, forecast=at(1000))
    assert len(queue.clear()) == 2


def test_tokens_are_accounted_for_under_any_sequence_of_events():
    chance = random.Random(7)
    queue = scheduler(batch=64, queue=2_000)
    shared = [sequence(chance.randint(1, 40)) for _ in range(30)]
    alive: list[Future] = []
    running: list[Batch] = []
    first_runs, kept = set[int](), list[Item]()  # kept, so that no id comes back
    for _ in range(3_000):
        event = chance.random()
        if event < 0.4:
            fresh = Future(
                [
                    chance.choice(shared) if chance.random() < 0.5 else sequence(chance.randint(1, 90))
                    for _ in range(3)
                ],
                priority=chance.choice(list(Priority)),
            )
            try:
                queue.add(fresh, now=0)
                alive.append(fresh)
            except QueueFull:
                pass
        elif event < 0.5 and alive:
            queue.discard(alive.pop(chance.randrange(len(alive))))
        elif event < 0.75:
            batch = queue.next_batch(0)
            if batch is not None:
                assert batch.tokens == sum(item.tokens for item in batch.items)
                assert len(batch.items) == 1 or batch.tokens <= 64
                assert first_runs.isdisjoint(map(id, batch.items))
                first_runs.update(map(id, batch.items))
                kept += batch.items
                running.append(batch)
        elif running:
            batch = running.pop(0)
            for item, waiters in zip(batch.items, queue.finish(batch), strict=True):
                for waiter, index in waiters:
                    waiter.deliver([(index, float(item.tokens))], 0)
        for queued in queue._queued.values():
            assert queued.pending_tokens == sum(item.tokens for item in queued.pending)
    while alive:
        queue.discard(alive.pop())
    for batch in running:
        assert queue.finish(batch) == [[]] * len(batch.items)
    assert (queue.queued_tokens, queue.running_tokens) == (0, 0)
    assert queue.clear() == []
    assert queue.next_batch(0) is None


def test_forgetting_calls_whose_sequences_are_all_equal_takes_no_longer_than_it_must():
    queue, equal = scheduler(queue=1 << 30), sequence(5)
    requests = [Future([equal] * 1_000) for _ in range(96)]
    for each in requests:
        queue.add(each, now=0)
    with processor_time() as seconds:
        for each in requests:
            each.cancel()
        queue.expire(now=0)
        assert queue.queued_tokens == 0
        assert seconds() < 5  # looking once for each sequence at every waiter took minutes
