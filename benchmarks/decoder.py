"""Language models that rerank, beside transformers, and with and without the shared prefix.

    python -m benchmarks.decoder [documents] [rounds] [threads]

Qwen3-Reranker-0.6B's shape with random weights, in bf16 on the CPU, over W2: the
prompt and the query are about 90 tokens. All ways take turns in one run. Scores
are compared in fp32, on a small model of the same family whose scores differ.

With one thread, which is the default, processor time is measured: it is hardly
longer on a machine that has other work. With more, threads wait for each other,
and what counts is the clock on a machine that has none.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from benchmarks import checkpoints, report, workloads
from benchmarks.checkpoints import Shape
from benchmarks.report import Spread

SHAPE = "qwen3-0.6b"
SMALL = Shape("small", "", "qwen3", 4, 256, 8, 512, 16_384, 2048, 0.1, kv_heads=4, head_size=32)
ROUNDS = 5
DOCUMENTS = 40
THREADS = 1
BATCH_TOKENS = 2048
CARD, SORTED = "transformers, as the model card", "transformers, sorted, last logits"
WHOLE, SHARED = "ours, prefix not shared", "ours"
GOALS = ((CARD, 2.0), (SORTED, 1.5), (WHOLE, 1.35))
Way = Callable[[], list[float]]


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    count, rounds, threads = (*given, *(DOCUMENTS, ROUNDS, THREADS)[len(given) :])
    torch.set_num_threads(threads)
    clock = process_time if threads == 1 else perf_counter
    data: dict[str, Any] = {"when": report.now(), "load_before": report.load_average(), "documents": count}
    data["clock"] = "processor time" if threads == 1 else "wall time"
    data["differences"] = compare()
    ways, tokens = ways_of(checkpoints.checkpoint(SHAPE), workloads.passages(count), "bf16")
    data |= tokens
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1, rounds + 1):
        for name, run in ways.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
            print(f"{turn}/{rounds} {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    write(data | {"seconds": seconds, "load_after": report.load_average()})


def compare() -> dict[str, float]:
    """The largest differences of logits in fp32, as shares of their standard deviation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoints.QWEN3_NAME
        checkpoints.write(SMALL, path)
        ways, _ = ways_of(path, workloads.passages(24), "fp32")
        logits = {name: torch.tensor(run()) for name, run in ways.items()}
    scale = float(logits[CARD].std())
    found = {name: float((logits[name] - logits[CARD]).abs().max()) / scale for name in (WHOLE, SHARED)}
    return found | {"standard deviation": scale}


def ways_of(
    path: Path, workload: workloads.Workload, precision: str
) -> tuple[dict[str, Way], dict[str, Any]]:
    """All ways to score a workload, each from texts to logits."""
    theirs = Theirs(path, precision)
    ours = Ours(path, workload, precision)
    ways: dict[str, Way] = {
        CARD: lambda: theirs.score(workload, 8, keep=0, by_length=False),
        SORTED: lambda: theirs.score(workload, 32, keep=1, by_length=True),
        WHOLE: lambda: ours.score(shared=False),
        SHARED: lambda: ours.score(shared=True),
    }
    few = replace(workload, documents=workload.documents[:2])
    theirs.score(few, 8, keep=1, by_length=False)
    ours.warm_up(few.documents)
    return ways, ours.tokens()


