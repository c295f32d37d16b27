"""The simulator keeps the laws of queues, decides by the service's own code, and agrees with real servers."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import simpy

from benchmarks import report
from benchmarks.simulate import __main__ as command
from benchmarks.simulate import callers, costs, loads, measured
from benchmarks.simulate.costs import Cost
from benchmarks.simulate.loads import Arrival, Sample
from benchmarks.simulate.replay import Figures, Replay, percentile, replay
from benchmarks.simulate.replica import ANSWERED, Replica, Setup, sequences_of
from benchmarks.simulate.rules import RULES
from rerank_grpc import gate
from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine import meter, scheduler

RESULTS = report.RESULTS
DEVICE = Cost(0.02, 1 / 10_000, 1_024)
NO_QUEUE_LIMIT = EngineSettings(max_queue_tokens=1 << 40)


def poisson(rate: float, seconds: float, sizes: loads.Sizes, seed: int = 1) -> list[Arrival]:
    """Makes arrivals of a constant rate."""
    return list(loads.poisson(lambda at: rate, rate, seconds, sizes, random.Random(seed)))


def at_share(share: float, calls: int, replicas: int, *, seed: int = 1) -> list[Arrival]:
    """Makes calls of 1 to 9 passages that ask for a share of what the devices can do."""
    sizes = loads.documents(1, 9)
    rate = share * replicas * DEVICE.tokens_per_second / loads.mean_tokens(sizes)
    return poisson(rate, calls / rate, sizes, seed)


# Laws


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_single_documents_wait_as_the_theory_of_one_server_says(load: float):
    """Pollaczek and Khinchine, with constant service: the mean wait is load ÷ 2(1 − load) services."""
    service, tokens = 0.1, 100
    one_at_a_time = Cost(service, 1e-12, tokens)
    setup = Setup(one_at_a_time, NO_QUEUE_LIMIT, max_calls=1 << 30, deadline=math.inf)
    arrivals = poisson(load / service, 20_000 * service / load, loads.documents(1, 1, tokens))
    found = replay(arrivals, [setup], "round-robin")
    waits = [each.seconds - service for each in found.outcomes]
    expected = load / (2 * (1 - load)) * service
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.1)
    assert sum(found.busy_seconds) == pytest.approx(len(arrivals) * service)
    assert {each.code for each in found.outcomes} == {ANSWERED}


def test_batches_make_what_waits_cheaper_than_one_at_a_time():
    calls = [Arrival(0.0, (100,), number) for number in range(11)]
    found = replay(calls, [Setup(DEVICE, deadline=math.inf)], "round-robin")
    # The first goes alone, the others together.
    assert found.busy_seconds[0] == pytest.approx(DEVICE.of(100) + DEVICE.of(1_000))
    assert found.seconds == pytest.approx(found.busy_seconds[0])


def test_a_caller_with_a_hundred_connections_has_one_callers_share_of_a_replica():
    many, one = callers.Load("many", 90, 5), callers.Load("one", 1, 50)
    found = callers.run((many, one), named=True)
    assert found["one"].share == pytest.approx(0.5, abs=0.05)
    assert found["one"].refused == 0
    alike = callers.run((many, one), named=False, seconds=600)
    assert alike["one"].share < 0.05


@pytest.mark.parametrize("rule", RULES)
def test_every_call_is_answered_or_refused_once(rule: str):
    setup = Setup(DEVICE, EngineSettings(max_queue_tokens=12_000), max_calls=60, deadline=2.0)
    arrivals = at_share(1.6, 1_500, 3)
    found = replay(arrivals, [setup] * 3, rule)
    assert Counter(each.arrival.number for each in found.outcomes) == Counter(
        each.number for each in arrivals
    )
    codes = Counter(each.code for each in found.outcomes)
    assert set(codes) <= {ANSWERED, "QueueFull", "DeadlineUnreachable", "DeadlineExceeded"}
    assert len(arrivals) > codes[ANSWERED] > len(arrivals) / 3
    assert all(each.seconds <= 2.0 + 1e-9 for each in found.outcomes)
    figures = Figures.of(found, 0.1)
    assert figures.answered + sum(figures.refused.values()) == figures.calls == len(arrivals)


def test_each_kind_of_refusal_comes_of_its_own_cause():
    arrivals = at_share(2.0, 400, 1)
    plain = Setup(DEVICE, NO_QUEUE_LIMIT, max_calls=1 << 30, deadline=math.inf)

    def codes(setup: Setup) -> set[str]:
        return {each.code for each in replay(arrivals, [setup], "random").outcomes} - {ANSWERED}

    assert codes(plain) == set()
    assert codes(replace(plain, max_calls=10)) == {"QueueFull"}
    assert codes(replace(plain, engine=EngineSettings(max_queue_tokens=4_000))) == {"QueueFull"}
    assert "DeadlineUnreachable" in codes(replace(plain, deadline=0.3))


def test_a_device_never_works_for_longer_than_time_passes():
    found = replay(at_share(1.2, 600, 2), [Setup(DEVICE)] * 2, "round-robin")
    figures = Figures.of(found, 0.0)
    assert 0.9 < figures.utilisation <= figures.most_utilisation <= 1 + 1e-9


def test_the_least_queued_seconds_beat_chance():
    arrivals = at_share(0.85, 3_000, 8)

    def figures(rule: str, stale: float = 0.0) -> Figures:
        return Figures.of(replay(arrivals, [Setup(DEVICE, deadline=math.inf)] * 8, rule, stale=stale), 0.1)

    least, chance = figures("least-queued"), figures("random")
    assert least.p95 < 0.8 * chance.p95
    assert least.p50 < chance.p50
    assert figures("two-choices").p95 < chance.p95
    # All callers run to the replica that was the least busy: what is told late misleads.
    assert figures("least-queued", stale=5.0).p95 > 2 * least.p95


def test_the_same_seed_gives_the_same_figures():
    arrivals = at_share(0.8, 300, 2)
    one, other = (replay(arrivals, [Setup(DEVICE)] * 2, "two-choices", seed=3) for _ in range(2))
    assert one == other
    assert replay(arrivals, [Setup(DEVICE)] * 2, "two-choices", seed=4) != one


def test_two_batches_in_flight_share_the_budget_and_leave_no_gap():
    calls = [Arrival(0.0, (100,) * 10, number) for number in range(4)]
    found = replay(calls, [Setup(DEVICE, deadline=math.inf, depth=2)], "round-robin")
    assert found.busy_seconds[0] == pytest.approx(8 * DEVICE.of(500))
    assert found.seconds == pytest.approx(found.busy_seconds[0])


# The service's own decisions


def test_the_scheduler_the_meter_and_the_gate_are_the_services():
    replica = Replica(simpy.Environment(), Setup(DEVICE))
    assert type(replica.scheduler) is scheduler.Scheduler
    assert type(replica.meter) is meter.Meter
    assert type(replica.gate) is gate.Gate


def test_a_change_of_the_engines_rule_changes_the_simulation(monkeypatch: pytest.MonkeyPatch):
    arrivals, setup = at_share(0.7, 200, 1), Setup(DEVICE, deadline=20.0)
    assert Figures.of(replay(arrivals, [setup], "random"), 0.0).refused == {}
    monkeypatch.setattr(scheduler, "REFUSAL_FACTOR", 0.0)
    assert Figures.of(replay(arrivals, [setup], "random"), 0.0).refused["DeadlineUnreachable"] > 20


def test_a_small_call_does_not_wait_for_a_large_one():
    calls = [Arrival(0.0, (100,) * 1_000, 0), Arrival(1.0, (100,), 1)]
    found = replay(calls, [Setup(DEVICE, deadline=math.inf)], "round-robin")
    seconds = {each.arrival.number: each.seconds for each in found.outcomes}
    assert seconds[1] <= 2 * DEVICE.of(DEVICE.budget)
    assert seconds[0] > 10


def test_no_two_pairs_are_one():
    sequences = [*sequences_of(Arrival(0.0, (1, 1, 7), 0)), *sequences_of(Arrival(0.0, (1, 7), 1))]
    assert [len(each) for each in sequences] == [1, 1, 7, 1, 7]
    assert len(set(sequences)) == 5


# Arrivals


def test_a_day_has_its_peak_where_it_should():
    rate = loads.diurnal(10.0, 0.5, peak_hour=14.0)
    assert rate(14 * 3_600) == pytest.approx(15.0)
    assert rate(2 * 3_600) == pytest.approx(5.0)
    day = list(loads.poisson(rate, 15.0, loads.DAY / 24, loads.documents(1, 1, 5), random.Random(1)))
    assert len(day) == pytest.approx(3_600 * 6.0, rel=0.2)  # the first hour


def test_a_sample_keeps_the_rate_and_the_curve():
    rate, sizes = loads.diurnal(2.0, 1.0), loads.documents(1, 1, 5)
    sample = Sample.of(2.0 * loads.DAY, 8_000)
    assert sample.times == pytest.approx(21.6)
    found = list(loads.poisson(rate, 4.0, loads.DAY, sizes, random.Random(1), sample))
    assert len(found) == pytest.approx(8_000, rel=0.05)
    assert found[-1].at < loads.DAY / sample.times
    hours = Counter(int(sample.day_time(each.at) // 3_600) for each in found)
    assert hours[13] > 20 * max(1, hours[2])


def test_a_sample_replays_the_beginning_of_each_slice():
    sample = Sample(10.0)
    assert sample.replay_time(45.0) == 45.0
    assert sample.replay_time(95.0) is None
    assert sample.replay_time(loads.SLICE + 45.0) == sample.part + 45.0
    assert sample.day_time(sample.part + 45.0) == loads.SLICE + 45.0


def test_a_file_tells_times_and_documents(tmp_path: Path):
    path = tmp_path / "calls.csv"
    path.write_text("# a day\n0.5,3\n2\n\n2.5,1\n")
    found = loads.read_file(path, loads.documents(2, 2, 10), random.Random(1))
    assert [(each.at, each.tokens) for each in found] == [
        (0.5, (10, 10, 10)),
        (2.0, (10, 10)),
        (2.5, (10,)),
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1\nnoon\n", "calls.csv:2: not SECONDS or SECONDS,DOCUMENTS: 'noon'"),
        ("2\n1\n", "calls.csv:2: times must not fall"),
        ("1,0\n", "calls.csv:1: times must not fall, and a call has a document"),
        ("nan\n", "calls.csv:1: times must not fall"),
        ("\n", "calls.csv: no arrivals"),
    ],
)
def test_a_file_of_nonsense_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, error: str
):
    path = tmp_path / "calls.csv"
    path.write_text(text)
    assert command.main(["--arrivals", str(path)]) == 2
    told = capsys.readouterr().err
    assert error in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (["--cost", "fast"], "FIXED_MS,TOKENS_PER_SECOND; not 'fast'"),
        (["--cost", "5,0"], "FIXED_MS,TOKENS_PER_SECOND"),
        (["--documents", "9-1"], "--documents is N or LEAST-MOST"),
        (["--replicas", "0"], "--replicas must be above 0"),
        (["--max-calls", "0"], "--max-calls must be above 0"),
        (["--budget", "-1"], "--budget must be above 0"),
        (["--swing", "2"], "--swing from 0 to 1"),
        (["--arrivals", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_bad_option_is_one_line(capsys: pytest.CaptureFixture[str], option: list[str], error: str):
    assert command.main(option) == 2
    told = capsys.readouterr().err
    assert told.startswith("simulate: ")
    assert error in told
    assert told.count("\n") == 1


# The command


def test_the_command_prints_a_row_for_each_rule(capsys: pytest.CaptureFixture[str]):
    options = ["--replicas", "2", "--calls", "200", "--documents", "1-9", "--cost", "20,10000"]
    assert command.main(options) == 0
    told = capsys.readouterr().out
    assert told.startswith("2 replicas of 8,366 tokens/s; ")
    assert all(f"| {rule} |" in told for rule in RULES)
    assert "sampled: 1 of " in told


def test_the_command_gives_json_and_prices(capsys: pytest.CaptureFixture[str]):
    options = ["--calls", "100", "--documents", "5", "--rule", "least-queued", "--json", "--cost", "20,10000"]
    found = []
    for price in ("1", "2"):
        assert command.main([*options, "--price", price]) == 0
        found.append(json.loads(capsys.readouterr().out)["rules"]["least-queued"])
    assert found[0]["calls"] > 50
    assert found[1]["cost_per_million"] == pytest.approx(2 * found[0]["cost_per_million"])
    documents_an_hour = found[0]["documents_per_second"] * 3_600
    assert found[0]["cost_per_million"] == pytest.approx(1 * 4 / documents_an_hour * 1e6)


def test_json_has_null_where_no_call_was_answered(capsys: pytest.CaptureFixture[str]):
    # A batch takes an hour, and callers wait for a second.
    options = ["--calls", "5", "--rate", "1", "--hours", "0.01", "--documents", "1", "--cost", "3600000,1000"]
    assert command.main([*options, "--deadline", "1", "--rule", "random", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rules"]["random"]
    assert found["answered"] == 0
    assert (found["p50"], found["cost_per_million"]) == (None, None)


def test_a_percentile_is_a_value_that_was_there():
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.95) == 4.0
    assert math.isnan(percentile([], 0.5))
    nothing = Figures.of(Replay([], [0.0], 0.0), 1.0)
    assert (nothing.calls, nothing.documents_per_second) == (0, 0)


# Costs


@pytest.mark.parametrize("name", costs.MEASURED)
def test_a_measured_cost_gives_back_the_measured_rate(name: str):
    cost = costs.given(name)
    assert 0 < cost.fixed_seconds < 0.1 * cost.of(cost.budget)
    if name == "minilm-bf16":
        rate = costs.read("quick")["concurrent"]["engine_alone"]["median"]
    else:
        case = costs.read("cpu")["cases"]["base/W2"]
        seconds = sorted(each["seconds"][f"rerank-grpc {name[5:]}"] for each in case["rounds"])
        rate = case["tokens"] / seconds[len(seconds) // 2]
    assert cost.tokens_per_second == pytest.approx(rate, rel=0.03)


def test_one_disturbed_batch_does_not_move_the_line():
    batches = [(size, 0.01 + size / 1_000) for size in range(16, 1_000, 50)]
    batches[7] = (batches[7][0], 9.0)
    assert costs.fitted(batches) == pytest.approx((0.01, 1 / 1_000))


# Beside real servers


def test_a_real_server_does_what_the_simulator_says():
    """A short load on a server whose device sleeps: all is answered on both sides, each call once."""
    cost = Cost(0.01, 1e-5, 1_024)
    arrivals = [Arrival(0.02 * number, (50, 100), number) for number in range(20)]
    with measured.sleeping(cost) as server, measured.calling([server]) as stub:
        outcomes, late = measured.called(stub, arrivals)
        batches = server.ask("batches")["batches"]
    assert sorted(each.arrival.number for each in outcomes) == [*range(20)]
    assert {each.code for each in outcomes} == {ANSWERED}
    assert len(late) == 20
    simulated = replay(arrivals, [Setup(cost)], "round-robin")
    tokens = sum(sum(each.tokens) for each in arrivals)
    assert sum(size for size, _ in batches) == tokens
    # No batch is quicker than its cost, so the real server is never ahead of the simulated one by much.
    assert all(seconds >= cost.of(size) - 1e-3 for size, seconds in batches)
    real = sorted(each.seconds for each in outcomes)
    assert percentile(real, 0.5) >= percentile(sorted(e.seconds for e in simulated.outcomes), 0.5) - 5e-3


def test_a_real_server_refuses_by_the_same_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "DEADLINE", 6.0)  # most of it is for a machine that pauses
    cost = Cost(1.0, 1e-5, 64)
    arrivals = [Arrival(0.001 * number, (60,), number) for number in range(30)]
    with measured.sleeping(cost) as server, measured.calling([server]) as stub:
        outcomes, _ = measured.called(stub, arrivals)
    simulated = replay(arrivals, [Setup(cost, deadline=measured.DEADLINE)], "round-robin")
    names = {each.code for each in simulated.outcomes}
    assert names == {ANSWERED, "DeadlineUnreachable", "DeadlineExceeded"}
    assert {each.code for each in outcomes} == names


def test_the_committed_runs_agree_within_fifteen_percent():
    data = json.loads((RESULTS / "simulate.json").read_text())
    found = {(case["replicas"], case["share"]) for case in data["cases"]}
    assert found == {(replicas, share) for replicas in measured.REPLICAS for share in measured.SHARES}
    assert [case for case in data["cases"] if not measured.within(case)] == []


def test_the_committed_runs_can_be_simulated_again():
    """The page's simulated figures are those of today's scheduler."""
    data = json.loads((RESULTS / "simulate.json").read_text())
    cost = Cost(
        data["cost"]["fixed_seconds"],
        data["cost"]["seconds_per_token"],
        data["asked"]["budget"],
        data["cost"]["call_seconds"],
    )
    for case in data["cases"]:
        arrivals = measured.Case(case["replicas"], case["share"]).arrivals(cost)
        setups = [Setup(cost, deadline=data["deadline"])] * case["replicas"]
        again = Figures.of(replay(arrivals, setups, "round-robin"), 0.0)
        for name in measured.COMPARED:
            assert getattr(again, name) == pytest.approx(case["simulated"][name], rel=1e-6)


def test_the_page_is_made_of_the_results():
    data = json.loads((RESULTS / "simulate.json").read_text())
    assert (RESULTS / "simulate.md").read_text() == measured.page(data).rstrip() + "\n"
