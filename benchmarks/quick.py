"""What the service adds to its model, and how calls share it: `make bench-quick`, under six minutes.

Ratios and differences are taken in one run, interleaved with a bare threaded
grpcio server that computes nothing, because an absolute time says more about
the machine than about the service. The model is ms-marco-MiniLM-L-6's shape
with random weights; the load comes from this process, the server is another.
With --trial the cost of metrics alone is tried, for some seconds, and nothing is written.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter
from typing import Any

from benchmarks import checkpoints, load, metrics_cost, report, workloads
from benchmarks.report import Spread
from benchmarks.servers import CALLERS, Served, concurrent_calls, served

SHAPE = "minilm"
TOKENIZERS = {"minilm": "WordPiece", "base": "Unigram"}
ROUNDS = 5
# W4's documents are so much shorter than W2's: that makes the service's part larger, and the run shorter.
W4_SCALE = 0.33
W4_SECONDS = 3.0
Row = tuple[str, str, str, bool | None]  # None: a figure without a goal


def main() -> None:
    if sys.argv[1:] == ["--trial"]:
        tried = {name: metrics_cost.measure(name, 2, 0.5) for name in metrics_cost.MODELS}
        print(table_of(metrics_cost.rows(tried)), metrics_cost.section(tried), sep="\n\n")
        return
    began = perf_counter()
    data: dict[str, Any] = {"when": report.now(), "load_before": report.load_average()}
    progress(1, overhead)
    data["overhead"] = overhead()
    progress(2, tokenizing)
    data["tokenizing"] = {name: tokenizing(name) for name in TOKENIZERS}
    with served("model", SHAPE) as server:
        for number, step in enumerate((single_calls, concurrent, fairness), 3):
            progress(number, step)
            data[step.__name__] = step(server)
    progress(6, metrics_cost.measure)
    data["metrics"] = {name: metrics_cost.measure(name) for name in metrics_cost.MODELS}
    data["seconds"] = round(perf_counter() - began)
    data["load_after"] = report.load_average()
    write(data)


def progress(number: int, step: Any) -> None:
    print(f"[{number}/6] {step.__doc__.splitlines()[0]}", file=sys.stderr, flush=True)


def overhead() -> dict[str, Any]:
    """A model that costs nothing, beside a bare grpcio server."""
    text = ("the quick brown fox jumps over the lazy dog and " * 11)[:497]
    # No two queries alike: the service remembers them.
    singles = [load.request_of(f"{workloads.QUERY} {n}", ["a short document"]) for n in range(1_000)]
    hundreds = [
        load.request_of(f"{workloads.QUERY} {n}", [f"{text}{place:03}" for place in range(100)])
        for n in range(200)
    ]
    found: dict[str, list[float]] = {}
    with served("free") as ours, served("echo") as bare:
        targets = {"service": ours.target, "echo": bare.target}
        for target in targets.values():
            load.closed_loop(target, [*singles[:4], *hundreds[:4]], 4, 1.0)
        for _ in range(ROUNDS):
            for name, target in targets.items():
                for size, requests, count in (("1", singles, 300), ("100", hundreds, 60)):
                    answers = load.one_by_one(target, requests, count)
                    added = [answer.seconds - answer.tokenization for answer in answers]
                    whole = [answer.seconds for answer in answers]
                    found.setdefault(f"{name}_{size}_ms", []).append(1e3 * statistics.median(whole))
                    found.setdefault(f"{name}_{size}_without_tokenizing_ms", []).append(
                        1e3 * statistics.median(added)
                    )
                answers, seconds = load.closed_loop(target, singles, 8, 1.5)
                found.setdefault(f"{name}_calls_per_second", []).append(len(answers) / seconds)
    return {name: vars_of(Spread.of(samples)) for name, samples in found.items()}


def tokenizing(name: str) -> dict[str, Any]:
    """W2's pairs: our tokenizer beside the library's own pair encoding."""
    from transformers import AutoTokenizer

    from rerank_grpc.tokenizer.frames import PlainFraming
    from rerank_grpc.tokenizer.tokenizer import Tokenizer
    from rerank_grpc.tokenizer.vocabulary import read_tokenizer
    from tests.support import token_ids

    path = checkpoints.tokenizer(name)
    library = AutoTokenizer.from_pretrained(path)
    vocabulary = read_tokenizer(path / "tokenizer.json").vocabulary()
    tokenizer = Tokenizer(PlainFraming(vocabulary, 512, pairs=True))
    workload = workloads.passages()
    documents = list(workload.documents)
    ours, theirs = [], []
    for number in range(4 * ROUNDS):
        query = f"{workload.query} {number}"  # another each time: the tokenizer remembers them
        queries = [query] * len(documents)
        started = perf_counter()
        found = tokenizer.tokenize(workloads.request_of(query, documents))
        middle = perf_counter()
        expected = library(queries, documents, truncation="only_second", max_length=512)
        ours.append(1e3 * (middle - started))
        theirs.append(1e3 * (perf_counter() - middle))
    chunks = [document.chunks[0].sequence for document in found.documents]
    if [token_ids(found.sequences[chunk]) for chunk in chunks] != expected["input_ids"]:
        raise SystemExit(f"{name}: our tokens are not the library's")
    ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours_ms": vars_of(Spread.of(ours)),
        "library_ms": vars_of(Spread.of(theirs)),
        "ratio": vars_of(Spread.of(ratio)),
    }


def single_calls(server: Served) -> dict[str, Any]:
    """W1, W2 and W3 through gRPC, one caller."""
    cases = {"W1": workloads.short(), "W2": workloads.passages(), "W3": workloads.long()}
    shape, found = checkpoints.SHAPES[SHAPE], {}
    for name, workload in cases.items():
        request = load.request_of(workload.query, workload.documents)
        load.one_by_one(server.target, [request], 1)
        answers = load.one_by_one(server.target, [request], ROUNDS)
        found[name] = {
            "seconds": vars_of(Spread.of([answer.seconds for answer in answers])),
            "tokens": answers[0].tokens,
            "precision": server.facts["precision"],
            "budget": server.facts["budget"],
            "weights": shape.linear_weights,
        }
    return found


def concurrent(server: Served) -> dict[str, Any]:
    """W4: 16 callers at saturation beside the engine alone, then open loop at 50, 80 and 120 %."""
    requests = [load.request_of(workloads.QUERY, documents) for documents in concurrent_calls(W4_SCALE)]
    through, alone, tokens, found = list[float](), list[float](), list[int](), dict[str, Any]()
    # The same batches on both sides: each measures a budget of its own at warm-up.
    with served("alone", SHAPE, str(W4_SCALE), str(server.facts["budget"])) as engine:

        def through_server() -> None:
            answers, seconds = load.closed_loop(server.target, requests, CALLERS, W4_SECONDS)
            through.append(sum(answer.tokens for answer in answers) / seconds)
            tokens.extend(answer.tokens for answer in answers)

        def engine_alone() -> None:
            alone.append(engine.ask(str(W4_SECONDS))["tokens_per_second"])

        for turn in range(ROUNDS):
            for step in (through_server, engine_alone)[:: 1 if turn % 2 else -1]:
                step()
        capacity = statistics.median(through) / statistics.mean(tokens)
        for share in (0.5, 0.8, 1.2):
            answers = load.open_loop(server.target, requests, share * capacity, 6.0)
            codes = [answer.code for answer in answers]
            served_ones = [answer for answer in answers if answer.code == "OK"]
            found[f"{share:.0%}"] = {
                "calls": len(answers),
                "codes": {code: codes.count(code) for code in sorted(set(codes))},
                "p50": load.percentile(served_ones, 0.5),
                "longest": load.percentile(served_ones, 1.0),
            }
    ratio = [a / b for a, b in zip(through, alone, strict=True)]
    return {
        "through_grpc": vars_of(Spread.of(through)),
        "engine_alone": vars_of(Spread.of(alone)),
        "ratio": vars_of(Spread.of(ratio)),
        "capacity_calls_per_second": capacity,
        "open_loop": found,
    }


def fairness(server: Served) -> dict[str, Any]:
    """W5: one-document calls alone, and while a call of 1,000 documents runs."""
    many = load.request_of(workloads.QUERY, workloads.passages(1_000, seed=5).documents)
    singles = [load.request_of(workloads.QUERY, [text]) for text in workloads.passages(60, seed=6).documents]
    target, turn = server.target, iter(range(1 << 30))
    caller = load.Caller(target)

    def single() -> list[load.Answer]:
        return [caller.call(singles[next(turn) % len(singles)])]

    for _ in range(20):
        single()
    alone = [answer for _ in range(100) for answer in single()]
    large_alone = load.one_by_one(target, [many], 1)[0].seconds
    large: list[load.Answer] = []
    both = load.beside(lambda: large.extend(load.one_by_one(target, [many], 1)), single)
    batch = server.facts["budget"] / caller.health().tokens_per_second
    caller.close()
    return {
        "alone_p50": load.percentile(alone, 0.5),
        "alone_p99": load.percentile(alone, 0.99),
        "beside_p50": load.percentile(both, 0.5),
        "beside_p99": load.percentile(both, 0.99),
        "calls_beside": len(both),
        "batch_seconds": batch,
        "bound": load.percentile(alone, 0.99) + 2 * batch,
        "large_alone": large_alone,
        "large_beside": large[0].seconds,
    }


def vars_of(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "least": spread.least, "most": spread.most, "count": spread.count}


def text_of(spread: dict[str, float], digits: int = 2) -> str:
    return f"{spread['median']:.{digits}f} ({spread['least']:.{digits}f}–{spread['most']:.{digits}f})"


def rows_of(data: dict[str, Any]) -> list[Row]:
    """What is asked, what was measured, and whether it was met."""
    cost, tokens, many, fair = (data[name] for name in ("overhead", "tokenizing", "concurrent", "fairness"))
    one, hundred = cost["service_1_ms"], cost["service_100_without_tokenizing_ms"]
    rate = cost["service_calls_per_second"]

    def echo(figure: str, digits: int = 2) -> str:
        return f"bare echo {cost[f'echo_{figure}']['median']:.{digits}f}"

    return [
        (
            "model that costs nothing, one document: p50",
            "≤ 0.8 ms",
            f"{text_of(one)} ms; {echo('1_ms')}",
            one["median"] <= 0.8,
        ),
        (
            "the same, 100 documents of 500 characters, without tokenizing: p50",
            "≤ 1.5 ms",
            f"{text_of(hundred)} ms; {echo('100_ms')}",
            hundred["median"] <= 1.5,
        ),
        (
            "the same, one-document calls per second, 8 callers: no goal, for no real model is that fast",
            "",
            f"{text_of(rate, 0)}; {echo('calls_per_second', 0)}",
            None,
        ),
        (
            "W4 at saturation ÷ engine alone, documents a third as long as W2's",
            "≥ 0.95",
            text_of(many["ratio"]),
            many["ratio"]["median"] >= 0.95,
        ),
        *(
            (
                f"tokenizing W2's 100 pairs ÷ the library's pair encoding ({kind})",
                "≤ 0.6",
                text_of(tokens[name]["ratio"]),
                tokens[name]["ratio"]["median"] <= 0.6,
            )
            for name, kind in TOKENIZERS.items()
        ),
        (
            "W5: one-document p99 beside 1,000 documents",
            f"≤ alone + 2 batches = {fair['bound']:.3f} s",
            f"{fair['beside_p99']:.3f} s of {fair['calls_beside']} calls",
            fair["beside_p99"] <= fair["bound"],
        ),
        (
            "W5: the 1,000 documents beside one-document calls ÷ alone",
            "≤ 1.25",
            f"{fair['large_beside'] / fair['large_alone']:.2f}",
            fair["large_beside"] <= 1.25 * fair["large_alone"],
        ),
        *metrics_cost.rows(data["metrics"]),
    ]


def single_table(data: dict[str, Any]) -> str:
    return report.table(
        ["workload", "tokens", "seconds"],
        [(name, case["tokens"], text_of(case["seconds"], 3)) for name, case in data["single_calls"].items()],
    )


def loop_table(data: dict[str, Any]) -> str:
    return report.table(
        ["load", "calls", "answers", "p50 s", "longest s"],
        [
            (
                share,
                case["calls"],
                ", ".join(f"{n} {code}" for code, n in case["codes"].items()),
                f"{case['p50']:.3f}",
                f"{case['longest']:.3f}",
            )
            for share, case in data["concurrent"]["open_loop"].items()
        ],
    )


def table_of(rows: list[Row]) -> str:
    return report.table(
        ["figure", "asked", "measured: median (least–most)", "met"],
        [
            (name, asked, measured, {True: "yes", False: "**no**", None: ""}[met])
            for name, asked, measured, met in rows
        ],
    )


def page_of(data: dict[str, Any]) -> str:
    """Lays the figures out as a page."""
    found = report.versions("rerank-grpc", "grpcio", "protobuf", "torch", "transformers", "tokenizers")
    import torch

    return f"""# What the service adds, and how calls share it

