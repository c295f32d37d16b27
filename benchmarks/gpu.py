"""What the service makes of one GPU: every figure of it in one run, under eight minutes.

    python -m benchmarks.gpu              on a machine with a card; writes results/gpu.{json,md}
    python -m benchmarks.gpu --dry-run    every step with tiny shapes, on any machine; writes nothing

It makes its checkpoints on the card, compares the scores with transformers in
fp32 there, and takes each figure as a ratio of samples that take turns. It
needs what a CUDA image usually has: torch, transformers, sentence-transformers
and grpcio. What is missing is left out, and the table says so: the rows through
gRPC need grpcio-health-checking and grpcio-reflection, too, and grpcio and
protobuf as new as the stubs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks import checkpoints, report, workloads
from benchmarks.decoder import Theirs
from benchmarks.report import Spread
from benchmarks.workloads import Workload

NOTHING = "—"
# Our bf16 logits may be off by so much more than transformers' own: docs/precision.md.
BOUND = 1.2
# fp32 against fp32 on a card: the products add in another order.
EXACT = 1e-3
# Rows of a plain product: more change nothing, all of W2 at once would not fit a small card.
MOST_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, of which shapes.

    Attributes:
        shapes: the checkpoints in the place of bge-reranker-base, v2-m3 and Qwen3-Reranker-0.6B.
        documents: of a call.
        calls: that run at once where the card's rate is measured.
        rounds: samples of each figure.
        asked: calls one after the other, of one document and of all.
        seconds: of one sample at saturation.
    """

    device: str
    precision: str
    shapes: tuple[str, str, str]
    documents: int
    calls: int
    rounds: int
    asked: tuple[int, int]
    seconds: float


CARD = Size("cuda", "bf16", ("base", "v2-m3", "qwen3-0.6b"), 100, 8, 5, (200, 30), 3.0)
DRY = Size("cpu", "fp32", ("tiny", "tiny", "tiny-qwen3"), 6, 2, 1, (3, 2), 0.2)


@dataclass(slots=True)
class Figure:
    """One row of the table; `samples` are compared with `asked`, "at least" unless `most`."""

    name: str
    asked: float
    samples: list[float]
    beside: str
    unit: str = ""
    most: bool = False

    def row(self) -> list[str]:
        sign, spread = "≤" if self.most else "≥", Spread.of(self.samples)
        met = spread.median <= self.asked if self.most else spread.median >= self.asked
        asked = f"{sign} {self.asked:g}{self.unit}"
        return [self.name, asked, spread.text() + self.unit, self.beside, "yes" if met else "**no**"]


class NotHere(Exception):
    """A figure needs what is not installed here."""


