"""Every route of REST, as its app lists them: entered by callers that may, beside a server and alone."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from starlette.routing import Route

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.tokens import SentToken
from rerank_grpc.callers import Right
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.errors import PermissionDenied
from rerank_grpc.rest.app import NormalPath, RerankEndpoint, build_app
from rerank_grpc.rest.connect.protocol import STATUSES
from rerank_grpc.rest.connect.stream import STREAM_PATH, StreamEndpoint
from rerank_grpc.rest.connect.unary import METHODS, ConnectEndpoint
from rerank_grpc.rest.dialects import PREFIXES
from rerank_grpc.rest.discovery import Discovery
from rerank_grpc.rest.errors import problem_of
from rerank_grpc.rest.pages import playground
from rerank_grpc.rest.recorder import Recorder
from rerank_grpc.rest.server import RestServer
from rerank_grpc.rest.upstream import Upstream
from tests.callers import MODELS, STRANGERS, settings_of
from tests.rest.support import Reply, enveloped, opened, read
from tests.support import CountingRunner, serving

# A body of the superset on every path.
BODY = {"query": "q", "documents": ["d"], "texts": ["d"]}
PUBLIC = {"/", "/health", "/ping", "/v1/cluster/auth", "/.well-known/live", "/.well-known/ready"}
PLAYGROUND = {route.path for route in playground.routes()}
DOCUMENTATION = {"/openapi.json", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"} | PLAYGROUND
PUBLIC_WORK = ("root", "health", "cluster_auth", "live", "ready")
TELLING = (*PUBLIC_WORK, "models", "model", "infinity_models", "info", "model_info")


class RestWalk(NamedTuple):
    """A port of REST, and the endpoints that were entered."""

    port: int
    entered: list[str]

    def send(self, method: str, path: str, *values: str, body: Any = None) -> Reply:
        """Sends a request with these authorizations."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path)
            sent = json.dumps(BODY if body is None else body).encode() if method == "POST" else b""
            streams = path == STREAM_PATH
            sent = enveloped(sent) if streams else sent
            connection.putheader("Content-Length", str(len(sent)))
            connection.putheader("Content-Type", f"application/{'connect+' if streams else ''}json")
            for value in values:
                connection.putheader("Authorization", value.encode("latin-1"))
            connection.endheaders(sent)
            reply = read(connection)
            return as_one_reply(reply) if streams else reply
        finally:
            connection.close()


def as_one_reply(stream: Reply) -> Reply:
    """Makes of a stream that holds an error alone what a method with one reply would answer."""
    assert stream.status == 200
    _, end = opened(stream.raw)
    error = end.get("error", {})
    metadata = {name: values[0] for name, values in end.get("metadata", {}).items()}
    status = STATUSES[error["code"]] if error else 200
    return Reply(status, {**stream.headers, **metadata}, json.dumps(error).encode())


def routes() -> Iterator[tuple[str, str, Right | None]]:
    """Yields method, path, and what it should need, of every route that the app has."""
    access, upstream = AccessList(()), Upstream(("127.0.0.1:1",), token=SentToken(None))
    # Beyond loopback, where nothing stands before the routes.
    app = build_app(RestSettings(host="0.0.0.0"), upstream, access, None, Recorder())
    assert isinstance(app, NormalPath)
    for route in app._app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            if "{service}" in route.path:
                for path, known in METHODS.items():
                    yield method, path, Right.RERANK if known.name == "Rerank" else Right.LIST
                continue
            path = re.sub(r"\{[^}]*\}", "one", route.path)
            public = method == "GET" and path in PUBLIC | DOCUMENTATION
            yield method, path, None if public else Right.RERANK if method == "POST" else Right.LIST


ROUTES = list(routes())


def counting(work: Callable[..., Any], name: str, entered: list[str]) -> Callable[..., Any]:
    """Notes each call of an endpoint's work."""

    async def counted(*arguments: Any) -> Any:
        entered.append(name)
        return await work(*arguments)

    return counted


@pytest.fixture(scope="module", params=["beside the server", "alone, of an open server"])
def walk(request: pytest.FixtureRequest) -> Iterator[RestWalk]:
    entered: list[str] = []
    settings, alone = settings_of(), request.param.startswith("alone")
    with pytest.MonkeyPatch.context() as patch:
        for owner in (RerankEndpoint, ConnectEndpoint, StreamEndpoint):
            patch.setattr(owner, "respond", counting(owner.respond, owner.__name__, entered))
        for name in TELLING:
            patch.setattr(Discovery, name, counting(getattr(Discovery, name), name, entered))
        served = replace(ServerSettings(), models=MODELS) if alone else settings
        with serving(served, runner=CountingRunner()) as server:
            rest = replace(RestSettings(), port=0, targets=(f"127.0.0.1:{server.port}",))
            if alone:
                running = RestServer(replace(rest, token_file=settings.token_file))
            else:
                of_server = server.registry.configured_name
                rest = replace(rest, upstream_token=server.access.own)
                running = RestServer(rest, server.health, access=server.access, configured_name=of_server)
            running.start()
            try:
                yield RestWalk(running.port, entered)
            finally:
                running.stop(5)