`make bench-quick`, {data["when"]}, {data["seconds"]} s, {ROUNDS} rounds interleaved in one run.

{report.facts(torch.get_num_threads(), found)}
- load average before and after: {data["load_before"]}, {data["load_after"]}
- load generator on the same machine, token check and one log line per call on
- in the first three rows and in tokenizing every call has another query, for the service remembers them
- model: {checkpoints.SHAPES[SHAPE].like}'s shape, random weights, {data["single_calls"]["W2"]["precision"]},
  batches of {data["single_calls"]["W2"]["budget"]} tokens as measured at warm-up

{table_of(rows_of(data))}

![chart](quick.svg)

## Through gRPC, one caller
{single_table(data)}

## W4, open loop: {data["concurrent"]["capacity_calls_per_second"]:.1f} calls per second are 100 %
{loop_table(data)}

## W5
A call of 1,000 documents takes {data["fairness"]["large_alone"]:.2f} s alone and
{data["fairness"]["large_beside"]:.2f} s beside the one-document calls.

{metrics_cost.section(data["metrics"])}
"""


def write(data: dict[str, Any]) -> None:
    markdown = page_of(data)
    report.write("quick", data, markdown)
    cost = data["overhead"]
    bars = [
        (f"{label}, {size} document{'s' * (size != '1')}", cost[f"{name}_{size}{rest}_ms"]["median"], own)
        for size, rest in (("1", ""), ("100", "_without_tokenizing"))
        for name, label, own in (
            ("service", "rerank-grpc", True),
            ("echo", "bare grpcio echo", False),
        )
    ]
    if not report.chart("quick", "A call whose model costs nothing", bars, "milliseconds, p50"):
        print("no chart: pip install matplotlib", file=sys.stderr)
    print(markdown)


if __name__ == "__main__":
    main()
