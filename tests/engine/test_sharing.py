"""Callers have equal shares of the device, whatever the number of their calls; no thread and no clock."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from rerank_grpc.callers import Caller
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.scheduler import REFUSAL_FACTOR, RESERVE, Scheduler
from rerank_grpc.engine.sharing import LEAD_BATCHES, parts_of
from rerank_grpc.errors import DeadlineUnreachable, QueueFull
from rerank_grpc.types import Priority
from tests.engine.test_scheduler import at, next_of, scheduler, sequence

Sizes = Callable[[random.Random], list[int]]


def call(
    name: str, *tokens: int, deadline: float = math.inf, priority: Priority = Priority.INTERACTIVE
) -> Future:
    return Future([sequence(n) for n in tokens], deadline=deadline, priority=priority, caller=Caller(name))


def deliver(queue: Scheduler, now: float = 0.0) -> Counter[str]:
    """Runs a batch; returns the tokens that each caller has received of it."""
    batch, received = next_of(queue, now), Counter[str]()
    for item in batch.items:
        received[item.waiters[0][0].caller.name] += item.tokens
    for waiters in queue.finish(batch):
        for future, index in waiters:
            future.deliver([(index, 0.5)], now)
    return received


@dataclass
class Loop:
    """Callers who call again as soon as they are answered; times are batches."""

    callers: dict[str, tuple[int, Sizes]]  # how many connections each has, and the sizes of a call
    budget: int = 1_000
    queue: Scheduler = field(init=False)
    received: Counter[str] = field(default_factory=Counter)
    waits: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.queue = scheduler(self.budget, 1 << 40)
        self._chance = random.Random(1)
        self._inside: dict[Future, int] = {}

    def run(self, batches: int) -> None:
        for name, (connections, _) in self.callers.items():
            for _ in range(connections):
                self._call(name, 0)
        for now in range(1, batches + 1):
            self.received += deliver(self.queue, now)
            for future in [each for each in self._inside if each.done]:
                self.queue.discard(future)
                name = future.caller.name
                self.waits[name].append(now - self._inside.pop(future))
                self._call(name, now)

    def _call(self, name: str, now: int) -> None:
        future = call(name, *self.callers[name][1](self._chance))
        self.queue.add(future, now)
        self._inside[future] = now

    def share(self, name: str) -> float:
        return self.received[name] / self.received.total()


def passages(count: int) -> Sizes:
    return lambda chance: [chance.randint(40, 250) for _ in range(count)]


@pytest.mark.parametrize(
    "callers",
    [
        {"many": (100, passages(5)), "one": (1, passages(50))},
        {"many": (100, passages(5)), "one": (1, passages(5))},
        {"many": (50, passages(5)), "as many": (50, passages(5))},
        {"many": (100, passages(5)), "some": (10, passages(20)), "one": (1, passages(100))},
        {"long": (3, lambda chance: [900] * 4), "short": (5, lambda chance: [100] * 50)},
        {"alone too long": (2, lambda chance: [1_500] * 2), "short": (5, lambda chance: [100] * 50)},
    ],
    ids=lambda callers: " ".join(callers),
)
def test_callers_have_equal_shares_however_many_calls_they_make(callers: dict[str, tuple[int, Sizes]]):
    loop = Loop(callers)
    loop.run(1_000)
    for name in callers:
        assert loop.share(name) == pytest.approx(1 / len(callers), rel=0.05)


def test_a_caller_who_needs_little_enters_the_next_batch_beside_a_hundred_calls():
    loop = Loop({"many": (100, passages(5)), "little": (1, passages(1))})
    loop.run(500)
    assert max(loop.waits["little"]) <= 2
    assert sum(loop.waits["little"]) / len(loop.waits["little"]) < 1.1


@pytest.mark.parametrize("documents", [1, 5, 10, 30])
def test_a_new_caller_of_little_waits_no_longer_than_a_small_call_of_the_same_caller(documents: int):
    def batches(name: str) -> int:
        queue = scheduler(1_000, 1 << 40)
        for _ in range(5):
            queue.add(call("greedy", *[100] * 1_000), now=0)
        for _ in range(20):
            deliver(queue)
        late, count = call(name, *[130] * documents), 0
        queue.add(late, now=0)
        while not late.done:
            deliver(queue)
            count += 1
        return count

    assert batches("new") <= batches("greedy")


def test_what_a_caller_cannot_use_goes_to_the_others():
    queue = scheduler(100, 1 << 40)
    queue.add(call("greedy", *[10] * 1_000), now=0)
    for _ in range(50):
        queue.add(call("little", 10), now=0)
        received = deliver(queue)
        assert received == {"greedy": 90, "little": 10}


def test_no_credit_is_saved_by_a_caller_who_asks_for_little_or_nothing():
    """Then it asks for more than its part, and gets no more than its lead beyond that."""
    queue = scheduler(100, 1 << 40)
    queue.add(call("greedy", *[10] * 10_000), now=0)
    for _ in range(200):
        queue.add(call("little", 10), now=0)
        deliver(queue)
    for _ in range(200):
        deliver(queue)
    queue.add(call("little", *[10] * 5_000), now=0)
    received = sum((deliver(queue) for _ in range(100)), Counter[str]())
    assert received["little"] <= 100 * 50 + LEAD_BATCHES * 100 + 100


def test_a_caller_who_comes_and_goes_has_no_more_than_its_share():
    """It is away for the batch after each of its calls, and its call is a batch and a half."""
    queue, received = scheduler(100, 1 << 40), Counter[str]()
    queue.add(call("greedy", *[10] * 100_000), now=0)
    for _ in range(300):
        here = call("visitor", *[10] * 15)
        queue.add(here, now=0)
        while not here.done:
            received += deliver(queue)
        queue.discard(here)
        received += deliver(queue)
    assert received["visitor"] <= 0.52 * received.total()
    assert received["visitor"] >= 0.42 * received.total()


def test_every_caller_has_a_quarter_of_its_part_from_the_start():
    """Twenty callers who need less are ahead of it first."""
    queue, large = scheduler(100, 1 << 40), call("large", *[10] * 1_000)
    queue.add(large, now=0)
    received = Counter[str]()
    for _ in range(40):
        for number in range(20):
            queue.add(call(f"small {number}", *[10] * 3), now=0)
        received += deliver(queue)
    assert received["large"] >= 40 * 100 / 21 / 4 - 20


def test_interactive_calls_of_one_caller_go_before_batch_calls_of_another():
    queue = scheduler(100, 1 << 40)
    queue.add(call("nightly", *[10] * 1_000, priority=Priority.BATCH), now=0)
    queue.add(call("app", *[10] * 1_000), now=0)
    received = sum((deliver(queue) for _ in range(80)), Counter[str]())
    assert received["nightly"] == pytest.approx(80 * 100 / 8, abs=20)


def test_batch_calls_of_several_callers_share_what_batch_has():
    queue = scheduler(100, 1 << 40)
    queue.add(call("app", *[10] * 10_000), now=0)
    for _ in range(50):
        queue.add(call("many", *[10] * 100, priority=Priority.BATCH), now=0)
    queue.add(call("one", *[10] * 1_000, priority=Priority.BATCH), now=0)
    received = sum((deliver(queue) for _ in range(800)), Counter[str]())
    assert received["many"] == pytest.approx(received["one"], rel=0.05)
    assert received["many"] + received["one"] == pytest.approx(800 * 100 / 8, rel=0.05)


def test_a_sequence_of_two_callers_is_run_once_for_both():
    queue, same = scheduler(100, 1 << 40), [sequence(10) for _ in range(20)]
    first, second = Future(same, caller=Caller("first")), Future(same, caller=Caller("second"))
    for each in (first, second):
        queue.add(each, now=0)
    assert queue.queued_tokens == 200
    received = deliver(queue) + deliver(queue)
    assert received.total() == 200
    assert first.done
    assert second.done


def test_tokens_are_divided_equally_but_nobody_gets_more_than_needed():
    assert parts_of([10, 1_000, 1_000], 100) == [10, 45, 45]
    assert parts_of([10, 20, 1_000], 100) == [10, 20, 70]
    assert parts_of([10, 20], 100) == [10, 20]
    assert parts_of([math.inf], 100) == [100]


def test_credits_are_bounded_and_sum_up_to_nothing():
    chance = random.Random(5)
    queue, alive = scheduler(100, 5_000), list[Future]()
    names = [f"caller {number}" for number in range(5)]
    for _ in range(3_000):
        if chance.random() < 0.5:
            sizes = [chance.randint(1, 140) for _ in range(chance.randint(1, 8))]
            future = call(chance.choice(names), *sizes, priority=chance.choice(list(Priority)))
            try:
                queue.add(future, now=0)
                alive.append(future)
            except QueueFull:
                pass
        elif chance.random() < 0.2 and alive:
            queue.discard(alive.pop(chance.randrange(len(alive))))
        elif queue.queued_tokens:
            deliver(queue)
        for priority in Priority:
            credits = [each.credit_tokens for each in queue._standings.values() if each.priority is priority]
            assert sum(credits) == pytest.approx(0, abs=1e-3)
            assert min(credits, default=0.0) >= -(LEAD_BATCHES + 2) * 100


def needed(queue: Scheduler, name: str, sizes: list[int]) -> float:
    """The forecast for a call, as its refusal says it, at a token a second."""
    with pytest.raises(DeadlineUnreachable) as refusal:
        queue.add(call(name, *sizes, deadline=0.001), now=0, forecast=at(1))
    return float(refusal.value.metadata["needed_seconds"])


@pytest.mark.parametrize("seed", range(120))
def test_the_forecast_is_right_within_what_a_refusal_allows_for_when_callers_differ(seed: int):
    chance = random.Random(seed)
    queue, names = scheduler(100, 1 << 40), [f"caller {n}" for n in range(chance.randint(2, 5))]
    for _ in range(chance.randint(2, 16)):
        name = names[min(int(chance.expovariate(1)), len(names) - 1)]  # the first has most
        queue.add(call(name, *[10] * chance.randint(1, 80)), now=0)
    for _ in range(chance.randint(0, 12)):
        if queue.queued_tokens:
            deliver(queue)
    if not queue.queued_tokens:
        return
    name, sizes = chance.choice(names), [10] * chance.randint(1, 80)
    forecast, late, tokens = needed(queue, name, sizes), call(name, *sizes), 0
    queue.add(late, now=0)
    while not late.done:
        tokens += deliver(queue).total()
    assert tokens / REFUSAL_FACTOR - 100 <= forecast <= tokens * REFUSAL_FACTOR + 100


def test_a_call_is_not_refused_for_the_backlog_of_another_caller():
    queue = scheduler(100, 1 << 40)
    for _ in range(50):
        queue.add(call("many", *[10] * 10), now=0)
    queue.add(call("one", *[10] * 10, deadline=0.3), now=0, forecast=at(1_000))
    with pytest.raises(DeadlineUnreachable):
        queue.add(call("many", *[10] * 10, deadline=0.3), now=0, forecast=at(1_000))


def limited(name: str, share: float, *tokens: int) -> Future:
    return Future([sequence(n) for n in tokens], caller=Caller(name, queue_share=share))


def test_a_caller_fills_its_share_of_the_queue_and_no_more():
    queue = scheduler(queue=1_000)
    queue.add(limited("half", 0.5, *[10] * 40), now=0, forecast=at(1_000))
    with pytest.raises(QueueFull) as refusal:
        queue.add(limited("half", 0.5, *[10] * 20), now=0, forecast=at(1_000))
    assert refusal.value.message.startswith("half has its share of the queue full")
    assert refusal.value.metadata == {"queue_tokens": "400", "queue_capacity_tokens": "500"}
    assert refusal.value.retry_after == pytest.approx(0.1)
    queue.add(call("other", *[10] * 55), now=0)
    with pytest.raises(QueueFull, match="half has its share"):
        queue.check_queue(101, at(1_000), Caller("half", queue_share=0.5))
    queue.check_queue(1, at(1_000), Caller("half", queue_share=0.5))


def test_a_call_larger_than_its_callers_share_is_let_in_where_none_of_it_waits():
    queue = scheduler(queue=1_000)
    queue.add(call("other", *[10] * 20), now=0)
    queue.add(limited("tenth", 0.1, *[10] * 30), now=0)
    with pytest.raises(QueueFull):
        queue.add(limited("tenth", 0.1, 10), now=0)


def test_a_share_is_told_to_be_free_when_the_callers_own_calls_have_run():
    queue = scheduler(queue=1_000)
    queue.add(limited("half", 0.5, *[10] * 50), now=0)
    queue.add(call("other", *[10] * 40), now=0)
    with pytest.raises(QueueFull) as refusal:
        queue.add(limited("half", 0.5, *[10] * 20), now=0, forecast=at(100))
    seconds = refusal.value.retry_after or 0
    for _ in range(round(seconds * 100 / queue.max_batch_tokens)):
        deliver(queue)
    queue.add(limited("half", 0.5, *[10] * 20), now=0, forecast=at(100))


def test_whoever_has_filled_the_queue_keeps_no_other_caller_out():
    queue = scheduler(queue=1_000)
    queue.add(call("greedy", *[10] * 100), now=0)
    with pytest.raises(QueueFull):
        queue.add(call("greedy", 10), now=0)
    queue.add(call("other", *[10] * 10), now=0)
    assert queue.queued_tokens > queue.max_queue_tokens
    with pytest.raises(QueueFull):
        queue.add(call("third", *[10] * 10), now=0)
    assert queue.queued_tokens <= queue.max_queue_tokens * (1 + RESERVE)
