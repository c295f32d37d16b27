"""Parts for tests: a server in this process, and runners that can be held, counted and broken."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Sequence as ListOf
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks.fileless import FilelessLoader, card_of
from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.checkpoints.lookup import Source
from rerank_grpc.cli.logs import json_formatter, people_formatter
from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.engine.future import Future
from rerank_grpc.limits import LIMITS
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.runner.runner import Landing, OutOfMemory, Runner
from rerank_grpc.sequence import Chunk, Output, Sequence, TokenizedDocument, TokenizedRequest
from rerank_grpc.server import patience
from rerank_grpc.server.patience import Waiting
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import Sink
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import Call, Priority, RerankRequest
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

if TYPE_CHECKING:
    import pytest

WAIT = 20.0  # seconds after which a test that waits for something has failed
LONG = 4 * WAIT  # for what a test holds back while it waits for several things
# gRPC itself would call this machine too through a proxy of the environment.
NO_PROXY = ("grpc.enable_http_proxy", 0)


def score_of(sequence: Sequence) -> float:
    """The logit that the scripted runners give: any number that depends on every token."""
    return zlib.crc32(sequence.ids) / 2**31 - 1


def token_ids(sequence: Sequence) -> list[int]:
    """Unpacks the token ids of a sequence."""
    return array("i", sequence.ids).tolist()


def tokens_of(sequences: Iterable[Sequence]) -> int:
    """Adds up the tokens of sequences, without their prefixes."""
    return sum(map(len, sequences))


class CountingRunner:
    """Costs nothing, and remembers the batches it was given.

    Attributes:
        score: gives the output of a sequence.
    """

    depth = 1

    def __init__(self, score: Callable[[Sequence], Output | None] = score_of) -> None:
        self.batches: list[tuple[Sequence, ...]] = []
        self.score = score

    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        return partial(self.run, sequences)

    def run(self, sequences: tuple[Sequence, ...]) -> list[Output | None]:
        """Runs when the batch lands."""
        self.batches.append(sequences)
        return [self.score(sequence) for sequence in sequences]

    @property
    def sequences(self) -> int:
        return sum(map(len, self.batches))


class SmallMemory(CountingRunner):
    """Runs out of memory above so many tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def run(self, sequences: tuple[Sequence, ...]) -> list[Output | None]:
        if tokens_of(sequences) > self.tokens:
            self.batches.append(sequences)
            raise OutOfMemory
        return super().run(sequences)


class HeldRunner(CountingRunner):
    """Starts every batch only when the test lets it: `entered` counts them in, `let` lets them through.

    Attributes:
        begun: how many batches have reached the device, those in `batches` among them.
    """

    def __init__(self, score: Callable[[Sequence], Output | None] = score_of) -> None:
        super().__init__(score)
        self.begun = 0
        self.entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)

    def run(self, sequences: tuple[Sequence, ...]) -> list[Output | None]:
        self.begun += 1
        self.entered.release()
        assert self._passes.acquire(timeout=LONG), "the test never let the batch run"
        return super().run(sequences)

    def await_batch(self) -> None:
        """Waits until a batch has reached the device."""
        assert self.entered.acquire(timeout=WAIT), "no batch came"

    def let(self, batches: int = 1) -> None:
        """Lets so many batches through."""
        self._passes.release(batches)

    def let_all(self) -> None:
        """Lets every further batch through."""
        self._passes.release(1_000_000)


def submit(
    engine: Engine,
    sequences: ListOf[Sequence],
    *,
    deadline: float = math.inf,
    priority: Priority = Priority.INTERACTIVE,
    stepwise: bool = False,
) -> Future:
    """Submits sequences for a call that never leaves."""
    return engine.admit(Call(deadline), priority).submit(sequences, stepwise=stepwise)


class WordTokenizer(Tokenizer):
    """Makes one token of each word; a sequence is the query's and the document's words."""

    def __init__(self) -> None:
        """Needs no vocabulary."""

    def tokenize(
        self, request: RerankRequest, pace: Pace = UNHURRIED, left_out: Collection[str] = ()
    ) -> TokenizedRequest:
        head = [_word(word) for word in request.query.split()]
        texts = [document.text for document in request.documents]
        bodies = [[_word(word) for word in text.split()] for text in texts if text not in left_out]
        chunks = ((Chunk(index, len(body)),) for index, body in enumerate(bodies))
        return TokenizedRequest(
            sequences=tuple(Sequence.of([0, *head, 1, *body]) for body in bodies),
            documents=tuple(
                TokenizedDocument(() if text in left_out else next(chunks), truncated=False) for text in texts
            ),
            query=None,
            query_truncated=False,
        )


def _word(word: str) -> int:
    return zlib.crc32(word.encode()) >> 1


CARD = card_of("test")


