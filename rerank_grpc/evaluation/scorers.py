"""Scores a query's documents, by a running server or by a model that is loaded here."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple, Protocol

from rerank_grpc.client import Client
from rerank_grpc.client.parts import merged, named, parts_of
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.errors import ConfigurationError, PermissionDenied, RerankError
from rerank_grpc.types import Call, Document, ModelInfo, RerankRequest, RerankResponse

PROBE = "which model is this?"  # asked once, so that a wrong name is told before the work
CONCURRENCY = 8  # calls at once to a server: its batches are full while others wait


class PairScore(NamedTuple):
    """A document's score, as the service gives it; by descending logits is the service's order."""

    logit: float
    relevance_score: float


class ModelIdentity(NamedTuple):
    """The model that scores: its name, the revision of its files, and the precision that it is held in.

    `precision` is "" where a server's ListModels is forbidden: its answers do not tell it.
    """

    name: str
    revision: str
    precision: str = ""


class QueryScores(NamedTuple):
    """The scores of a query's documents in their order; `seconds` from the call to its answer.

    `inference_seconds` is the model's own part: tokenization and forward passes, without the queue.
    """

    scores: list[PairScore]
    seconds: float
    inference_seconds: float


class QueryScorer(Protocol):
    """Scores the documents of one query after another; several threads may call it at once."""

    identity: ModelIdentity  # known before the first query
    concurrency: int  # how many calls at once are of use

    def info(self) -> ModelInfo:
        """Describes the model as ListModels does; raises RerankError."""

    def confirm(self) -> None:
        """Raises ConfigurationError where the model is no longer the one of `identity`, or RerankError."""

    def scores(self, query: str, documents: Sequence[str]) -> list[PairScore]:
        """Scores documents, at least one; raises RerankError."""

    def score(self, query: str, documents: Sequence[str]) -> QueryScores:
        """Scores documents, at least one, and tells the time that it took; raises RerankError."""


class _Scorer:
    """The half of both scorers: requests, answers by the documents' places, and the time."""

    identity: ModelIdentity

    def __init__(self, instruction: str, concurrency: int) -> None:
        self._instruction = instruction
        self.concurrency = concurrency

    def confirm(self) -> None:
        """Does nothing: a model in this process stays what it is."""

    def scores(self, query: str, documents: Sequence[str]) -> list[PairScore]:
        """Scores documents, at least one; raises RerankError."""
        return self.score(query, documents).scores

    def score(self, query: str, documents: Sequence[str]) -> QueryScores:
        """Scores documents, at least one, and tells the time that it took; raises RerankError."""
        began = time.perf_counter()
        response = self._answer(query, documents)
        seconds = time.perf_counter() - began
        found: list[PairScore | None] = [None] * len(documents)
        for result in response.results:
            found[result.index] = PairScore(result.logit, result.relevance_score)
        usage = response.summary.usage
        own = usage.tokenization_seconds + usage.inference_seconds
        return QueryScores([each for each in found if each is not None], seconds, own)

    def _answer(self, query: str, documents: Sequence[str]) -> RerankResponse:
        raise NotImplementedError