@dataclass(slots=True)
class Run:
    """What one run has found."""

    size: Size
    figures: list[Figure] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    scores: list[list[str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    @contextmanager
    def step(self, name: str) -> Any:
        """Says what is measured now; what cannot be measured here is listed with its reason."""
        began = perf_counter()
        try:
            yield
        except NotHere as error:
            self.missing.append((name, str(error)))
        except (Exception, SystemExit) as error:  # the other figures are worth a card's time all the same
            traceback.print_exc()
            self.failed = True
            self.missing.append((name, f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"))
        print(f"{name}: {perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


class Ours:
    """The service without its server: tokenizer, scheduler, runner, model."""

    def __init__(self, path: Path, size: Size, precision: str | None = None) -> None:
        from rerank_grpc.config.settings import EngineSettings, ServerSettings
        from rerank_grpc.engine.engine import Engine
        from rerank_grpc.registry.loading import ModelLoader
        from rerank_grpc.registry.warmup import warm_up
        from rerank_grpc.runner.cuda import runner_for
        from rerank_grpc.tokenizer.tokenizer import tokenizer_for

        began = perf_counter()
        settings = ServerSettings(device=size.device, precision=precision or size.precision)
        model = ModelLoader(settings).read_model(str(path))
        self.card = model.card
        self.tokenizer = tokenizer_for(model.card)
        self.engine = Engine(runner_for(model), EngineSettings(hang_seconds=600))
        self.engine.start()
        if precision is None:
            warm_up(self.engine, self.tokenizer, model.card)
        self.ready_seconds = perf_counter() - began

    def encode(self, workload: Workload) -> list[Any]:
        """Pairs are cut where the others cut them; a language model's prompt is nowhere cut."""
        room = 0
        if self.card.reading.prompt is None:
            empty = self.tokenizer.tokenize(workloads.request_of(workload.query, [""]))
            room = workload.max_tokens - len(empty.sequences[0])
        request = workloads.request_of(workload.query, workload.documents, room)
        tokenized = self.tokenizer.tokenize(request)
        return [tokenized.sequences[each.chunks[0].sequence] for each in tokenized.documents]

    def score(self, calls: list[list[Any]]) -> list[float]:
        """All calls at once."""
        from rerank_grpc.types import Call

        with ExitStack() as inside:
            admissions = [inside.enter_context(self.engine.admit(Call())) for _ in calls]
            requests = [admission.submit(call) for admission, call in zip(admissions, calls, strict=True)]
            for request in requests:
                request.wait()
        return [workloads.logit_of(output) for request in requests for output in request.outputs]

    def close(self) -> None:
        self.engine.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to try the script")
    size = DRY if parser.parse_args(arguments).dry_run else CARD
    if size is CARD and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu: torch finds no CUDA device here; --dry-run tries the script on the CPU"
        )
    began, run = perf_counter(), Run(size)
    run.facts = facts(size)
    base, large, decoder = size.shapes
    for name, share, times in ((base, 0.50, 3.5), (large, 0.60, 2.5)):
        with run.step(f"{name}: scores, share of the plain product, sentence-transformers"):
            encoder_figures(run, name, share, times)
    with run.step("through gRPC: latency"):
        latency(run, large, "W2, one caller, p50 through gRPC", 35.0, workloads_of(size, size.asked[1]))
        singles = [one_document(workload) for workload in workloads_of(size, size.asked[0])]
        latency(run, base, "one document, p50 through gRPC", 3.0, singles)
    with run.step("through gRPC: W4 at saturation"):
        saturation(run, base)
    with run.step(f"{decoder} beside transformers"):
        decoder_figure(run, decoder)
    run.facts["seconds"] = round(perf_counter() - began)
    markdown = page(run)
    print(markdown)
    if size is CARD:
        report.write("gpu", data_of(run), markdown)
    if run.failed:
        raise SystemExit("benchmarks.gpu: a step failed; its error is above")


def workloads_of(size: Size, count: int) -> list[Workload]:
    """So many calls of W2, no two alike."""
    return [workloads.passages(size.documents, seed=2 + number) for number in range(count)]


def one_document(workload: Workload) -> Workload:
    return Workload("one", workload.query, workload.documents[:1])


def wait(size: Size) -> None:
    if size.device == "cuda":
        torch.cuda.synchronize()


def timed(size: Size, work: Callable[[], object]) -> float:
    wait(size)
    started = perf_counter()
    work()
    wait(size)
    return perf_counter() - started


# Encoders


def encoder_figures(run: Run, name: str, share: float, times: float) -> None:
    size, path = run.size, checkpoints.checkpoint(name, run.size.device)
    compare(run, name, path)
    shape, ours = checkpoints.SHAPES[name], Ours(path, size)
    run.facts[name] = {
        "attention": ours.card.attention.label,
        "precision": ours.card.precision,
        "budget": ours.engine.max_batch_tokens,
        "ready_seconds": round(ours.ready_seconds, 1),
    }
    calls = workloads_of(size, size.calls)
    encoded = [ours.encode(workload) for workload in calls]
    lengths = [len(sequence) for call in encoded for sequence in call]
    product = plain_product(shape, min(sum(map(len, encoded[0])), MOST_ROWS), size)
    theirs = sentence_transformers(run, path, size, [pair for each in calls for pair in each.pairs])
    shares, ratios, rates, pairs = [], [], [], []
    ours.score(encoded)
    for _ in range(size.rounds):
        rate = shape.useful_flop(lengths) / timed(size, lambda: ours.score(encoded))
        limit = product()
        shares.append(rate / limit)
        rates.append(f"{rate / 1e12:.0f} of {limit / 1e12:.0f} TFLOP/s")
        own = timed(size, lambda: ours.score([ours.encode(workload) for workload in calls]))
        pairs.append(len(lengths) / own)
        if theirs is not None:
            ratios.append(timed(size, theirs) / own)
    ours.close()
    run.figures.append(Figure(f"W2, {name}: useful FLOP/s ÷ plain product", share, shares, rates[-1]))
    if ratios:
        pair_rate = f"{statistics.median(pairs):.0f} pairs/s"
        run.figures.append(Figure(f"W2, {name} vs sentence-transformers", times, ratios, pair_rate, "×"))


def plain_product(shape: checkpoints.Shape, rows: int, size: Size) -> Callable[[], float]:
    """FLOP/s of one layer's products after the other, over random rows, of all layers' weights."""
    dtype = torch.bfloat16 if size.precision == "bf16" else torch.float32
    hidden, wide = shape.hidden, shape.intermediate
    sides = [(hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden)]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=size.device, dtype=dtype)

    layers = [[random(*side) for side in sides] for _ in range(shape.layers)]
    inputs = [random(rows, side) for side, _ in sides]

    def multiply() -> None:
        for layer in layers:
            for rows_, weight in zip(inputs, layer, strict=True):
                torch.mm(rows_, weight)

    repeats = 3

    def multiply_again() -> None:
        for _ in range(repeats):
            multiply()

    multiply()
    flop = 2.0 * rows * shape.linear_weights * repeats
    return lambda: flop / timed(size, multiply_again)


def sentence_transformers(
    run: Run, path: Path, size: Size, pairs: list[tuple[str, str]]
) -> Callable[[], object] | None:
    """Its faster way of two batch sizes to score all pairs, which it sorts by length itself."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        run.missing.append(("vs sentence-transformers", str(error)))
        return None
    options = {"dtype": torch.bfloat16} if size.precision == "bf16" else {}
    model = CrossEncoder(str(path), device=size.device, max_length=512, model_kwargs=options)

    def way(batch: int) -> Callable[[], object]:
        return lambda: model.predict(pairs, batch_size=batch, show_progress_bar=False)

    for batch in (32, 128):
        way(batch)()
    return min((way(batch) for batch in (32, 128)), key=lambda each: timed(size, each))


def compare(run: Run, name: str, path: Path) -> None:
    """How far our logits and transformers' own of the same precision are from transformers in fp32."""
    size, workload = run.size, workloads_of(run.size, 1)[0]
    own = torch.bfloat16 if size.precision == "bf16" else torch.float32
    expected = transformers_logits(path, workload, size, torch.float32)
    theirs = transformers_logits(path, workload, size, own)
    judge(run, name, path, workload, expected, theirs)


def judge(
    run: Run, name: str, path: Path, workload: Workload, expected: torch.Tensor, theirs: torch.Tensor
) -> None:
    """Adds a row to the scores: ours in the run's precision and in fp32, beside theirs."""
    errors = []
    for precision in (run.size.precision, "fp32"):
        ours = Ours(path, run.size, precision)
        errors.append(error(torch.tensor(ours.score([ours.encode(workload)])), expected))
        ours.close()
    found, exact = errors
    allowed = max(BOUND * error(theirs, expected), EXACT)
    met = "yes" if found <= allowed and exact <= EXACT else "**no**"
    cells = [f"{value:.2g}" for value in (float(expected.std()), found, error(theirs, expected), exact)]
    run.scores.append([name, *cells, met])


@torch.inference_mode()
def transformers_logits(path: Path, workload: Workload, size: Size, dtype: torch.dtype) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).to(size.device).eval()
    logits = []
    for start in range(0, len(workload.pairs), 10):
        queries, documents = zip(*workload.pairs[start : start + 10], strict=True)
        batch = tokenizer(
            list(queries),
            list(documents),
            truncation="only_second",
            max_length=512,
            padding=True,
            return_tensors="pt",
        ).to(size.device)
        logits.append(network(**batch).logits[:, 0].float().cpu())
    return torch.cat(logits)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The root of the mean square difference, as a share of the expected logits' standard deviation."""
    return float((found - expected).square().mean().sqrt() / expected.std())


# Through gRPC


def latency(run: Run, name: str, label: str, asked: float, calls: list[Workload]) -> None:
    check_server()
    from benchmarks import load
    from benchmarks.servers import served

    requests = [load.request_of(workload.query, workload.documents) for workload in calls]
    with served("model", name) as server:
        for request in requests[:5]:
            load.one_by_one(server.target, [request], 1)
        caller = load.Caller(server.target)
        answers = [caller.call(request) for request in requests]
        caller.close()
    codes = {answer.code for answer in answers}
    if codes != {"OK"}:
        raise SystemExit(f"{name}: the server answered {', '.join(sorted(codes))}")
    milliseconds = [1e3 * answer.seconds for answer in answers]
    beside = f"p99 {1e3 * load.percentile(answers, 0.99):.1f} ms"
    run.figures.append(Figure(f"{name}: {label}", asked, milliseconds, beside, " ms", most=True))


def saturation(run: Run, name: str) -> None:
    check_server()
    from benchmarks import load
    from benchmarks.servers import CALLERS, concurrent_calls, served

    size, shares, rates = run.size, [], []
    requests = [load.request_of(workloads.QUERY, documents) for documents in concurrent_calls()]
    with served("model", name) as server, served("alone", name) as engine:
        load.closed_loop(server.target, requests, CALLERS, size.seconds)
        for _ in range(size.rounds):
            answers, seconds = load.closed_loop(server.target, requests, CALLERS, size.seconds)
            through = sum(answer.tokens for answer in answers) / seconds
            rates.append(engine.ask(str(size.seconds))["tokens_per_second"])
            shares.append(through / rates[-1])
    beside = f"engine alone {statistics.median(rates):,.0f} tokens/s"
    run.figures.append(Figure(f"{name}: W4 at saturation through gRPC ÷ engine alone", 0.90, shares, beside))


def check_server() -> None:
    """Raises NotHere where the server's packages are missing or too old for its stubs."""
    try:
        import rerank_grpc.server.server  # noqa: F401
    except Exception as error:  # the stubs check versions, too, each with errors of its own
        raise NotHere(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


# Language models


def decoder_figure(run: Run, name: str) -> None:
    size, path = run.size, checkpoints.checkpoint(name, run.size.device)
    workload = workloads_of(size, 1)[0]
    exact, theirs = (Theirs(path, each, size.device) for each in ("fp32", size.precision))
    logits = [torch.tensor(each.score(workload, 32, keep=1, by_length=True)) for each in (exact, theirs)]
    judge(run, name, path, workload, *logits)
    ours = Ours(path, size)
    ratios, pairs = [], []
    for turn in range(size.rounds + 1):
        own = timed(size, lambda: ours.score([ours.encode(workload)]))
        other = timed(size, lambda: theirs.score(workload, 32, keep=1, by_length=True))
        if turn:  # the first warms both
            ratios.append(other / own)
            pairs.append(size.documents / own)
    run.facts[name] = {"attention": ours.card.attention.label, "budget": ours.engine.max_batch_tokens}
    ours.close()
    beside = f"{statistics.median(pairs):.0f} pairs/s"
    label = f"{name} vs transformers, sorted by length, batches of 32, last logits"
    run.figures.append(Figure(label, 2.0, ratios, beside, "×"))


# The page


def facts(size: Size) -> dict[str, Any]:
    found: dict[str, Any] = {"when": report.now(), "machine": report.machine()}
    found["versions"] = report.versions(
        "torch", "transformers", "sentence-transformers", "flash-attn", "triton", "tokenizers", "grpcio"
    )
    if size.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["card"] = card.name
        found["card_memory_gib"] = round(card.total_memory / 2**30, 1)
        found["capability"] = list(torch.cuda.get_device_capability(0))
        found["cuda"] = torch.version.cuda
        found["driver"] = driver()
    return found


def driver() -> str:
    """The driver's version; "unknown" without nvidia-smi."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def data_of(run: Run) -> dict[str, Any]:
    figures = [
        {"name": each.name, "asked": each.asked, "samples": each.samples, "beside": each.beside}
        for each in run.figures
    ]
    return run.facts | {"figures": figures, "missing": run.missing, "scores": run.scores}


def page(run: Run) -> str:
    facts_, here = run.facts, run.facts["machine"]
    dry = "" if run.size is CARD else "**A dry run with tiny shapes: no figure of it means anything.**\n\n"
    rows = [each.row() for each in run.figures]
    rows += [[name, NOTHING, "not measured: " + reason, NOTHING, NOTHING] for name, reason in run.missing]
    card = f"{facts_['card']}, {facts_['card_memory_gib']} GiB" if "card" in facts_ else "no card"
    driver_ = f"driver {facts_['driver']}, CUDA {facts_['cuda']}; " if "card" in facts_ else ""
    models = [
        f"- {name}: {', '.join(f'{key} {value}' for key, value in facts_[name].items())}"
        for name in dict.fromkeys(run.size.shapes)
        if name in facts_
    ]
    return "\n".join(
        [
            "# One GPU\n",
            f"{dry}`python -m benchmarks.gpu`, {facts_['when']}, {facts_['seconds']} s. Medians of "
            f"{run.size.rounds} samples that take turns, with minimum and maximum.\n",
            report.table(["figure", "asked", "measured", "beside it", "met"], rows),
            "\nLogits beside transformers in fp32 on the same card: root mean squares as shares of the "
            f"logits' standard deviation. The bound is {BOUND} × transformers' own {run.size.precision}.\n",
            report.table(
                ["shape", "standard deviation", "ours", "transformers'", "ours in fp32", "within the bound"],
                run.scores,
            ),
            f"\n- {card}; {driver_}{here['processor']}, {here['cores']} cores; Python {here['python']}",
            f"- {', '.join(f'{name} {version}' for name, version in facts_['versions'].items())}",
            *models,
        ]
    )


if __name__ == "__main__":
    main()
