"""What batches have cost and will cost, and which of them hangs; times are arguments, devices formulas."""

import random

import pytest

from rerank_grpc.engine.meter import HALF_LIFE_SECONDS, Counts, Meter, Watchdog
from tests.engine.test_engine import outputs, running, sequences
from tests.engine.test_overlap import Ahead
from tests.support import CountingRunner, submit

SMALLEST, FULL = 10, 2_048
FIXED, PER_TOKEN = 0.010, 0.00025
HANG = 8.0  # seconds


def cost(tokens: int, *, fixed: float = FIXED, per_token: float = PER_TOKEN) -> float:
    return fixed + tokens * per_token


class Device:
    """Runs batches one after another; the meter was calibrated as the fields say."""

    def __init__(self, **believed: float) -> None:
        self.now = 0.0
        self.meter = Meter()
        self.meter.calibrate(
            Counts(1, SMALLEST, cost(SMALLEST, **believed)),
            Counts(2, 2 * FULL, 2 * cost(FULL, **believed)),
        )

    def run(self, tokens: int, seconds: float | None = None) -> None:
        seconds = cost(tokens) if seconds is None else seconds
        self.now += seconds
        self.meter.add(tokens, seconds, started=self.now - seconds, ended=self.now)

    def error(self, tokens: int) -> float:
        """By what factor the meter is wrong about so many tokens."""
        batches = max(1.0, tokens / FULL)
        return self.meter.seconds(tokens, FULL, self.now) / (batches * cost(min(tokens, FULL)))


@pytest.mark.parametrize("tokens", [SMALLEST, 200, FULL, 40 * FULL])
def test_a_calibrated_meter_is_right_about_every_size(tokens: int):
    assert Device().error(tokens) == pytest.approx(1)


def test_nothing_takes_no_time():
    assert Device().meter.seconds(0, FULL, 0) == 0


def test_smaller_batches_than_the_full_one_pay_their_fixed_cost_more_often():
    seconds = Device().meter.seconds(1_000, 100, 0)
    assert seconds == pytest.approx(10 * cost(100))


def test_a_frozen_batch_is_one_among_others():
    device = Device()
    device.run(SMALLEST, 8.0)
    assert device.error(SMALLEST) < 1.1
    for _ in range(3):
        device.run(SMALLEST)
    assert device.error(40 * FULL) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("wrong", [1 / 3, 3])
@pytest.mark.parametrize("tokens", [1, SMALLEST, 2 * SMALLEST, 10 * SMALLEST])
def test_a_thousand_small_batches_correct_their_own_cost_and_leave_that_of_full_ones(
    tokens: int, wrong: float
):
    device = Device(fixed=FIXED * wrong)
    for _ in range(1_000):
        device.run(tokens, cost(max(tokens, SMALLEST)))
    assert device.error(max(tokens, SMALLEST)) == pytest.approx(1, rel=0.05)
    for large in (FULL, 8 * FULL, 40 * FULL):
        assert 1 / 1.5 < device.error(large) < 1.5


def test_full_batches_correct_their_own_cost():
    device = Device(per_token=PER_TOKEN / 4)
    for _ in range(60):
        device.run(FULL)
    assert device.error(FULL) == pytest.approx(1, rel=0.05)


def test_batches_of_all_sizes_and_noise_leave_the_estimate_near_the_truth():
    chance, device = random.Random(7), Device(fixed=FIXED * 3, per_token=PER_TOKEN * 3)
    for _ in range(1_000):
        tokens = chance.randint(SMALLEST, FULL)
        device.run(
            tokens,
            cost(tokens) * chance.choice([0.8, 0.9, 1, 1, 1.1, 1.2, 30 if chance.random() < 0.1 else 1]),
        )
    for tokens in (SMALLEST, 100, FULL):
        assert 1 / 1.5 < device.error(tokens) < 1.5


def test_while_nothing_runs_the_estimate_returns_to_what_the_warm_up_measured():
    device = Device()
    for _ in range(100):
        device.run(FULL, 4 * cost(FULL))
    assert device.error(FULL) == pytest.approx(4, rel=0.01)
    device.now += HALF_LIFE_SECONDS
    assert device.error(FULL) == pytest.approx(2, rel=0.01)
    device.now += HALF_LIFE_SECONDS
    assert device.error(FULL) == pytest.approx(2**0.5, rel=0.01)


def test_a_batch_after_a_pause_in_the_traffic_corrects_the_estimate_that_has_drifted():
    device = Device()
    for _ in range(100):
        device.run(FULL, 4 * cost(FULL))
    device.now += 100 * HALF_LIFE_SECONDS
    device.run(FULL)
    assert device.error(FULL) == pytest.approx(1)


def test_nothing_is_predicted_before_the_warm_up_has_measured():
    meter = Meter()
    meter.add(50, 0.5, started=0, ended=0.5)
    assert not meter.calibrated
    assert meter.counts == Counts(1, 50, 0.5)


def test_rates_follow_from_counts():
    counts = Counts(2, 150, 1.0)
    assert counts.tokens_per_second == 150
    assert counts.since(Counts(1, 50, 0.5)) == Counts(1, 100, 0.5)


def test_nothing_done_is_no_division_by_zero():
    assert Counts().tokens_per_second == 0


@pytest.mark.parametrize("runner", [CountingRunner(), Ahead()], ids=["one at a time", "overlapping"])
def test_an_engine_counts_its_batches(runner: CountingRunner):
    with running(runner, max_batch_tokens=40) as engine:
        outputs(submit(engine, sequences(8)))
        counts = engine.counts
    assert counts.batches == len(runner.batches)
    assert counts.tokens == 80
    assert counts.busy_seconds > 0


def test_a_batch_that_waited_for_another_counts_only_its_own_time():
    runner = Ahead(held=True)
    with running(runner, max_batch_tokens=40) as engine:
        request = submit(engine, sequences(8))
        runner.await_launch(2)
        runner.let_all()
        outputs(request)
        assert engine.counts.busy_seconds <= request.finished_at - request.admitted_at


def looks(watchdog: Watchdog, started: float | None, first: float, last: float) -> float | None:
    """Looks as often as it is meant to; returns when it found a hang."""
    now = first
    while now <= last:
        if watchdog.look(started, now):
            return now
        now += watchdog.interval
    return None


@pytest.mark.parametrize("started", [0.0, 0.3, 0.99])
def test_a_hang_is_found_within_a_quarter_more_than_its_time(started: float):
    found = looks(Watchdog(HANG), started, first=1, last=60)
    assert found is not None
    assert HANG < found - started <= HANG * 1.25


def test_a_pause_of_an_hour_is_no_hang():
    watchdog = Watchdog(HANG)
    assert looks(watchdog, 0.5, first=1, last=3) is None
    assert not watchdog.look(0.5, 3_603)
    assert looks(watchdog, 0.5, first=3_604, last=3_605) is None


def test_a_pause_before_the_first_look_is_no_hang():
    watchdog = Watchdog(HANG)
    assert not watchdog.look(None, 0)
    assert not watchdog.look(0.5, 1_000)


def test_a_hang_is_found_after_a_pause_too():
    watchdog = Watchdog(HANG)
    looks(watchdog, 0.5, first=1, last=2)
    found = looks(watchdog, 0.5, first=1_000, last=1_060)
    assert found is not None
    assert found <= 1_000 + HANG


def test_batches_that_follow_each_other_are_no_hang():
    watchdog = Watchdog(HANG)
    assert not any(watchdog.look(now - 0.1, now) for now in range(100))


def test_nothing_hangs_where_nothing_runs():
    assert looks(Watchdog(HANG), None, first=0, last=100) is None
