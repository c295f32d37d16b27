"""What the service is compared with: plain products, transformers and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks import checkpoints
from benchmarks.gpu.ours import give_back, wait
from benchmarks.gpu.size import Size
from benchmarks.gpu.telling import NotHere
from benchmarks.servers import taking_turns
from benchmarks.workloads import Workload

# Rows of a plain product: more change nothing, all of W2 at once would not fit a small card.
MOST_ROWS = 16_384
REPEATS = 5  # of all layers: some tenths of a second on a card


def timed(size: Size, work: Callable[[], object]) -> float:
    """Seconds of some work, until the card is done."""
    wait(size)
    started = perf_counter()
    work()
    wait(size)
    return perf_counter() - started


def plain_product(shape: checkpoints.Shape, rows: int, size: Size) -> Callable[[], float]:
    """FLOP/s of one layer's products after the other, over random rows, of all layers' weights.

    Weights lie as a linear layer has them  # [outputs, inputs]
    """
    dtype = torch.bfloat16 if size.precision == "bf16" else torch.float32

    def random(*sides: int) -> torch.Tensor:
        return torch.randn(*sides, device=size.device, dtype=dtype)

    sides = shape.products
    layers = [[random(outputs, inputs) for inputs, outputs in sides] for _ in range(shape.layers)]
    factors = [random(rows, inputs) for inputs, _ in sides]

    @torch.inference_mode()
    def multiply() -> None:
        for _ in range(REPEATS):
            for layer in layers:
                for factor, weight in zip(factors, layer, strict=True):
                    torch.mm(factor, weight.t())

    multiply()
    flop = 2.0 * rows * shape.linear_weights * REPEATS
    return lambda: flop / timed(size, multiply)


def sentence_transformers(
    path: Path, size: Size, pairs: list[tuple[str, str]]
) -> tuple[Callable[[], object], int]:
    """Its faster way of two batch sizes to score all pairs, which it sorts by length; and that size."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise NotHere(str(error)) from error
    options = {"dtype": torch.bfloat16} if size.precision == "bf16" else {}
    model = CrossEncoder(str(path), device=size.device, max_length=512, model_kwargs=options)

    def way(batch: int) -> Callable[[], object]:
        return lambda: model.predict(pairs, batch_size=batch, show_progress_bar=False)

    model.predict(pairs[:64], batch_size=32, show_progress_bar=False)
    seconds = {batch: min(timed(size, way(batch)) for _ in range(2)) for batch in (32, 128)}
    best = min(seconds, key=seconds.__getitem__)
    return way(best), best


def batch_by_batch(network: Any, tokenizer: Any, workload: Workload) -> list[float]:
    """Logits of all pairs, ten at a time."""
    logits: list[float] = []
    for start in range(0, len(workload.pairs), 10):
        queries, documents = zip(*workload.pairs[start : start + 10], strict=True)
        batch = tokenizer(
            list(queries),
            list(documents),
            truncation="only_second",
            max_length=512,
            padding=True,
            return_tensors="pt",
        ).to(network.device)
        logits += network(**batch).logits[:, 0].float().tolist()
    return logits


@torch.inference_mode()
def transformers_logits(path: Path, workload: Workload, size: Size, dtype: torch.dtype) -> list[float]:
    """Logits of a classifier's own forward, in small batches."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).to(size.device).eval()
    with taking_turns():
        logits = batch_by_batch(network, tokenizer, workload)
    del network
    give_back()
    return logits


def weight_bytes(path: Path, bytes_each: int) -> int:
    """Bytes of a checkpoint's parameters at so many for each."""
    from math import prod

    from rerank_grpc.checkpoints.checkpoint import find_weights, read_header

    headers = [read_header(each) for each in find_weights(path)]
    count: int = sum(prod(entry["shape"]) for header in headers for entry in header.values())
    return bytes_each * count
