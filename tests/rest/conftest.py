"""One server with a scripted runner, one with the embedded model, and REST for each."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.rest.target import NO_METADATA, PROBE_SECONDS, Question, Target
from rerank_grpc.rest.upstream import WATCH_SECONDS
from rerank_grpc.server.server import RerankServer
from tests.ports import refusing_port
from tests.rest.support import rest_server
from tests.support import WAIT, CountingRunner, serving

ALIASES = ("rerank-v3.5", "BAAI/bge-reranker-base", "rerank-2")


@pytest.fixture(scope="session")
def scripted() -> Iterator[RerankServer]:
    """A server whose scores are any numbers, but always the same."""
    settings = ServerSettings(models=(ModelSpec("embedded", "embedded", ALIASES),))
    with serving(settings, runner=CountingRunner()) as server:
        yield server


@pytest.fixture(scope="session")
def port(scripted: RerankServer) -> Iterator[int]:
    """The port of REST for the scripted server."""
    with rest_server(scripted.port) as port:
        yield port


@pytest.fixture(scope="session")
def embedded() -> Iterator[RerankServer]:
    """A server with the embedded model."""
    with serving() as server:
        yield server


@pytest.fixture
def patient_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has REST wait for what it asks by itself, so that no server seems away because the machine is busy."""
    ask = Target.ask

    async def ask_patiently(
        target: Target,
        question: Question[Any],
        token: str | None,
        timeout: float = PROBE_SECONDS,
        metadata: Mapping[str, str] = NO_METADATA,
    ) -> Any:
        own = timeout in (PROBE_SECONDS, WATCH_SECONDS)
        return await ask(target, question, token, WAIT if own else timeout, metadata)

    monkeypatch.setattr(Target, "ask", ask_patiently)


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that refuses every connection."""
    with refusing_port() as port:
        yield port