class Theirs:
    """The model card's code."""

    def __init__(self, path: Path, precision: str, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self._network = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().to(device)
        self._answers = [self._tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]

    @torch.inference_mode()
    def score(self, workload: workloads.Workload, size: int, *, keep: int, by_length: bool) -> list[float]:
        rows = rows_of(self._tokenizer, workload)
        order = (
            sorted(range(len(rows)), key=lambda at: len(rows[at])) if by_length else list(range(len(rows)))
        )
        logits = [0.0] * len(rows)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = self._tokenizer.pad(
                {"input_ids": [rows[at] for at in chosen]}, padding=True, return_tensors="pt"
            ).to(self._network.device)
            last = self._network(**batch, logits_to_keep=keep).logits[:, -1, :].float()
            yes, no = last[:, self._answers].unbind(1)
            for at, logit in zip(chosen, (yes - no).tolist(), strict=True):
                logits[at] = logit
        return logits


def rows_of(tokenizer: Any, workload: workloads.Workload) -> list[list[int]]:
    """The token ids of each pair, in the model's prompt."""
    from rerank_grpc.checkpoints.catalogue import builtin

    known = builtin().find(checkpoints.QWEN3_NAME)
    if known is None:
        raise SystemExit(f"the catalogue has no {checkpoints.QWEN3_NAME}")
    segments, instruction = known.prompt["segments"], known.prompt["instruction"]
    before, asked, after = (
        segment.format(instruction=instruction, query=workload.query, document="{document}")
        for segment in segments
    )
    ids = partial(tokenizer.encode, add_special_tokens=False)
    pairs = [asked.replace("{document}", document) for document in workload.documents]
    return [ids(before) + ids(pair) + ids(after) for pair in pairs]


class Ours:
    """The service's own path: tokenizer, scheduler, runner, model."""

    def __init__(self, path: Path, workload: workloads.Workload, precision: str) -> None:
        from rerank_grpc.config.settings import EngineSettings, ServerSettings
        from rerank_grpc.engine.engine import Engine
        from rerank_grpc.registry.loading import ModelLoader
        from rerank_grpc.runner.runner import CpuRunner
        from rerank_grpc.tokenizer.tokenizer import tokenizer_for

        model = ModelLoader(ServerSettings(device="cpu", precision=precision)).read_model(str(path))
        self._workload = workload
        self._own = tokenizer_for(model.card)
        self._engine = Engine(
            CpuRunner(model), EngineSettings(max_batch_tokens=BATCH_TOKENS, hang_seconds=600)
        )
        self._engine.start()

    def score(self, *, shared: bool) -> list[float]:
        from rerank_grpc.types import Call

        request = workloads.request_of(self._workload.query, self._workload.documents)
        tokenized = self._own.tokenize(request)
        sequences = [tokenized.sequences[each.chunks[0].sequence] for each in tokenized.documents]
        if not shared:
            sequences = [sequence.whole() for sequence in sequences]
        with self._engine.admit(Call()) as admission:
            future = admission.submit(sequences)
            future.wait()
        return [float(output) for output in future.outputs]  # type: ignore[arg-type]

    def warm_up(self, documents: tuple[str, ...]) -> None:
        whole, self._workload = self._workload, replace(self._workload, documents=documents)
        self.score(shared=True)
        self._workload = whole

    def tokens(self) -> dict[str, Any]:
        request = workloads.request_of(self._workload.query, self._workload.documents)
        sequences = self._own.tokenize(request).sequences
        prefix = sequences[0].prefix
        assert prefix is not None
        return {
            "prefix_tokens": sum(map(len, prefix.chain())),
            "tokens_after_the_prefix": sum(map(len, sequences)),
        }


def write(data: dict[str, Any]) -> None:
    count = data["documents"]
    data["machine"] = report.machine()
    data["versions"] = report.versions("torch", "transformers", "tokenizers")
    seconds, ours = data["seconds"], data["seconds"][SHARED]
    rows = []
    for name, samples in seconds.items():
        ratio = Spread.of([theirs / own for theirs, own in zip(samples, ours, strict=True)])
        goal = next((f"{bound:g}" for other, bound in GOALS if other == name), "")
        pairs = Spread.of([count / sample for sample in samples])
        rows.append([name, pairs.text(), ratio.text() if name != SHARED else "", goal])
    per_document = data["tokens_after_the_prefix"] / count
    most = (per_document + data["prefix_tokens"]) / per_document
    data["ratio_by_arithmetic"] = most
    differences = data["differences"]
    lines = [
        "# Language models: Qwen3-Reranker-0.6B's shape, bf16, CPU\n",
        f"{count} documents of W2, {per_document:.0f} tokens each with what stands after them, "
        f"behind a prompt and query of {data['prefix_tokens']} tokens. Medians of {len(ours)} rounds, with "
        "minimum and maximum; ratios are taken round by round.\n",
        report.table(["", f"pairs a second of {data['clock']}", "ours is faster by", "goal"], rows),
        f"\nBy arithmetic alone, sharing the prefix is worth {most:.2f}.\n",
        "Logits in fp32, small shape, largest difference from transformers as a share of their standard "
        f"deviation ({differences['standard deviation']:.2f}): shared {differences[SHARED]:.1e}, "
        f"not shared {differences[WHOLE]:.1e}; goal 1e-4.\n",
        report.facts(torch.get_num_threads(), data["versions"]),
        f"- load average {data['load_before']} before, {data['load_after']} after; {data['when']}",
        f"- `python -m benchmarks.decoder {count} {len(ours)} {torch.get_num_threads()}`",
    ]
    markdown = "\n".join(lines)
    report.write("decoder", data, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