class ScriptedLoader(FilelessLoader):
    """Loads models without files, which run on a given runner, without a warm-up."""

    def __init__(self, runner: Runner | None = None, settings: EngineSettings | None = None) -> None:
        self._runner = runner or CountingRunner()
        self._settings = settings or EngineSettings()

    def hub_id(self, spec: ModelSpec) -> str:
        return Source.read(spec.source, builtin()).public_id(Path("no directory"))

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        engine = Engine(self._runner, self._settings, name=spec.name, on_death=on_death)
        engine.start()
        return LoadedModel(spec.name, CARD, WordTokenizer(), engine)


class LateLoader(ScriptedLoader):
    """Loads a model, or a lazy one alone, only when a test lets it."""

    def __init__(self, *, lazy_only: bool = False) -> None:
        super().__init__()
        self.may_load = threading.Event()
        self._lazy_only = lazy_only

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        assert (self._lazy_only and not spec.lazy) or self.may_load.wait(LONG)
        return super().load(spec, on_death)


@contextmanager
def serving(
    settings: ServerSettings | None = None,
    *,
    runner: Runner | None = None,
    sinks: ListOf[Sink] = (log_call,),
) -> Iterator[RerankServer]:
    """Runs a server on free ports: of the embedded model, or of a scripted runner."""
    settings = replace(settings or ServerSettings(), port=0, admin_port=0)
    loader = ScriptedLoader(runner, settings.engine) if runner else None
    server = RerankServer(settings, loader=loader, sinks=sinks)
    server.start()
    try:
        assert server.wait_until_loaded(60)
        yield server
    finally:
        if isinstance(runner, HeldRunner):
            runner.let_all()
        server.stop(5)


def loaded_in(server: RerankServer) -> LoadedModel:
    """Returns a server's default model without keeping it in memory."""
    lease = server.registry.lease_now("")
    assert lease is not None
    with lease as loaded:
        return loaded


@contextmanager
def stub_of(port: int | None) -> Iterator[rerank_pb2_grpc.RerankServiceStub]:
    """Opens a channel of its own connection to a server on loopback."""
    with channel_of(port) as channel:
        yield rerank_pb2_grpc.RerankServiceStub(channel)


@contextmanager
def channel_of(port: int | None, *more: tuple[str, str | int]) -> Iterator[grpc.Channel]:
    """Opens a channel that shares no connection with another, and goes through no proxy."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 16 << 20)]
    options.append(NO_PROXY)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[*options, *more]) as channel:
        yield channel


def request_of(query: str, *documents: str, **fields: Any) -> pb.RerankRequest:
    """Makes a request message."""
    return pb.RerankRequest(query=query, documents=[pb.Document(text=text) for text in documents], **fields)


def own_deadline(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Has a server end calls after so many seconds of its own.

    A caller's deadline would end them at the same moment from both sides.
    """
    monkeypatch.setattr("rerank_grpc.server.handler.LIMITS", replace(LIMITS, deadline_seconds=seconds))


def waiting_of(server: RerankServer, noun: str) -> Waiting:
    """Returns the waits of a server for one kind of thing, such as "a request (rerank)"."""
    return next(kind for kind in server._patience.waitings if kind.noun == noun)


class PatienceClock:
    """The time by which servers wait for their callers; it stands still but for what a test adds to `now`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(patience, "monotonic", self)

    def __call__(self) -> float:
        return self.now


def drains_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Keeps to how many seconds servers that stop from now on cut each of their waits."""
    drains, begin_drain = dict[str, float](), Waiting.begin_drain

    def noting(waiting: Waiting, seconds: float) -> None:
        drains[waiting.noun] = seconds
        begin_drain(waiting, seconds)

    monkeypatch.setattr(Waiting, "begin_drain", noting)
    return drains


@contextmanager
def processor_time() -> Iterator[Callable[[], float]]:
    """Yields what tells this thread's seconds so far: no other thread's, and none of Python's collections."""
    collects = gc.isenabled()
    gc.disable()
    started = time.thread_time()
    try:
        yield lambda: time.thread_time() - started
    finally:
        if collects:
            gc.enable()


def wait_for(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    """Waits until a condition holds, asking again and again, or fails."""
    given_up = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        given_up.wait(0.005)
    raise AssertionError("it never came true")


def call_lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """The lines of calls as people read them, without time and level."""
    formatter = people_formatter()
    calls = [each for each in caplog.records if each.name == "rerank_grpc.calls" and each.levelno >= level]
    return [formatter.format(record).split(maxsplit=3)[3] for record in calls]


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged, as pytest has it and in both of a server's forms."""
    forms = people_formatter(), json_formatter()
    return "\n".join([caplog.text, *(form.format(each) for form in forms for each in caplog.records)])
