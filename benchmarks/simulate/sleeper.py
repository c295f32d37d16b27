"""A real server whose device sleeps, for a comparison with the simulator.

    python -m benchmarks.simulate.sleeper FIXED_SECONDS SECONDS_PER_TOKEN BUDGET

Prints one JSON line with its port. Each line on stdin is answered by the batches since the last one, as
[tokens, seconds]. A document's text is its pair's number and its tokens.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from dataclasses import replace
from time import perf_counter, sleep

from benchmarks.fileless import FilelessLoader, card_of
from benchmarks.servers import say
from benchmarks.simulate.costs import Cost
from benchmarks.simulate.loads import Arrival
from benchmarks.simulate.replica import OUTPUT, SMALLEST_TOKENS, sequences_of
from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.engine.meter import Counts
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.runner.runner import Landing
from rerank_grpc.sequence import Chunk, Sequence, TokenizedDocument, TokenizedRequest
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.records import BatchRecord
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import RerankRequest

CARD = card_of("sleeper", str(os.getpid()))  # the revision by which answers tell their server


class Sleeper:
    """A runner that takes the time of a cost, and the processor for none of it."""

    depth = 1

    def __init__(self, cost: Cost) -> None:
        self._cost = cost

    def launch(self, sequences: tuple[Sequence, ...]) -> Landing:
        until = perf_counter() + self._cost.of(sum(map(len, sequences)))

        def land() -> list[float]:
            sleep(max(0.0, until - perf_counter()))
            return [OUTPUT] * len(sequences)

        return land  # type: ignore[return-value]


class StatedTokens(Tokenizer):
    """Makes of each document as many tokens as its text says; the query is the call's number."""

    def __init__(self) -> None:
        """Needs no vocabulary."""

    def tokenize(
        self, request: RerankRequest, pace: Pace = UNHURRIED, left_out: Collection[str] = ()
    ) -> TokenizedRequest:
        sizes = tuple(int(document.text) for document in request.documents)
        documents = (TokenizedDocument((Chunk(index, size),), False) for index, size in enumerate(sizes))
        sequences = sequences_of(Arrival(0.0, sizes, int(request.query)))
        return TokenizedRequest(tuple(sequences), tuple(documents), None, query_truncated=False)


class CostedLoader(FilelessLoader):
    """Loads a model without files, calibrated as by a warm-up."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self.batches: list[tuple[int, float]] = []

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        cost = self._cost
        settings = EngineSettings(max_batch_tokens=cost.budget)
        engine = Engine(Sleeper(cost), settings, name=spec.name, on_death=on_death)
        smallest, full = (
            Counts(1, SMALLEST_TOKENS, cost.of(SMALLEST_TOKENS)),
            Counts(1, cost.budget, cost.of(cost.budget)),
        )
        engine.calibrate(smallest, full)
        engine.start()
        return LoadedModel(spec.name, CARD, StatedTokens(), engine)

    def note(self, batch: BatchRecord) -> None:
        """Takes the record of a batch."""
        self.batches.append((batch.tokens, batch.busy_seconds))


def main(fixed: str, per_token: str, budget: str) -> None:
    loader = CostedLoader(Cost(float(fixed), float(per_token), int(budget)))
    settings = replace(ServerSettings(), models=(ModelSpec("sleeper", "sleeper"),), port=0, admin_port=None)
    server = RerankServer(settings, loader=loader, sinks=(), on_batch=loader.note)
    server.start()
    server.wait_until_loaded()
    say(port=server.port)
    for _ in sys.stdin:
        told, loader.batches = loader.batches, []
        print(json.dumps({"batches": told}), flush=True)
    server.stop(5)


if __name__ == "__main__":
    main(*sys.argv[1:])
