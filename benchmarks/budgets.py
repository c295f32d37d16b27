"""Whether a start beside busy processes finds a good batch budget: its rate ÷ the best budget's.

    python -m benchmarks.budgets minilm base

Five starts, nothing kept between them, beside two processes that keep
computing; then W2's passages in batches of every budget, interleaved, without
them, in processor time, which other work on the machine hardly changes. The
passages are 30, so a choice beyond the first budget that holds all of them
counts as that one, such as 16,384 as 8,192: a budget too large for more
passages than these is not told from it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, process_time
from typing import Any

from benchmarks import report, workloads
from benchmarks.servers import load

STARTS, BUSY, ROUNDS = 5, 2, 5
PASSAGES = 30
BUDGETS = (512, 1_024, 2_048, 4_096, 8_192, 16_384)
COLUMNS = ("chosen", "shares", "seconds")


@contextmanager
def started(model: Any, tokens: int | None = None) -> Iterator[Any]:
    from rerank_grpc.config.settings import EngineSettings
    from rerank_grpc.engine.engine import Engine
    from rerank_grpc.runner.cuda import runner_for

    engine = Engine(runner_for(model), EngineSettings(max_batch_tokens=tokens, hang_seconds=600))
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def busy() -> Iterator[None]:
    """Keeps other processes computing."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(name: str) -> dict[str, Any]:
    from rerank_grpc.registry.warmup import warm_up
    from rerank_grpc.tokenizer.tokenizer import tokenizer_for

    model = load(name)
    tokenizer, chosen, seconds = tokenizer_for(model.card), [], []
    with busy():
        for _ in range(STARTS):
            with started(model) as engine:
                began = perf_counter()
                warm_up(engine, tokenizer, model.card)
                seconds.append(round(perf_counter() - began, 2))
                chosen.append(engine.max_batch_tokens)
    request = workloads.request_of(workloads.QUERY, workloads.passages(PASSAGES).documents)
    costs = costs_of(model, tokenizer.tokenize(request).sequences)
    best = min(costs.values())
    rates = {budget: round(best / cost, 3) for budget, cost in costs.items()}
    shares = [rates[min(budget, max(rates))] for budget in chosen]
    return {
        "precision": model.card.precision,
        "chosen": chosen,
        "seconds": seconds,
        "rates": rates,
        "shares": shares,
    }


def costs_of(model: Any, sequences: Any) -> dict[int, float]:
    """The processor time of the passages in batches of every budget, the median of interleaved rounds.

    Budgets that hold all of them at once cost the same, so the first of those stands for the rest.
    """
    from rerank_grpc.types import Call

    tokens = sum(map(len, sequences))
    budgets = [budget for budget in BUDGETS if budget < 2 * tokens]
    found: dict[int, list[float]] = {budget: [] for budget in budgets}
    with started(model, BUDGETS[0]) as engine:
        for turn in range(ROUNDS + 1):
            for budget in budgets[:: 1 if turn % 2 else -1]:
                engine.max_batch_tokens = budget
                began = process_time()
                with engine.admit(Call()) as admission:
                    admission.submit(sequences).wait()
                if turn:  # the first round warms up
                    found[budget].append(process_time() - began)
    return {budget: statistics.median(samples) for budget, samples in found.items()}


def main() -> None:
    data: dict[str, Any] = {"when": report.now(), "load_before": report.load_average(), **report.machine()}
    data["models"] = {name: measured(name) for name in sys.argv[1:] or ["minilm", "base"]}
    data["load_after"] = report.load_average()
    data["header"] = ["model", "budgets chosen", "rate ÷ the best", "seconds"]
    data["rows"] = [
        [f"{name} {each['precision']}", *(", ".join(map(str, each[key])) for key in COLUMNS)]
        for name, each in data["models"].items()
    ]
    data["shares"] = [share for each in data["models"].values() for share in each["shares"]]
    (report.RESULTS / "budgets.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(report.table(data["header"], data["rows"]))


if __name__ == "__main__":
    main()
