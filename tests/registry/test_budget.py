"""The choice of a batch budget; devices are formulas with noise, so nothing here waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rerank_grpc.kept import Kept
from rerank_grpc.registry import budget as budgets
from rerank_grpc.registry.budget import (
    LARGEST_BATCH_TOKENS,
    LONGEST_BATCH_SECONDS,
    LONGEST_SEARCH_SECONDS,
    MOST_PASSED,
    SMALLEST_BATCH_TOKENS,
    Choice,
    Cost,
    KeptBudget,
    choose,
    measure,
)
from tests.support import CARD

Seconds = Callable[[int], float]


class Device:
    """A device whose batches take what a formula says, while others leave it a share of the time."""

    def __init__(self, seconds: Seconds, *, share: float = 0.95) -> None:
        self.seconds, self.share = seconds, share
        self.samples: list[Cost] = []

    def noise(self) -> float:
        return 1.0

    def sample(self, budget: int) -> Cost:
        seconds = self.seconds(budget) * self.noise()
        self.samples.append(Cost(budget, seconds, seconds / self.share))
        return self.samples[-1]


class Noisy(Device):
    """A device 30 % faster or slower from round to round; each batch differs by 3 %, and 5 % are spikes."""

    def __init__(self, seconds: Seconds, seed: int) -> None:
        super().__init__(seconds)
        self.chance = random.Random(seed)
        self.drift = 1.0
        self.seen: set[int] = set()

    def sample(self, budget: int) -> Cost:
        if budget in self.seen or not self.seen:
            self.seen.clear()
            self.drift = self.chance.uniform(0.7, 1.3)
        self.seen.add(budget)
        return super().sample(budget)

    def noise(self) -> float:
        spike = self.chance.uniform(1.5, 4) if self.chance.random() < 0.05 else 1.0
        return self.drift * spike * self.chance.gauss(1, 0.03)


def budget_of(seconds: Seconds) -> int:
    return choose(measure(Device(seconds).sample)).tokens


def fixed(cost: float, rate: float) -> Seconds:
    return lambda tokens: cost + tokens / rate


def test_a_device_with_a_large_fixed_cost_a_batch_gets_large_batches():
    assert budget_of(fixed(0.001, 1e6)) >= 65_536


def test_a_device_whose_rate_is_flat_gets_small_batches():
    assert budget_of(fixed(0, 1e5)) <= 8_192


def test_a_device_that_gets_slower_with_size_stops_there():
    assert budget_of(lambda tokens: 0.001 + tokens / 1e6 * (1 if tokens <= 4_096 else 2)) == 4_096


def test_a_rate_that_falls_once_and_rises_again_does_not_end_the_search():
    assert (
        budget_of(lambda tokens: tokens / 1e6 * (1.1 if tokens == 1_024 else 1.05 if tokens < 4_096 else 1))
        == 4_096
    )


@pytest.mark.parametrize("rate", [200, 600, 1_500, 4_000, 20_000])
@pytest.mark.parametrize("cost", [0.0, 0.01, 0.3])
def test_no_device_gets_a_batch_longer_than_a_second_unless_the_smallest_is(cost: float, rate: float):
    seconds = fixed(cost, rate)
    chosen = budget_of(seconds)
    assert chosen == SMALLEST_BATCH_TOKENS or seconds(chosen) <= LONGEST_BATCH_SECONDS


@pytest.mark.parametrize("share", [0.95, 0.3, 0.05])
@pytest.mark.parametrize("rate", [100, 600, 2_000, 16_000, 1e6, 1e8])
def test_a_search_is_bounded_on_any_device(rate: float, share: float):
    device = Device(fixed(0.002, rate), share=share)
    measure(device.sample)
    first = {cost.tokens: cost for cost in device.samples}.values()
    seconds, passed = (sum(cost[place] for cost in device.samples) for place in (1, 2))
    assert seconds <= max(1.2 * LONGEST_SEARCH_SECONDS, 2 * sum(cost.seconds for cost in first))
    assert passed <= max(1.2 * MOST_PASSED * LONGEST_SEARCH_SECONDS, 2 * sum(cost.passed for cost in first))
    others = [cost.passed for cost in device.samples if cost.tokens != SMALLEST_BATCH_TOKENS]
    assert max(others, default=0) <= MOST_PASSED * LONGEST_BATCH_SECONDS


def test_only_batches_that_fit_the_memory_are_tried():
    device = Device(fixed(0.001, 1e6))
    assert choose(measure(device.sample, lambda tokens: tokens <= 8_192)).tokens == 8_192
    assert max(cost.tokens for cost in device.samples) == 8_192


@pytest.mark.parametrize("turn", [1, 3])
def test_a_batch_that_ran_out_of_memory_is_never_chosen(turn: int):
    device, tried = Device(fixed(0.001, 1e6)), list[int]()

    def sample(budget: int) -> Cost:
        tried.append(budget)
        fits = budget < 8_192 or tried.count(8_192) < turn
        return device.sample(budget)._replace(fits=fits)

    assert choose(measure(sample)).tokens == 4_096
    assert tried.count(8_192) == turn
    assert tried.count(16_384) < tried.count(4_096)


def test_the_smallest_batch_is_chosen_where_none_fits_the_memory():
    device = Device(fixed(0.001, 1e6))
    rounds = measure(lambda budget: device.sample(budget)._replace(fits=False))
    assert choose(rounds).tokens == SMALLEST_BATCH_TOKENS
    assert len(device.samples) == 1


CURVES: dict[str, Seconds] = {
    "launches": fixed(0.002, 1e6),
    "flat": fixed(0, 2e4),
    "cache": lambda tokens: 0.002 + tokens / 2e4 * (1 + max(0, tokens - 2_048) / 2e4),
    "small model": fixed(0.003, 2e4),
    "base": fixed(0.032, 2_300),
}


@pytest.mark.parametrize("name", CURVES)
def test_noise_does_not_decide(name: str):
    seconds, bad = CURVES[name], 0
    best = min(seconds(budget) / budget for budget in measure(Device(seconds).sample)[0])
    for seed in range(200):
        device = Noisy(seconds, seed)
        chosen = choose(measure(device.sample)).tokens
        bad += best / (seconds(chosen) / chosen) < 0.97
    assert bad <= 10  # of 200


def test_a_measurement_beside_busy_processes_counts_as_disturbed():
    seconds = fixed(0.01, 1e5)
    assert not choose(measure(Device(seconds, share=0.9).sample)).disturbed
    assert choose(measure(Device(seconds, share=0.4).sample)).disturbed


def test_a_measurement_beside_another_engines_batches_counts_as_disturbed():
    device = Device(fixed(0.01, 1e5))
    beside = iter([True] * 5)
    assert choose(
        measure(lambda budget: device.sample(budget)._replace(alone=not next(beside, False)))
    ).disturbed


def kept_in(folder: Path, **card: object) -> KeptBudget:
    return KeptBudget(replace(CARD, **card), Kept("budgets", folder))  # type: ignore[arg-type]


def test_what_one_start_keeps_the_next_finds(tmp_path: Path):
    assert kept_in(tmp_path).read() is None
    kept_in(tmp_path).write(Choice(2_048, True, "measured", 0.4))
    found = kept_in(tmp_path).read()
    assert found is not None
    assert (found.tokens, found.disturbed, found.share) == (2_048, True, 0.4)


@pytest.mark.parametrize("card", [{"revision": "other"}, {"precision": "int8"}], ids=str)
def test_another_model_or_precision_has_a_budget_of_its_own(tmp_path: Path, card: dict[str, str]):
    kept_in(tmp_path).write(Choice(2_048, False, ""))
    assert kept_in(tmp_path, **card).read() is None


def test_a_tree_that_is_not_installed_keeps_its_budgets_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", [])  # where importlib.metadata looks
    kept_in(tmp_path).write(Choice(2_048, False, ""))
    assert kept_in(tmp_path).read() is not None


def test_another_processor_or_thread_count_has_a_budget_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept_in(tmp_path).write(Choice(2_048, False, ""))
    for name, other in (("device_name", lambda device: "another"), ("threads", lambda: 99)):
        with monkeypatch.context() as patch:
            if name == "threads":
                patch.setattr("torch.get_num_threads", other)
            else:
                patch.setattr(budgets, name, other)
            assert kept_in(tmp_path).read() is None
    assert kept_in(tmp_path).read() is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 100], ids=["empty", "cut", "list", "bytes"])
def test_a_damaged_file_is_ignored_and_written_anew(tmp_path: Path, content: bytes):
    kept = kept_in(tmp_path)
    kept.write(Choice(2_048, False, ""))
    (file,) = (tmp_path / "budgets").iterdir()
    file.write_bytes(content)
    assert kept.read() is None
    kept.write(Choice(1_024, False, ""))
    found = kept.read()
    assert found is not None
    assert found.tokens == 1_024


@pytest.mark.parametrize("tokens", [0, -1, 511, 2 * LARGEST_BATCH_TOKENS, True, "1024", 1024.0, None])
def test_a_kept_number_that_no_search_gives_is_ignored(tmp_path: Path, tokens: object):
    kept = kept_in(tmp_path)
    kept.write(Choice(tokens, False, ""))  # type: ignore[arg-type]
    assert kept.read() is None
