"""The service without its server: tokenizer, scheduler, runner and model, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from benchmarks import workloads
from benchmarks.gpu.size import Size
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from rerank_grpc.sequence import Sequence


class Ours:
    """A model behind its engine; without a warm-up where only scores are asked.

    Attributes:
        ready_seconds: from the first byte read to a warm engine.
        runner_seconds: of these, for the runner, which captures the small passes.
        graphs: how many of them it captured.
    """

    def __init__(self, path: Path, size: Size, precision: str | None = None, *, warm: bool = True) -> None:
        from rerank_grpc.config.settings import EngineSettings, ServerSettings
        from rerank_grpc.engine.engine import Engine
        from rerank_grpc.registry.loading import ModelLoader
        from rerank_grpc.registry.warmup import warm_up
        from rerank_grpc.runner.cuda import runner_for
        from rerank_grpc.tokenizer.tokenizer import tokenizer_for

        began = perf_counter()
        settings = ServerSettings(device=size.device, precision=precision or size.precision)
        self.model = ModelLoader(settings).read_model(str(path))
        self.card = self.model.card
        self.tokenizer = tokenizer_for(self.card)
        read = perf_counter()
        self.runner: Any = runner_for(self.model)
        self.runner_seconds = perf_counter() - read
        self.graphs = len(getattr(self.runner, "_graphs", ()))
        self.engine = Engine(
            self.runner, EngineSettings(max_batch_tokens=size.budget or None, hang_seconds=600)
        )
        self.engine.start()
        if warm:
            warm_up(self.engine, self.tokenizer, self.card)
        self.ready_seconds = perf_counter() - began
        self._room: dict[tuple[str, int], int] = {}

    def facts(self) -> dict[str, Any]:
        return {
            "attention": self.card.attention.label,
            "precision": self.card.precision,
            "budget": self.engine.max_batch_tokens,
            "READY seconds": round(self.ready_seconds, 1),
            "captured graphs": self.graphs,
            "seconds of capture": round(self.runner_seconds, 1),
        }

    def encode(self, workload: Workload) -> list[Sequence]:
        """Pairs are cut where the others cut them; a language model's prompt is nowhere cut."""
        request = workloads.request_of(workload.query, workload.documents, self._room_for(workload))
        tokenized = self.tokenizer.tokenize(request)
        return [tokenized.sequences[each.chunks[0].sequence] for each in tokenized.documents]

    def _room_for(self, workload: Workload) -> int:
        """The tokens that a document may have beside the query; 0 for any number."""
        if self.card.reading.prompt is not None:
            return 0
        key = workload.query, workload.max_tokens
        if key not in self._room:
            empty = self.tokenizer.tokenize(workloads.request_of(workload.query, [""]))
            self._room[key] = workload.max_tokens - len(empty.sequences[0])
        return self._room[key]

    def score(self, calls: list[list[Sequence]]) -> list[float]:
        """Runs all calls at once; returns the logits."""
        from rerank_grpc.types import Call

        with ExitStack() as inside:
            admissions = [inside.enter_context(self.engine.admit(Call())) for _ in calls]
            requests = [admission.submit(call) for admission, call in zip(admissions, calls, strict=True)]
            for request in requests:
                request.wait()
        return [workloads.logit_of(output) for request in requests for output in request.outputs]

    def score_texts(self, calls: list[Workload]) -> list[float]:
        """Runs all calls at once from their texts, each on a thread of its own, as the server does."""
        with ThreadPoolExecutor(len(calls)) as callers:
            found = callers.map(lambda call: self.score([self.encode(call)]), calls)
            return [logit for logits in found for logit in logits]

    def close(self) -> None:
        """Ends the engine and frees its memory, as far as nothing else holds it."""
        self.engine.close()
        del self.runner, self.model, self.engine
        give_back()


def give_back() -> None:
    """Gives free memory back to the card."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait(size: Size) -> None:
    """Waits for the card."""
    if size.device == "cuda":
        torch.cuda.synchronize()


class PeakMemory:
    """The most memory that this process had on the card since `reset`; on the CPU what it has now.

    Attributes:
        held: bytes that torch held.
        taken: bytes of these in tensors.
    """

    def __init__(self, size: Size) -> None:
        self._on_card = size.device == "cuda"
        self.held = self.taken = 0
        self.reset()

    def reset(self) -> None:
        """Gives free memory back and begins a new count."""
        self.held = self.taken = 0
        if self._on_card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def note(self) -> None:
        """Takes the peak until now."""
        if self._on_card:
            held, taken = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
        else:
            held = taken = used_bytes()
        self.held, self.taken = max(self.held, held), max(self.taken, taken)

    @contextmanager
    def through(self) -> Iterator[None]:
        """Notes the peak of what runs within, though a warm-up begins counts of its own."""
        begin = torch.cuda.reset_peak_memory_stats

        def noting(*arguments: Any) -> None:
            self.note()
            begin(*arguments)

        with patch.object(torch.cuda, "reset_peak_memory_stats", noting):
            yield
        self.note()

    def text(self) -> str:
        return f"{self.held >> 20:,} MiB held, {self.taken >> 20:,} in tensors"


def used_bytes() -> int:
    """Bytes of this process in the machine's memory."""
    from rerank_grpc.registry import memory

    return memory.used_bytes(memory.HOST)