def test_the_routes_that_are_public_are_these() -> None:
    public = {path for method, path, right in ROUTES if right is None}
    assert public == PUBLIC | DOCUMENTATION
    assert all(path == "/playground" or path.startswith("/playground/") for path in PLAYGROUND)
    assert {path for path, right in [(path, right) for _, path, right in ROUTES] if right is Right.LIST} == {
        "/v1/models",
        "/v1/models/one",
        "/models",
        "/info",
        "/model-info",
        "/meta",
        "/rerank.v1.RerankService/ListModels",
        "/rerank.v1.RerankService/Health",
    }


@pytest.mark.parametrize("case", [*STRANGERS, "not ASCII"])
def test_nobody_enters_a_route_without_a_token_that_counts(walk: RestWalk, case: str) -> None:
    values = STRANGERS.get(case, ["Bearer all-tokén"])
    for method, path, right in ROUTES:
        before = len(walk.entered)
        reply = walk.send(method, path, *values)
        if right is None:
            assert reply.status in (200, 204), path
            assert path in DOCUMENTATION or len(walk.entered) > before, path
            continue
        assert reply.status == 401, path
        assert reply.headers["www-authenticate"] == "Bearer"
        assert walk.entered[before:] == [], path
        assert b"some-token" not in reply.raw
        assert ("has expired" in reply.raw.decode()) == (case == "expired"), path


def test_a_caller_enters_what_its_rights_are_for_and_nothing_else(walk: RestWalk) -> None:
    for method, path, needed in ROUTES:
        for right in Right:
            before = len(walk.entered)
            reply = walk.send(method, path, f"Bearer no-{right.value}-token")
            if right is not needed:
                assert reply.status not in (401, 403), (path, right)
                assert path in DOCUMENTATION or len(walk.entered) > before, (path, right)
                continue
            assert reply.status == 403, (path, right)
            assert f"no-{right.value} lacks the right" in reply.raw.decode()
            assert walk.entered[before:] == [], path


def test_a_caller_of_one_model_gets_nothing_of_another(walk: RestWalk) -> None:
    for method, path, right in ROUTES:
        lists = path in ("/v1/models", "/models", "/rerank.v1.RerankService/ListModels")
        connect = path in METHODS or path == STREAM_PATH
        body: Any = {} if path.endswith(("/ListModels", "/Health")) else None
        if connect and body is None:
            body = {"query": "q", "documents": [{"text": "d"}], "model": "uno"}
        reply = walk.send(method, path, "Bearer narrow-token", body=body)
        if path not in DOCUMENTATION:
            assert b'"one"' not in reply.raw, path
            assert b'"uno"' not in reply.raw, path
        if right is None or lists:
            assert reply.status in (200, 204), path
            assert not lists or b'"two"' in reply.raw
        else:
            assert reply.status == 403, (path, reply.raw)


def test_a_caller_of_one_model_has_that_one_by_all_its_names(walk: RestWalk) -> None:
    for name in ("two", "due"):
        body = BODY | {"model": name}
        assert walk.send("POST", "/v1/rerank", "Bearer narrow-token", body=body).json["results"]
        told = walk.send("GET", f"/v1/models/{name}", "Bearer narrow-token")
        assert told.json["id"] == name
        path, asked = "/rerank.v1.RerankService/Health", {"model": name}
        health = walk.send("POST", path, "Bearer narrow-token", body=asked)
        assert health.json["model"] == "two"


def test_a_model_that_is_not_there_and_one_that_is_anothers_are_told_apart_by_nobody(walk: RestWalk) -> None:
    told = set()
    for name in ("one", "uno", "", "three"):
        reply = walk.send("POST", "/v1/rerank", "Bearer narrow-token", body=BODY | {"model": name})
        told.add((reply.status, reply.raw))
    assert len(told) == 1
    assert told.pop()[0] == 403
    described = [walk.send("GET", f"/v1/models/{name}", "Bearer narrow-token") for name in ("one", "three")]
    assert [reply.status for reply in described] == [403, 403]
    assert described[0].raw == described[1].raw


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_dialect_tells_a_missing_right_in_its_own_form(walk: RestWalk, prefix: str) -> None:
    reply = walk.send("POST", f"/{prefix}/v1/rerank", "Bearer no-rerank-token")
    assert reply.status == 403
    assert "no-rerank lacks the right 'rerank'" in reply.raw.decode()
    form = PREFIXES[prefix][-1]
    assert reply.json.keys() == form.error(problem_of(PermissionDenied("no"), token_sent=True))[1].keys()
