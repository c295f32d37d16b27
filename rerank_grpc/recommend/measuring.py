"""Measures one model, in the process that is its alone.

The path is a server's without the network: registry, tokenizer, queue, batches, network. One caller measures
the latency of a call, several callers the documents of a second; each calls again when it has its answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import monotonic, process_time
from typing import NamedTuple

import numpy as np
import torch

from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.recommend.figures import Latency, Measured, MeasureTask
from rerank_grpc.recommend.texts import QUERY, TextPool, make_texts
from rerank_grpc.registry.memory import used_bytes
from rerank_grpc.registry.registry import END_SECONDS
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.reranker import Reranker, build_reranker
from rerank_grpc.types import Call, Document, RerankRequest

CALLERS = 2  # at once, for documents/s: while one call's answer is made, another one's batch runs
POOL = 400  # documents, of which neighbouring calls have none in common
PATIENCE = 3.0  # times its share of the time may one call take; a longer one is told by a shorter one
SAMPLED_TEXTS = 8
STAT, IDLE = Path("/proc/stat"), slice(3, 5)  # idle, and waiting for a disk
# Of this process, in KiB: what is not a file's.
STATUS, MEMORY_LINES = Path("/proc/self/status"), ("RssAnon:", "RssShmem:")


def measure(task: MeasureTask, send: Callable[[Measured], None]) -> None:
    """Loads a model and measures it; sends a Measured after each step. Raises what a load raises."""
    settings = replace(task.settings, models=(ModelSpec(task.source, task.source),))
    started = monotonic()
    reranker = build_reranker(settings)
    reranker.registry.start()
    try:
        reranker.registry.wait_until_loaded()
        with reranker.registry.lease(task.source, Call()) as model:
            card, seconds = model.card, monotonic() - started
            found = Measured(card.precision, card.device, card.attention_label, card.max_tokens, seconds)
            send(found)
            _measure_loaded(reranker, model, task, found, send)
    finally:
        reranker.registry.close(wait_seconds=END_SECONDS)


def _measure_loaded(
    reranker: Reranker,
    model: LoadedModel,
    task: MeasureTask,
    found: Measured,
    send: Callable[[Measured], None],
) -> None:
    """Measures latencies from the fewest candidates on, then the rate; sends what it has after each."""

    def count(text: str) -> int:
        tokenized = model.tokenizer.tokenize(RerankRequest(QUERY, (Document(text),)))
        return sum(chunk.tokens for chunk in tokenized.documents[0].chunks)

    texts = make_texts(task.tokens, max(POOL, 2 * max(task.candidates)), count)
    sample = texts.documents[:SAMPLED_TEXTS]
    found = replace(found, tokens_per_document=sum(map(count, sample)) / len(sample))
    loop, usage = ClosedLoop(reranker, texts), ProcessorTime.now()
    share = task.seconds / (len(task.candidates) + 1)
    fewest = min(task.candidates)
    each = loop.timed(fewest) / fewest  # the warm-up, which also tells how long a document takes
    for candidates in sorted(task.candidates):
        latency = loop.latency(candidates, share, expected=each * candidates)
        each = latency.p50 / candidates
        found = replace(found, latencies=(*found.latencies, latency))
        send(found)
    fitting = [each.candidates for each in found.latencies if each.calls and each.p50 <= share]
    rate = loop.rate(max(fitting), share) if fitting else 1 / each
    others, resident = usage.others(ProcessorTime.now()), _resident(model)
    send(replace(found, documents_per_second=rate, resident=resident, others=others, complete=True))


class ClosedLoop:
    """Callers that call again when they have their answer, each call with documents of its own."""

    def __init__(self, reranker: Reranker, texts: TextPool) -> None:
        self._reranker, self._texts = reranker, texts
        self._numbers = count(1)

    def timed(self, candidates: int) -> float:
        """Makes one call; returns its seconds."""
        number = next(self._numbers)
        documents = tuple(map(Document, self._texts.take(number, candidates)))
        request = RerankRequest(f"{QUERY} {number}", documents)
        began = monotonic()
        self._reranker.rerank(request)
        return monotonic() - began

    def latency(self, candidates: int, seconds: float, *, expected: float) -> Latency:
        """Measures the calls of one caller for so long, one call at least.

        Where one is `expected` to take much longer, none is made, and the latency is what is expected.
        """
        if expected > PATIENCE * seconds and candidates > 1:
            return Latency(candidates, 0, expected, expected)
        taken, end = [self.timed(candidates)], monotonic() + seconds
        end -= taken[0]
        while monotonic() < end:
            taken.append(self.timed(candidates))
        return latency_of(candidates, taken)

    def rate(self, candidates: int, seconds: float) -> float:
        """Measures the documents/s of several callers together."""
        with ThreadPoolExecutor(CALLERS) as pool:
            futures = [pool.submit(self._rate, candidates, seconds) for _ in range(CALLERS)]
            return sum(future.result() for future in futures)

    def _rate(self, candidates: int, seconds: float) -> float:
        began, documents, taken = monotonic(), 0, 0.0
        while taken < seconds:
            self.timed(candidates)
            documents += candidates
            taken = monotonic() - began
        return documents / taken


def latency_of(candidates: int, taken: Sequence[float]) -> Latency:
    """Returns the latency of calls that took so many seconds; p95 is a call's own, of few the slowest."""
    p95 = np.percentile(taken, 95, method="higher")
    return Latency(candidates, len(taken), float(np.median(taken)), float(p95))


class ProcessorTime(NamedTuple):
    """The time of all processors in ticks, the busy ones among them, and this process's own seconds."""

    total: int
    busy: int
    own: float

    @classmethod
    def now(cls) -> ProcessorTime:
        """Reads it; zeros where the system does not tell it."""
        try:
            ticks = [int(word) for word in STAT.read_text("ascii").partition("\n")[0].split()[1:9]]
        except (OSError, ValueError):
            return cls(0, 0, 0.0)
        return cls(sum(ticks), sum(ticks) - sum(ticks[IDLE]), process_time())

    def others(self, later: ProcessorTime) -> float:
        """Returns the share that other processes took until `later`."""
        total = later.total - self.total
        if total <= 0:
            return 0.0
        own = (later.own - self.own) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (later.busy - self.busy - own) / total))


def _resident(model: LoadedModel) -> int:
    """Returns the bytes of this process without the pages of files; on a GPU those of the model's card."""
    if not model.card.device.startswith("cpu"):
        return used_bytes(torch.device(model.card.device))
    try:
        lines = (line.split() for line in STATUS.read_text("ascii").splitlines())
        found = {words[0]: int(words[1]) << 10 for words in lines if words and words[0] in MEMORY_LINES}
    except OSError:
        found = {}
    return sum(found.values()) or used_bytes(torch.device("cpu"))
