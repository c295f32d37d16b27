"""How many replicas a day of calls needs, and which balancing rule: a simulation around the service's code.

    python -m benchmarks.simulate --replicas 8 --load 0.8
    python -m benchmarks.simulate --replicas 8 --rate 3 --cost base-int8 --documents 10-100
    python -m benchmarks.simulate --arrivals calls.csv --cost 20,8000 --rule least-queued --json
    python -m benchmarks.simulate --validate

The gate, the queue's limits, the scheduler and the forecasts are those of rerank_grpc; the device is a
formula, a fixed time for a batch and one for each of its tokens. A day with more calls than --calls is
sampled: of each quarter of an hour the beginning is replayed, with its arrivals as dense as they are, and
queues go over from one part to the next. --validate compares with real servers: results/simulate.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks import report
from benchmarks.simulate import loads
from benchmarks.simulate.costs import MEASURED, given
from benchmarks.simulate.replay import Figures, replay
from benchmarks.simulate.replica import Setup
from benchmarks.simulate.rules import RULES
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.limits import LIMITS

HEADER = [
    "rule",
    "p50 s",
    "p95 s",
    "p99 s",
    "documents/s",
    "answered",
    "refused",
    "device busy",
    "per million",
]
Plan = Callable[[], list[loads.Arrival]]


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each rule, or JSON; 2 for an option that makes no sense."""
    options = parser().parse_args(arguments)
    if options.validate:
        from benchmarks.simulate import measured

        measured.main()
        return 0
    try:
        found = run(options)
    except (OSError, ValueError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(finite(found), indent=1, allow_nan=False) if options.json else page(found))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks.simulate", description=(__doc__ or "").partition("\n")[0]
    )
    add, settings = made.add_argument, ServerSettings()
    add("--replicas", type=int, default=4, help="servers, each with one device (%(default)s)")
    add("--rule", choices=[*RULES, "all"], default="all", help="balancing rule (%(default)s)")
    add("--rate", type=float, help="calls a second, the mean of the day")
    add(
        "--load",
        type=float,
        default=0.7,
        help="without --rate: share of what the devices can do (%(default)s)",
    )
    add(
        "--swing",
        type=float,
        default=0.5,
        help="how far the day's curve leaves its mean; 0: constant (%(default)s)",
    )
    add("--hours", type=float, default=24.0, help="length of the day (%(default)s)")
    add("--arrivals", type=Path, help="a file with SECONDS or SECONDS,DOCUMENTS on each line, for a curve")
    add("--calls", type=int, default=10_000, help="a day with more is sampled (%(default)s)")
    add("--documents", default="10-100", help="documents of a call, N or LEAST-MOST (%(default)s)")
    add("--tokens", type=int, help="tokens of each pair; without: lengths of passages, W2's")
    add(
        "--cost",
        default="base-bf16",
        help=f"{', '.join(MEASURED)}, or FIXED_MS,TOKENS_PER_SECOND (%(default)s)",
    )
    add("--budget", type=int, help="most tokens of a batch; without: as the warm-up chose it, or 1024")
    add("--depth", type=int, default=1, help="batches in flight: 1 on a CPU, 2 on a GPU (%(default)s)")
    add(
        "--queue", type=int, default=settings.engine.max_queue_tokens, help="--max-queue-tokens (%(default)s)"
    )
    add("--max-calls", type=int, default=settings.max_calls, help="as the server's (%(default)s)")
    add("--deadline", type=float, default=30.0, help="the callers' seconds; 0: none (%(default)s)")
    add(
        "--stale",
        type=float,
        default=0.0,
        help="the age of what least-queued knows, in seconds (%(default)s)",
    )
    add("--price", type=float, default=0.10, help="price of a replica for an hour (%(default)s)")
    add("--seed", type=int, default=0, help="of arrivals, sizes and choices (%(default)s)")
    add("--json", action="store_true", help="figures as JSON")
    add("--validate", action="store_true", help="measures real servers beside; writes results/simulate.*")
    return made


