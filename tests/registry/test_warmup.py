"""What a new engine runs before its first call and when nobody calls; its threads are real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import Counts, DeviceClock
from rerank_grpc.kept import Kept
from rerank_grpc.registry import warmup
from rerank_grpc.registry.budget import LARGEST_BATCH_TOKENS, SMALLEST_BATCH_TOKENS, Choice, Cost, KeptBudget
from rerank_grpc.registry.warmup import CallArrived, EngineProbe, correct, warm_up
from rerank_grpc.sequence import Sequence
from rerank_grpc.types import Priority
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.support import (
    CARD,
    WAIT,
    CountingRunner,
    HeldRunner,
    SmallMemory,
    WordTokenizer,
    serving,
    stub_of,
    submit,
    tokens_of,
    wait_for,
)


@contextmanager
def started(runner: CountingRunner, clock: DeviceClock | None = None, **settings: Any) -> Iterator[Engine]:
    engine = Engine(runner, EngineSettings(**settings), clock=clock)
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(runner, HeldRunner):
            runner.let_all()
        engine.close()


def test_a_kept_budget_is_taken_at_once(tmp_path: Path):
    kept, runner = Kept("budgets", tmp_path), CountingRunner()
    KeptBudget(CARD, kept).write(Choice(2_048, False, ""))
    with started(runner) as engine:
        warm_up(engine, WordTokenizer(), CARD, kept)
        assert engine.max_batch_tokens == 2_048
    assert max(map(tokens_of, runner.batches)) <= 2_048
    assert len(runner.batches) <= 10


def test_a_measured_budget_is_kept(tmp_path: Path):
    kept = Kept("budgets", tmp_path)
    with started(CountingRunner()) as engine:
        warm_up(engine, WordTokenizer(), CARD, kept)
        found = KeptBudget(CARD, kept).read()
        assert found is not None
        assert found.tokens == engine.max_batch_tokens


def test_a_configured_budget_is_left_alone(tmp_path: Path):
    kept, runner = Kept("budgets", tmp_path), CountingRunner()
    KeptBudget(CARD, kept).write(Choice(2_048, True, ""))
    with started(runner, max_batch_tokens=640) as engine:
        warm_up(engine, WordTokenizer(), CARD, kept)
        assert engine.max_batch_tokens == 640
        assert engine._companion is None
    assert max(map(tokens_of, runner.batches)) <= 640


def test_a_batch_of_passages_is_nearly_full_and_mixed():
    with started(CountingRunner()) as engine:
        probe = EngineProbe(engine, WordTokenizer(), CARD)
        for budget in (512, 1_024, 8_192):
            lengths = [len(sequence) for sequence in probe.passages(budget)]
            assert 0.75 * budget <= sum(lengths) <= budget
            assert len(set(lengths)) > 2


class Quiet(EngineProbe):
    """Believes that nothing disturbed it, and that batches of 4,096 tokens are the best."""

    def sample(self, budget: int) -> Cost:
        seconds = budget * (1e-5 if budget == 4_096 else 2e-5)
        return super().sample(budget)._replace(tokens=budget, seconds=seconds, passed=seconds)


def quiet(engine: Engine) -> Quiet:
    return Quiet(engine, WordTokenizer(), CARD)


class Disturbed(Quiet):
    def sample(self, budget: int) -> Cost:
        return super().sample(budget)._replace(passed=0.3)


DISTURBED = Choice(512, True, "measured under load")


@contextmanager
def correcting(probe: EngineProbe, folder: Path, idle_seconds: float = 0.01) -> Iterator[KeptBudget]:
    kept = KeptBudget(CARD, Kept("budgets", folder))
    kept.write(DISTURBED)
    probe.set_budget(DISTURBED.tokens)
    probe.engine.accompany(lambda: correct(probe, DISTURBED, kept, idle_seconds))
    yield kept


def tokens_kept(kept: KeptBudget) -> int | None:
    found = kept.read()
    return found.tokens if found else None


def test_a_disturbed_budget_is_corrected_when_the_engine_is_idle_and_kept(tmp_path: Path):
    with (
        started(CountingRunner()) as engine,
        correcting(quiet(engine), tmp_path) as kept,
    ):
        wait_for(lambda: engine.max_batch_tokens == 4_096 and tokens_kept(kept) == 4_096)
        found = kept.read()
        assert found is not None
        assert not found.disturbed
        ended(engine)
        assert engine._meter._tokens[1] > 2_048  # the costs are those of its batches now


def ended(engine: Engine) -> None:
    """Waits until the correction has ended."""
    assert engine._companion is not None
    engine._companion.join(WAIT)
    assert not engine._companion.is_alive()


def test_a_correction_stops_as_soon_as_a_call_comes(tmp_path: Path):
    runner = HeldRunner()
    with started(runner) as engine, correcting(quiet(engine), tmp_path, 0.2) as kept:
        runner.await_batch()  # the correction's first
        call = submit(engine, [Sequence.of([1, 2, 3])])
        runner.let(1)
        runner.await_batch()
        assert runner.batches[-1] is not None
        runner.let(1)
        call.wait()
        assert len(runner.batches) == 2  # nothing came between
        assert tokens_kept(kept) == DISTURBED.tokens
        wait_for(lambda: engine.max_batch_tokens == DISTURBED.tokens)


def test_a_correction_that_is_disturbed_too_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warmup, "MOST_CORRECTIONS", 2)
    with started(CountingRunner()) as engine:
        probe = Disturbed(engine, WordTokenizer(), CARD)
        with correcting(probe, tmp_path) as kept:
            ended(engine)
            assert engine.max_batch_tokens == DISTURBED.tokens
            assert tokens_kept(kept) == DISTURBED.tokens


class Frugal(Quiet):
    """Gets a tenth of the time, as by a quota."""

    def sample(self, budget: int) -> Cost:
        cost = super().sample(budget)
        return cost._replace(passed=10 * cost.seconds)


@pytest.mark.parametrize(("share", "tokens"), [(0.105, 4_096), (0.5, 512)])
def test_a_share_that_an_idle_engine_gets_again_is_the_machines(tmp_path: Path, share: float, tokens: int):
    with started(CountingRunner()) as engine:
        probe, kept = Frugal(engine, WordTokenizer(), CARD), KeptBudget(CARD, Kept("budgets", tmp_path))
        earlier = DISTURBED._replace(share=share)
        probe.set_budget(earlier.tokens)
        correct(probe, earlier, kept, 0.001)
        assert engine.max_batch_tokens == tokens
        assert tokens_kept(kept) == (tokens if tokens == 4_096 else None)


class Interrupted(Quiet):
    """Is called in every measurement."""

    attempts = 0

    def sample(self, budget: int) -> Cost:
        self.attempts += 1
        raise CallArrived


def test_calls_that_come_again_and_again_end_the_corrections(tmp_path: Path):
    with started(CountingRunner()) as engine:
        probe = Interrupted(engine, WordTokenizer(), CARD)
        with correcting(probe, tmp_path, 0.001) as kept:
            ended(engine)
            assert probe.attempts == warmup.MOST_CORRECTIONS
            assert tokens_kept(kept) == DISTURBED.tokens


def test_a_budget_measured_beside_another_engine_is_disturbed():
    clock, other = DeviceClock(), HeldRunner()
    with started(other, clock) as beside, started(CountingRunner(), clock) as engine:
        probe = EngineProbe(engine, WordTokenizer(), CARD)
        submit(beside, [Sequence.of([1, 2, 3])])
        other.await_batch()
        assert not probe.sample(512).alone
        assert probe.best_budget().disturbed
        other.let_all()
        wait_for(lambda: beside.idle_seconds > 0)
        assert probe.sample(512).alone


def test_a_correction_waits_until_the_other_engines_of_the_device_are_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock, other, runner = DeviceClock(), HeldRunner(), CountingRunner()
    with started(other, clock) as beside, started(runner, clock) as engine:
        submit(beside, [Sequence.of([1, 2, 3])])
        other.await_batch()
        waits, wait_for_end = list[float](), engine.wait_for_end

        def counted(seconds: float) -> bool:
            waits.append(seconds)
            return wait_for_end(seconds)

        monkeypatch.setattr(engine, "wait_for_end", counted)
        with correcting(quiet(engine), tmp_path) as kept:
            wait_for(lambda: len(waits) > 3)
            assert runner.batches == []
            other.let_all()
            wait_for(lambda: tokens_kept(kept) == 4_096)


def test_a_correction_stops_as_soon_as_another_engine_gets_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(warmup, "MOST_CORRECTIONS", 1)
    clock, runner = DeviceClock(), HeldRunner()
    with started(CountingRunner(), clock) as beside, started(runner, clock) as engine:
        with correcting(quiet(engine), tmp_path) as kept:
            runner.await_batch()
            submit(beside, [Sequence.of([1, 2, 3])]).wait()
            runner.let_all()
            ended(engine)
        assert len(runner.batches) == 1
        assert tokens_kept(kept) == DISTURBED.tokens


def test_a_budget_that_runs_out_of_memory_while_it_is_measured_is_not_chosen():
    with started(SmallMemory(1_300)) as engine:
        assert quiet(engine).best_budget().tokens <= 1_024


def test_a_correction_takes_no_budget_that_runs_out_of_memory(tmp_path: Path):
    with started(SmallMemory(1_300)) as engine, correcting(quiet(engine), tmp_path) as kept:
        ended(engine)
        assert engine.max_batch_tokens <= 1_024
        assert tokens_kept(kept) == engine.max_batch_tokens


def test_a_correction_that_changes_nothing_leaves_a_budget_lowered_that_ran_out_of_memory(tmp_path: Path):
    earlier = DISTURBED._replace(tokens=2_048)
    with started(SmallMemory(1_300)) as engine:
        probe = Disturbed(engine, WordTokenizer(), CARD)
        probe.set_budget(earlier.tokens)
        correct(probe, earlier, KeptBudget(CARD, Kept("budgets", tmp_path)), 0.001)
        assert engine.max_batch_tokens == 1_024


@pytest.mark.parametrize(("seconds", "runs"), [(0.1, 3), (0.6, 2), (1.5, 1)])
def test_one_sample_decides_on_a_cost_only_if_it_takes_over_a_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, runs: int
):
    ran = list[float]()

    class Slow(EngineProbe):
        def run(self, sequences: tuple[Sequence, ...], priority: Priority = Priority.INTERACTIVE) -> Counts:
            ran.append(seconds)
            return Counts(1, 10, seconds + 1 / len(ran))  # the first was disturbed

    monkeypatch.setattr(warmup, "monotonic", lambda: sum(ran))
    with started(CountingRunner()) as engine:
        assert Slow(engine, WordTokenizer(), CARD).cheapest(()).busy_seconds == seconds + 1 / runs
    assert len(ran) == runs


def test_a_budget_that_ran_out_of_memory_is_not_corrected(tmp_path: Path):
    runner = CountingRunner()
    with started(runner) as engine:
        engine.max_batch_tokens = 100
        correct(quiet(engine), DISTURBED, KeptBudget(CARD, Kept("b", tmp_path)), 0.01)
        assert engine.max_batch_tokens == 100
    assert runner.batches == []


def test_closing_an_engine_ends_its_correction(tmp_path: Path):
    with started(HeldRunner()) as engine, correcting(quiet(engine), tmp_path, 3_600):
        pass
    assert engine._companion is not None
    assert not engine._companion.is_alive()


@pytest.mark.timeout(60)
def test_a_served_models_budget_was_measured_before_it_was_ready():
    with serving() as server, stub_of(server.port) as stub:
        model = stub.ListModels(pb.ListModelsRequest()).models[0]
        health = stub.Health(pb.HealthRequest())
        assert SMALLEST_BATCH_TOKENS <= model.max_batch_tokens <= LARGEST_BATCH_TOKENS
        assert health.tokens_per_second > 0
