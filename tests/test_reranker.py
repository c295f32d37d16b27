"""The reranker without a server: the root from which any front begins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.engine.engine import OnDeath
from rerank_grpc.errors import QueueFull
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.reranker import Reranker, build_reranker
from rerank_grpc.sequence import Output, Sequence, TokenizedRequest
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.types import Document, RerankRequest, RerankSummary, Scoring
from tests.support import CARD, CountingRunner, ScriptedLoader, WordTokenizer, token_ids

REQUEST = RerankRequest("q", [Document("a", id="1"), Document("b", id="2"), Document("a", id="3")], top_n=2)


@contextmanager
def reranking(settings: ServerSettings, runner: CountingRunner) -> Iterator[Reranker]:
    reranker = build_reranker(settings, ScriptedLoader(runner, settings.engine))
    reranker.registry.start()
    assert reranker.registry.wait_until_loaded(60)
    yield reranker
    reranker.registry.close()


def test_it_answers_with_the_settings_models_and_gives_its_permits_back() -> None:
    runner = CountingRunner()
    with reranking(ServerSettings(), runner) as reranker:
        response = reranker.rerank(REQUEST)
        streamed = list(reranker.stream(REQUEST))
        assert reranker.gate.calls == reranker.lobby.calls == 0
    assert response.summary.model == "embedded"
    assert len(response.results) == 2
    assert [result.logit for result in response.results] == sorted(
        (result.logit for result in response.results), reverse=True
    )
    assert isinstance(streamed[-1], RerankSummary)


class ApartTokenizer(WordTokenizer):
    """Makes a sequence of the query too, behind those of the documents."""

    def tokenize(
        self, request: RerankRequest, pace: Pace = UNHURRIED, left_out: Collection[str] = ()
    ) -> TokenizedRequest:
        tokenized = super().tokenize(request, pace, left_out)
        query = Sequence.of([len(request.query.split())])
        return replace(tokenized, sequences=(*tokenized.sequences, query), query=len(tokenized.sequences))


class LateInteractionLoader(ScriptedLoader):
    """Loads a late-interaction model, which has a scale as if the catalogue said so."""

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        card = replace(CARD, scoring=Scoring.MAXSIM, kind=Kind.BI_ENCODER, scale=0.5, offset=0.25)
        return replace(super().load(spec, on_death), card=card, tokenizer=ApartTokenizer())


def test_late_interaction_is_scored_from_matrices_with_the_models_scale_and_offset() -> None:
    def rows_of(sequence: Sequence) -> Output:
        tokens = token_ids(sequence)
        rows = np.eye(3, dtype=np.float32)
        return rows if tokens == [3] else rows[: len(tokens) - 5]  # 0, three words, 1: then the document's

    runner = CountingRunner(rows_of)
    reranker = build_reranker(ServerSettings(), LateInteractionLoader(runner))
    reranker.registry.start()
    request = RerankRequest("what is it", [Document(""), Document("a"), Document("a b c"), Document("a b")])
    response = reranker.rerank(request)
    streamed = [result for part in reranker.stream(request) if isinstance(part, list) for result in part]
    reranker.registry.close()
    logits = {result.index: result.logit for result in response.results}
    assert logits == {2: 3.0, 3: 2.0, 1: 1.0, 0: -1e9}
    assert [result.index for result in response.results] == [2, 3, 1, 0]
    scores = [result.relevance_score for result in response.results]
    assert scores == pytest.approx([(1 + (0.5 * logit + 0.25) / 3) / 2 for logit in (3, 2, 1)] + [0.0])
    assert sorted(streamed) == sorted(response.results)


def test_its_gate_is_as_wide_as_the_settings_say() -> None:
    with reranking(replace(ServerSettings(), max_calls=1), CountingRunner()) as reranker:
        with reranker.gate.enter(1), pytest.raises(QueueFull):
            reranker.rerank(REQUEST)
        assert reranker.rerank(REQUEST).results


def test_it_needs_no_grpc() -> None:
    program = "import sys, rerank_grpc.reranker; print({'grpc', 'rerank_grpc.server'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
