"""A model that is still loading: REST says so within the caller's time, and when to come back."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.client import Client
from rerank_grpc.config.settings import ModelSpec, RestSettings, ServerSettings
from rerank_grpc.rest.server import RestServer
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.server.server import RerankServer
from rerank_grpc.types import Health, State
from tests.random_models import bert
from tests.rest.support import HOST, get, post, rest_server
from tests.rest.test_rest_connections import BODY
from tests.support import LateLoader, serving


@contextlib.contextmanager
def loading() -> Iterator[RerankServer]:
    """Runs a server whose model is being loaded until the end."""
    loader = LateLoader()
    server = RerankServer(replace(ServerSettings(), port=0, admin_port=0), loader=loader)
    server.start()
    try:
        yield server
    finally:
        loader.may_load.set()
        server.stop(5)


def test_a_call_is_told_within_its_time_that_the_model_is_loading() -> None:
    with loading() as server, rest_server(server.port) as port:
        for seconds in (0.3, 0.6, 1.5):
            # The answer has a tenth of the time to come: on a busy machine the time may be over first.
            for timeout in (seconds, 3 * seconds, 10 * seconds):
                began = monotonic()
                reply = post(port, "/v1/rerank", BODY, x_request_timeout=f"{timeout:g}")
                if in_time := monotonic() - began < timeout:
                    break
            assert in_time, reply
            assert (reply.status, reply.json["error"]["code"]) == (503, "model_loading"), seconds
            assert int(reply.headers["retry-after"]) >= 1
        assert get(port, "/health").status == 503


DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("/v2/rerank", {"query": "q", "documents": ["d"]}),
    "jina": ("/v1/rerank", {"query": "q", "documents": ["d"], "return_documents": True}),
    "dashscope": (
        "/api/v1/services/rerank/text-rerank/text-rerank",
        {"input": {"query": "q", "documents": ["d"]}},
    ),
}


@pytest.fixture(scope="module")
def half_broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Serves a model, and lazily a directory that says it runs code: the directory, and REST's port."""
    broken = bert(tmp_path_factory.mktemp("models") / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    models = (ModelSpec("embedded", "embedded"), ModelSpec("broken", str(broken), lazy=True))
    with serving(ServerSettings(models=models)) as server, rest_server(server.port) as port:
        yield broken, port


@pytest.mark.parametrize("dialect", DIALECTS)
def test_callers_of_a_refused_model_get_the_reason_while_the_other_is_served(
    half_broken: tuple[Path, int], dialect: str
) -> None:
    directory, port = half_broken
    path, body = DIALECTS[dialect]
    refused = post(port, path, {**body, "model": "broken"})
    assert refused.status == 503
    text = refused.json["message"]
    assert text.startswith("model broken failed: ")
    assert str(directory) in text
    assert "auto_map" in text
    assert "\n" not in text
    assert post(port, path, {**body, "model": "embedded"}).status == 200


@pytest.mark.parametrize(
    ("state", "serving", "status", "word"),
    [
        (State.READY, True, 200, "healthy"),
        (State.UNLOADED, True, 200, "healthy"),
        (State.UNLOADED, False, 503, "unhealthy"),
        (State.LOADING, False, 503, "unhealthy"),
        (State.READY, False, 503, "unhealthy"),
    ],
)
def test_health_is_whether_a_call_would_be_answered(
    port: int, monkeypatch: pytest.MonkeyPatch, state: State, serving: bool, status: int, word: str
) -> None:
    async def own_health(_upstream: Upstream) -> Health:
        return Health("m", state, "1", serving=serving)

    monkeypatch.setattr(Upstream, "own_health", own_health)
    for path in ("/health", "/ping"):
        reply = get(port, path)
        assert reply.status == status
        assert reply.json["status"] == word
        assert reply.json["model_loaded"] is (state is State.READY)
    ready = get(port, "/.well-known/ready")
    assert ready.status == (204 if status == 200 else 503)
    assert ready.raw == (b"" if status == 200 else reply.raw)
    assert get(port, "/.well-known/live").status == 204


@pytest.mark.parametrize("tokens", [(), ("token",)])
def test_in_the_servers_own_process_probes_need_no_call(refusing: int, tokens: tuple[str, ...]) -> None:
    told = [Health("m", State.READY, "1", serving=True), Health("m", State.FAILED, "1")]
    settings = RestSettings(host=HOST, port=0, targets=(f"{HOST}:{refusing}",))
    server = RestServer(settings, lambda: told[0], access=AccessList(tokens))
    server.start()
    try:
        for status in (200, 503):
            for path in ("/health", "/ping"):
                reply = get(server.port, path)
                assert (reply.status, reply.json["model"]) == (status, "m")
            told.reverse()
        assert get(server.port, "/v1/cluster/auth").json == {"auth": bool(tokens)}
    finally:
        server.stop(1)


def test_a_server_tells_its_health_as_a_call_does(scripted: RerankServer) -> None:
    with Client(f"{HOST}:{scripted.port}") as client:
        called, told = client.health(), scripted.health()
    assert replace(called, uptime_seconds=0.0) == replace(told, uptime_seconds=0.0)
    assert told.serving
    with rest_server(scripted.port) as without, rest_server(scripted.port, health=scripted.health) as port:
        for path in ("/", "/health", "/v1/cluster/auth"):
            assert get(port, path).json == get(without, path).json
