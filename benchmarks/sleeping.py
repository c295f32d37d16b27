"""A loader whose models cost a sleep for each token: machines of any size, on a machine of two cores."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from benchmarks.fileless import FilelessLoader, card_of
from rerank_grpc.config.settings import EngineSettings, ModelSpec
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.runner.runner import Landing
from rerank_grpc.sequence import Chunk, Output, Sequence, TokenizedDocument, TokenizedRequest
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import RerankRequest

CARD = card_of("sleeping")


class SleepingRunner:
    """Sleeps for each token of a batch; the score depends on every token."""

    depth = 1

    def __init__(self, seconds_per_token: float) -> None:
        self._seconds = seconds_per_token

    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        return partial(self._run, sequences)

    def _run(self, sequences: tuple[Sequence, ...]) -> list[Output | None]:
        if self._seconds:
            time.sleep(self._seconds * sum(map(len, sequences)))
        return [zlib.crc32(sequence.ids) / 2**31 - 1 for sequence in sequences]


class PlainTokenizer(Tokenizer):
    """Makes one token of each word."""

    def __init__(self) -> None:
        """Needs no vocabulary."""

    def tokenize(
        self, request: RerankRequest, pace: Pace = UNHURRIED, left_out: Collection[str] = ()
    ) -> TokenizedRequest:
        head = [_token(word) for word in request.query.split()]
        bodies = [[_token(word) for word in document.text.split()] for document in request.documents]
        return TokenizedRequest(
            sequences=tuple(Sequence.of([0, *head, 1, *body]) for body in bodies),
            documents=tuple(
                TokenizedDocument((Chunk(index, len(body)),), truncated=False)
                for index, body in enumerate(bodies)
            ),
            query=None,
            query_truncated=False,
        )


def _token(word: str) -> int:
    return zlib.crc32(word.encode()) >> 1


@dataclass(frozen=True)
class SleepingLoader(FilelessLoader):
    """Loads such models; pickles, so that it reaches the replicas of a cluster.

    `load_seconds` is how long a model takes to load.
    """

    seconds_per_token: float = 0.0
    batch_tokens: int = 1_024
    load_seconds: float = 0.0

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        time.sleep(self.load_seconds)
        settings = EngineSettings(max_batch_tokens=self.batch_tokens)
        engine = Engine(SleepingRunner(self.seconds_per_token), settings, name=spec.name, on_death=on_death)
        engine.start()
        return LoadedModel(spec.name, CARD, PlainTokenizer(), engine)


def main(seconds_per_token: float) -> None:
    """Serves on any free port, as a plain server does; prints the port, and ends with stdin."""
    from rerank_grpc.config.settings import ServerSettings
    from rerank_grpc.server.server import RerankServer

    settings = ServerSettings(port=0, admin_port=None, metrics_port=None)
    server = RerankServer(settings, loader=SleepingLoader(seconds_per_token))
    server.start()
    server.wait_until_loaded()
    print(server.port, flush=True)
    sys.stdin.read()
    server.stop(5)


if __name__ == "__main__":
    main(float(sys.argv[1]))
