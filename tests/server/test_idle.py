"""An idle default model that has left memory is healthy for every probe, and the next call has it loaded."""

from collections.abc import Iterator

import pytest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.registry import eviction
from rerank_grpc.server.server import RerankServer
from rerank_grpc.types import State
from tests.command import run
from tests.rest.support import HOST, get, post, rest_server
from tests.server.test_health import SERVING, check
from tests.support import WAIT, channel_of, request_of, serving, stub_of, wait_for


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[RerankServer]:
    """A server whose only model has left memory."""
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 0.0)
    with serving(ServerSettings(idle_seconds=0.01)) as server:
        wait_for(lambda: server.registry.info("").state is State.UNLOADED)
        yield server


def test_it_is_serving_for_probes_over_grpc(idle: RerankServer) -> None:
    for port in (idle.port, idle.admin_port):
        with channel_of(port) as channel:
            assert check(channel) == SERVING
    assert idle.registry.info("").state is State.UNLOADED, "a probe has it loaded: this proves nothing"


def test_it_is_serving_for_the_command(idle: RerankServer) -> None:
    done = run("health", "--target", f"{HOST}:{idle.port}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "embedded is UNLOADED and serving" in done.stdout


@pytest.mark.parametrize("beside", [True, False], ids=["in the server's process", "apart"])
def test_it_is_healthy_for_probes_over_rest(idle: RerankServer, beside: bool) -> None:
    with rest_server(idle.port, health=idle.health if beside else None) as port:
        for path in ("/health", "/ping"):
            reply = get(port, path)
            assert (reply.status, reply.json["status"], reply.json["model_loaded"]) == (200, "healthy", False)


def test_the_next_call_has_it_loaded(idle: RerankServer) -> None:
    with stub_of(idle.port) as stub, rest_server(idle.port) as port:
        assert stub.Rerank(request_of("q", "d"), timeout=3 * WAIT).model == "embedded"
        wait_for(lambda: idle.registry.info("").state is State.UNLOADED)
        assert post(port, "/v1/rerank", {"query": "q", "documents": ["d"]}).status == 200
