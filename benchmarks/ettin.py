"""Passages through an ettin-reranker-150m of random weights, against sentence-transformers' CrossEncoder.

    python -m benchmarks.ettin

Both read the same files, modules.json and its chain of modules among them, in one process, in turns. Prints
the seconds of each, their ratios and the largest difference between logits, and writes results/ettin.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import checkpoints, workloads

ROUNDS = 3
MAX_TOKENS = 512  # where W2 cuts its documents
RESULT = Path(__file__).parent / "results" / "ettin.json"


def write(path: Path) -> Path:
    """Writes ettin-reranker-150m as its files are, with random weights; returns its directory."""
    import transformers
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(0)
    config = transformers.ModernBertConfig(  # whose defaults are the shape
        vocab_size=50_368,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
        initializer_range=0.05,
    )
    body = path / "body"
    transformers.ModernBertModel(config).save_pretrained(body)
    checkpoints.unigram(7_999).save_pretrained(body)
    size = config.hidden_size
    modules: list[Any] = [
        Transformer(str(body), max_seq_length=MAX_TOKENS),
        Pooling(size, "cls"),
        Dense(size, size, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(size),
        Dense(size, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    whole = path / "ettin"
    CrossEncoder(modules=modules, activation_fn=torch.nn.Identity()).save_pretrained(str(whole))
    return whole


def ours(path: Path, precision: str, workload: workloads.Workload) -> Callable[[], list[float]]:
    """Returns what scores the workload as the service does, from texts to logits."""
    from rerank_grpc.config.settings import ServerSettings
    from rerank_grpc.registry.loading import ModelLoader
    from rerank_grpc.registry.probes import checked_tokenizer
    from rerank_grpc.runner.runner import CpuRunner
    from rerank_grpc.types import Document, RerankRequest

    model = ModelLoader(ServerSettings(device="cpu", precision=precision)).read_model(str(path))
    tokenizer, runner = checked_tokenizer(model.card), CpuRunner(model)
    request = RerankRequest(workload.query, [Document(text) for text in workload.documents])

    def score() -> list[float]:
        found = tokenizer.tokenize(request)
        order = sorted(range(len(found.sequences)), key=lambda at: len(found.sequences[at]))
        logits: dict[int, Any] = {}
        for start in range(0, len(order), 16):  # some 2,000 tokens, as a server's batches have
            batch = order[start : start + 16]
            outputs = runner.launch(tuple(found.sequences[at] for at in batch))()
            logits.update(zip(batch, outputs, strict=True))
        return [logits[document.chunks[0].sequence] for document in found.documents]

    return score


def theirs(path: Path, workload: workloads.Workload) -> Callable[[], list[float]]:
    """Returns what scores the workload by CrossEncoder in fp32, its default."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(path), device="cpu")
    pairs = [(workload.query, text) for text in workload.documents]
    return lambda: list(map(float, model.predict(pairs, show_progress_bar=False)))


def main() -> None:
    import tempfile

    torch.set_num_threads(2)
    workload = workloads.passages()
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        systems = {
            "CrossEncoder fp32": theirs(path, workload),
            "rerank-grpc fp32": ours(path, "fp32", workload),
            "rerank-grpc bf16": ours(path, "bf16", workload),
        }
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        logits = {name: score() for name, score in systems.items()}  # warms up
        for _ in range(ROUNDS):
            for name, score in systems.items():
                begun = time.perf_counter()
                score()
                seconds[name].append(time.perf_counter() - begun)
                print(f"{name:18} {seconds[name][-1]:6.2f} s", file=sys.stderr, flush=True)
    first, expected = next(iter(seconds.items())), logits["CrossEncoder fp32"]
    spread = max(expected) - min(expected)
    result: dict[str, dict[str, Any]] = {
        name: {
            "seconds": own,
            "times as fast": round(median(b / a for a, b in zip(own, first[1], strict=True)), 3),
            "difference": max(abs(a - b) for a, b in zip(logits[name], expected, strict=True)) / spread,
        }
        for name, own in seconds.items()
    }
    for name, found in result.items():
        print(
            f"{name:18} {median(found['seconds']):6.2f} s  {found['times as fast']:.2f} times as fast  "
            f"difference {found['difference']:.1e} of the spread"
        )
    RESULT.write_text(
        json.dumps({"torch": torch.__version__, "threads": 2, "results": result}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