class ServerScorer(_Scorer):
    """Scores by a model of a running server; "" is the server's default one.

    A call that is refused for the moment waits, within the client's timeout, as the server asks. Raises
    RerankError where the server is away or has no such model, and ConfigurationError where its model changes
    between two calls.
    """

    def __init__(
        self, client: Client, model: str = "", *, instruction: str = "", concurrency: int = CONCURRENCY
    ) -> None:
        super().__init__(instruction, concurrency)
        self._client = client
        self._model = model
        self.identity = self._identify()

    def info(self) -> ModelInfo:
        """Asks the server for the model's description; raises RerankError."""
        return self._listed(self.identity.name)

    def confirm(self) -> None:
        """Asks the server once more: a precision that has changed shows in no answer."""
        found = self._identify()
        if found != self.identity:
            raise self._changed(found)

    def _identify(self) -> ModelIdentity:
        summary = self._ask(PROBE, [PROBE]).summary  # the model is in memory then, and can be described
        try:
            info = self._listed(summary.model)
        except PermissionDenied:
            return ModelIdentity(summary.model, summary.model_revision)
        if info.revision != summary.model_revision:
            raise ConfigurationError(
                f"the server has unloaded or replaced model {summary.model}: run it once more"
            )
        return ModelIdentity(summary.model, info.revision, info.precision)

    def _listed(self, name: str) -> ModelInfo:
        for each in self._client.list_models():
            if each.name == name:
                return each
        raise ConfigurationError(f"the server has answered by model {name}, and does not list it")

    def _answer(self, query: str, documents: Sequence[str]) -> RerankResponse:
        response = self._ask(query, documents)
        summary = response.summary
        found = ModelIdentity(summary.model, summary.model_revision, self.identity.precision)
        if found != self.identity:
            raise self._changed(found)
        return response

    def _changed(self, found: ModelIdentity) -> ConfigurationError:
        before, now = (" ".join(filter(None, each)) for each in (self.identity, found))
        return ConfigurationError(
            f"the server's model was {before}, and now it is {now}: all queries must be scored by one"
        )

    def _ask(self, query: str, documents: Sequence[str]) -> RerankResponse:
        # rerank_many is patient: a server that is full is background work's usual state.
        with self._client.rerank_many(
            [(query, documents)], self._model or None, concurrency=1, instruction=self._instruction or None
        ) as responses:
            return next(responses)


class LoadedScorer(_Scorer):
    """Scores by a model in this process, on the path of the server's calls: the same scores and order.

    Raises ModelLoadError where it cannot be loaded, which takes as long as at a server's start.
    """

    def __init__(
        self, source: str, settings: ServerSettings, *, instruction: str = "", concurrency: int = 1
    ) -> None:
        from rerank_grpc.reranker import build_reranker

        super().__init__(instruction, concurrency)
        self._calls: set[Call] = set()  # under way
        # The command's own line says why a load failed; without a handler, Python would print the log's too.
        logging.getLogger("rerank_grpc").addHandler(logging.NullHandler())
        self._reranker = build_reranker(replace(settings, models=(ModelSpec(source, source),)))
        registry = self._reranker.registry
        registry.start()
        try:
            registry.wait_until_loaded()
            summary = self._answer(PROBE, [PROBE]).summary
        except BaseException:
            self.close()
            raise
        info = registry.info("")
        self.identity = ModelIdentity(summary.model, summary.model_revision, info.precision)

    def info(self) -> ModelInfo:
        """Describes the model."""
        return self._reranker.registry.info("")

    def close(self) -> None:
        """Ends the calls and the engine, and lets the model leave memory."""
        from rerank_grpc.registry.registry import END_SECONDS

        for call in list(self._calls):
            call.cancel()
        self._reranker.registry.close(wait_seconds=END_SECONDS)

    def _answer(self, query: str, documents: Sequence[str]) -> RerankResponse:
        texts = [Document(text) for text in documents]
        request = RerankRequest(query, texts, instruction=self._instruction)
        several = parts_of(request)
        replies = []
        call = Call()
        self._calls.add(call)
        try:
            for part in several:
                with named(part):
                    replies.append(self._reranker.rerank(part.request, call))
        finally:
            self._calls.discard(call)
        return merged(request, several, replies)


def bring(sources: Iterable[str], settings: ServerSettings) -> None:
    """Brings models' files to this machine and checks them, without loading; raises ModelLoadError."""
    from rerank_grpc.registry.loading import ModelLoader

    loader = ModelLoader(settings)
    for source in sources:
        loader.prepare(ModelSpec(source, source))


@contextmanager
def server_scorer(
    client: Client, model: str, *, instruction: str = "", concurrency: int = CONCURRENCY
) -> Iterator[QueryScorer]:
    """Gives a scorer by a server's model, as long as a `with` statement; closes nothing of the client."""
    yield ServerScorer(client, model, instruction=instruction, concurrency=concurrency)


@contextmanager
def loaded_scorer(
    source: str, settings: ServerSettings, *, instruction: str = "", concurrency: int = 1
) -> Iterator[QueryScorer]:
    """Gives a scorer by a model that is loaded here, and unloaded when a `with` statement ends."""
    scorer = LoadedScorer(source, settings, instruction=instruction, concurrency=concurrency)
    try:
        yield scorer
    finally:
        with suppress(RerankError):
            scorer.close()
