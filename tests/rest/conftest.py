"""One server with a scripted runner, one with the embedded model, and REST for each."""

from collections.abc import Iterator

import pytest

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.server.server import RerankServer
from tests.ports import refusing_port
from tests.rest.support import rest_server
from tests.support import CountingRunner, serving

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
def refusing() -> Iterator[int]:
    """A port that refuses every connection."""
    with refusing_port() as port:
        yield port
