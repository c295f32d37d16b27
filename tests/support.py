"""Parts for tests: a server in this process, and runners that can be held, counted and broken."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from rerank_grpc.config import EngineSettings, ModelSpec, Settings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import Kind, ModelCard
from rerank_grpc.registry import LoadedModel, Loader
from rerank_grpc.runner.runner import Runner
from rerank_grpc.sequence import Chunk, Output, PackedBatch, Sequence, TokenizedDocument, TokenizedRequest
from rerank_grpc.server.app import RerankServer
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.types import Scoring, Truncation
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

WAIT = 20.0  # seconds after which a test that waits for something has failed


def score_of(sequence: Sequence) -> float:
    """The logit that the scripted runners give: any number that depends on every token."""
    return zlib.crc32(sequence.ids) / 2**31 - 1


class CountingRunner:
    """Costs nothing, and remembers the batches it was given."""

    def __init__(self, score: Callable[[Sequence], Output | None] = score_of) -> None:
        self.batches: list[PackedBatch] = []
        self._score = score

    def run(self, batch: PackedBatch) -> list[Output | None]:
        self.batches.append(batch)
        return [self._score(sequence) for sequence in batch.sequences]

    @property
    def sequences(self) -> int:
        return sum(len(batch.sequences) for batch in self.batches)


class HeldRunner(CountingRunner):
    """Starts every batch only when the test lets it: `entered` counts them in, `let` lets them through."""

    def __init__(self, score: Callable[[Sequence], Output | None] = score_of) -> None:
        super().__init__(score)
        self.entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)

    def run(self, batch: PackedBatch) -> list[Output | None]:
        self.entered.release()
        assert self._passes.acquire(timeout=WAIT), "the test never let the batch run"
        return super().run(batch)

    def await_batch(self) -> None:
        """Waits until a batch has reached the device."""
        assert self.entered.acquire(timeout=WAIT), "no batch came"

    def let(self, batches: int = 1) -> None:
        """Lets so many batches through."""
        self._passes.release(batches)

    def let_all(self) -> None:
        """Lets every further batch through."""
        self._passes.release(1_000_000)


class WordEncoder:
    """Makes one token of each word; a sequence is the query's and the document's words."""

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
        pace: Pace = UNHURRIED,
    ) -> TokenizedRequest:
        head = [_word(word) for word in query.split()]
        bodies = [[_word(word) for word in text.split()] for text in documents]
        return TokenizedRequest(
            sequences=tuple(Sequence.of([0, *head, 1, *body]) for body in bodies),
            documents=tuple(
                TokenizedDocument((Chunk(index, len(body)),), truncated=False)
                for index, body in enumerate(bodies)
            ),
            query=None,
            query_truncated=False,
        )


def _word(word: str) -> int:
    return zlib.crc32(word.encode()) >> 1


CARD = ModelCard(
    source="test",
    revision="test",
    family="test",
    scoring=Scoring.SIGMOID,
    kind=Kind.CROSS_ENCODER,
    max_tokens=512,
    device="cpu",
    precision="fp32",
    attention=Attention.SDPA,
    tokenizer_file=Path("none"),
)


def loader_of(runner: Runner, settings: EngineSettings) -> Loader:
    """Makes a loader whose every model runs on the given runner, without a warm-up."""

    def load(spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        engine = Engine(runner, settings, name=spec.name, on_death=on_death)
        engine.start()
        return LoadedModel(spec.name, CARD, WordEncoder(), engine)

    return load


@contextmanager
def serving(settings: Settings | None = None, *, runner: Runner | None = None) -> Iterator[RerankServer]:
    """Runs a server on free ports: of the embedded model, or of a scripted runner."""
    settings = replace(settings or Settings(), port=0, admin_port=0)
    load = loader_of(runner, settings.engine) if runner else None
    server = RerankServer(settings, load=load)
    server.start()
    try:
        assert server.wait_until_loaded(60)
        yield server
    finally:
        if isinstance(runner, HeldRunner):
            runner.let_all()
        server.stop(5)


@contextmanager
def stub_of(port: int | None) -> Iterator[rerank_pb2_grpc.RerankServiceStub]:
    """Opens a channel of its own connection to a server on loopback."""
    with channel_of(port) as channel:
        yield rerank_pb2_grpc.RerankServiceStub(channel)


@contextmanager
def channel_of(port: int | None) -> Iterator[grpc.Channel]:
    """Opens a channel that shares no connection with another."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 16 << 20)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel


def request_of(query: str, *documents: str, **fields: object) -> pb.RerankRequest:
    """Makes a request message."""
    return pb.RerankRequest(query=query, documents=[pb.Document(text=text) for text in documents], **fields)


def wait_for(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    """Waits until a condition holds, asking again and again, or fails."""
    given_up = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        given_up.wait(0.005)
    raise AssertionError("it never came true")
