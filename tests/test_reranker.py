"""The reranker without a server: the root from which any front begins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import QueueFull
from rerank_grpc.reranker import Reranker, build_reranker
from rerank_grpc.types import Document, RerankRequest, RerankSummary
from tests.support import CountingRunner, ScriptedLoader

REQUEST = RerankRequest("q", [Document("a", id="1"), Document("b", id="2"), Document("a", id="3")], top_n=2)


@contextmanager
def reranking(settings: ServerSettings, runner: CountingRunner) -> Iterator[Reranker]:
    reranker = build_reranker(settings, ScriptedLoader(runner, settings.engine))
    reranker.registry.start()
    assert reranker.registry.wait_until_loaded(10)
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


def test_its_gate_is_as_wide_as_the_settings_say() -> None:
    with reranking(replace(ServerSettings(), max_calls=1), CountingRunner()) as reranker:
        with reranker.gate.enter(1), pytest.raises(QueueFull):
            reranker.rerank(REQUEST)
        assert reranker.rerank(REQUEST).results


def test_it_needs_no_grpc() -> None:
    program = "import sys, rerank_grpc.reranker; print({'grpc', 'rerank_grpc.server'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