def setup_of(options: argparse.Namespace) -> Setup:
    """One replica; raises ValueError."""
    for name in ("replicas", "calls", "max_calls", "depth", "queue", "hours"):
        if getattr(options, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0")
    if options.budget is not None and options.budget <= 0:
        raise ValueError("--budget must be above 0")
    return Setup(
        given(options.cost, options.budget),
        EngineSettings(max_queue_tokens=options.queue),
        options.max_calls,
        options.deadline or math.inf,
        options.depth,
    )


def sizes_of(options: argparse.Namespace) -> loads.Sizes:
    """The documents of calls; raises ValueError."""
    least, _, most = options.documents.partition("-")
    try:
        bounds = int(least), int(most or least)
    except ValueError:
        bounds = 0, 0
    if not 1 <= bounds[0] <= bounds[1] <= LIMITS.documents:
        raise ValueError(
            f"--documents is N or LEAST-MOST, 1 to {LIMITS.documents}; not {options.documents!r}"
        )
    return loads.documents(*bounds, options.tokens)


def plan(options: argparse.Namespace, setup: Setup) -> tuple[Plan, loads.Sample, float]:
    """Makes the function that gives the arrivals, alike each time, the sample, and the mean rate."""
    sizes, day = sizes_of(options), options.hours * 3_600
    if options.arrivals is not None:
        calls = loads.read_file(options.arrivals, sizes, random.Random(options.seed))
        sample = loads.Sample.of(len(calls), options.calls)
        rate = len(calls) / max(loads.SLICE / sample.times, calls[-1].at)
        return lambda: list(loads.sampled(calls, sample)), sample, rate
    rate = options.rate
    if rate is None:
        rate = options.load * options.replicas * setup.cost.tokens_per_second / loads.mean_tokens(sizes)
    if rate <= 0 or not 0 <= options.swing <= 1:
        raise ValueError("--rate and --load must be above 0, --swing from 0 to 1")
    sample = loads.Sample.of(rate * day, options.calls)
    curve, most = loads.diurnal(rate, options.swing), rate * (1 + options.swing)

    def arrivals() -> list[loads.Arrival]:
        return list(loads.poisson(curve, most, day, sizes, random.Random(options.seed), sample))

    return arrivals, sample, rate


def run(options: argparse.Namespace) -> dict[str, object]:
    """Replays the same arrivals under each rule; raises ValueError, or OSError for a file."""
    setup = setup_of(options)
    plans, sample, rate = plan(options, setup)
    arrivals = plans()
    rules = [*RULES] if options.rule == "all" else [options.rule]
    found = {}
    for rule in rules:
        told = replay(arrivals, [setup] * options.replicas, rule, seed=options.seed, stale=options.stale)
        found[rule] = asdict(Figures.of(told, options.price))
    return {
        "replicas": options.replicas,
        "calls_per_second": rate,
        "sampled": sample.times,
        "slice_seconds": sample.part,
        "deadline": options.deadline,
        "price": options.price,
        "tokens_per_second": setup.cost.tokens_per_second,
        "rules": found,
    }


def finite(value: object) -> object:
    """The same with None for numbers that JSON does not have: of a percentile where no call was answered."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(found: dict[str, object]) -> str:
    """The figures as people read them."""
    rules = found["rules"]
    assert isinstance(rules, dict)
    lines = [
        f"{found['replicas']} replicas of {found['tokens_per_second']:,.0f} tokens/s; "
        f"{found['calls_per_second']:.3g} calls/s on average",
        report.table(HEADER, [row(rule, each) for rule, each in rules.items()]),
    ]
    if float(str(found["sampled"])) > 1:
        lines.insert(
            1,
            f"sampled: 1 of {found['sampled']:.3g} calls, the first {found['slice_seconds']:.3g} s of each "
            "quarter of an hour; backlogs that take longer to build up are not seen, so let --calls be more "
            "where that is not much longer than the deadline",
        )
    for rule, each in rules.items():
        if each["refused"]:
            lines.append(
                f"{rule}: " + ", ".join(f"{count} {code}" for code, count in each["refused"].items())
            )
    return "\n".join(lines)


def row(rule: str, each: dict[str, float]) -> list[str]:
    calls = max(1, each["calls"])
    return [
        rule,
        *(f"{each[name]:.2f}" for name in ("p50", "p95", "p99")),
        f"{each['documents_per_second']:.1f}",
        f"{each['answered'] / calls:.1%}",
        f"{1 - each['answered'] / calls:.1%}",
        f"{each['utilisation']:.2f} ({each['least_utilisation']:.2f}–{each['most_utilisation']:.2f})",
        f"{each['cost_per_million']:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
