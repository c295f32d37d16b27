"""Who may call: all forms of a token, in front of servers with and without one (R25, R26)."""

import base64
import http.client
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, fail
from tests.rest.support import Reply, call, get, post, read, rest_server
from tests.rest.test_rest_connections import connect, until
from tests.support import CountingRunner, logged, serving

TOKENS = ("first-token", "second-token", "third:to:ken")
BODY = {"query": "q", "documents": ["d"]}


def basic(credentials: str) -> str:
    """Writes the header that a client makes of http://CREDENTIALS@HOST."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


RIGHT = {
    "Bearer": ("Authorization", "Bearer second-token"),
    "bearer in another case": ("AUTHORIZATION", "bEARER  first-token"),
    "the token alone": ("Authorization", "first-token"),
    "Api-Key": ("Api-Key", "first-token"),
    "x-api-key": ("x-api-key", "second-token"),
    "Basic, as the password": ("Authorization", basic("anybody:second-token")),
    "Basic in another case": ("Authorization", basic("x:first-token").replace("Basic ", "bASIC  ")),
    "Basic, as the user": ("Authorization", basic("first-token:")),
    "Basic without a user": ("Authorization", basic(":first-token")),
    "Basic, with colons": ("Authorization", basic("x:third:to:ken")),
}
WRONG = {
    "none": [],
    "wrong": [("Authorization", "Bearer third-token")],
    "a prefix": [("Authorization", "Bearer first-toke")],
    "empty": [("Authorization", "")],
    "Bearer alone": [("Authorization", "Bearer ")],
    "not ASCII": [("Authorization", "Bearer first-tokén")],
    "another scheme": [("Authorization", "Digest first-token")],
    "Basic alone": [("Authorization", "Basic")],
    "Basic and no base64": [("Authorization", "Basic first-token")],
    "Basic and no UTF-8": [("Authorization", "Basic /////w==")],
    "Basic without a colon": [("Authorization", basic("first-token"))],
    "Basic with a colon alone": [("Authorization", basic(":"))],
    "Basic with a wrong password": [("Authorization", basic("first-token:third-token"))],
    "Basic with spaces": [("Authorization", basic("x: first-token"))],
    "twice": [("Authorization", "Bearer first-token")] * 2,
    "a cookie": [("Cookie", "token=first-token")],
}
PUBLIC = ("/", "/health", "/ping", "/v1/cluster/auth", "/docs", "/openapi.json")
CLOSED = (
    ("POST", "/v1/rerank"),
    ("POST", "/tei/rerank"),
    ("POST", "/score"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/embedded"),
    ("GET", "/models"),
    ("GET", "/info"),
    ("GET", "/model-info"),
    ("GET", "/meta"),
    ("POST", "/hf-inference/models/org/name"),
    ("POST", "/v1/inference/org/name"),
)


@pytest.fixture(scope="module")
def runner() -> CountingRunner:
    return CountingRunner()


@pytest.fixture(scope="module", params=["checks itself", "leaves it to the server"])
def guarded(request: pytest.FixtureRequest, runner: CountingRunner) -> Iterator[int]:
    own = TOKENS if request.param == "checks itself" else ()
    with (
        serving(replace(ServerSettings(), access_tokens=TOKENS), runner=runner) as server,
        rest_server(server.port, tokens=own, upstream_token=TOKENS[0]) as port,
    ):
        yield port


def send(port: int, method: str, path: str, headers: list[tuple[str, str]]) -> Reply:
    """Sends a request whose headers may repeat."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path)
        content = {"query": "q", "texts": ["d"]} if path.startswith("/tei") else BODY
        body = json.dumps(content).encode() if method == "POST" else b""
        connection.putheader("Content-Length", str(len(body)))
        for name, value in headers:
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(body)
        return read(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("case", RIGHT)
def test_a_token_is_taken_in_every_form(guarded: int, case: str) -> None:
    assert send(guarded, "POST", "/v1/rerank", [RIGHT[case]]).status == 200
    assert send(guarded, "GET", "/v1/models", [RIGHT[case]]).status == 200


@pytest.mark.parametrize("case", WRONG)
def test_without_a_right_token_nothing_is_scored_or_told(
    guarded: int, runner: CountingRunner, case: str
) -> None:
    before = runner.sequences
    for method, path in CLOSED:
        reply = send(guarded, method, path, WRONG[case])
        assert reply.status == 401, path
        # A browser asks its user for a password where this says Basic.
        assert reply.headers["www-authenticate"] == "Bearer"
        sent = [value.rpartition(" ")[2].encode() for _, value in WRONG[case]]
        assert not any(part in reply.raw for part in sent if part)
        assert "error" in reply.raw.decode()
    assert runner.sequences == before


def test_public_routes_need_none_and_tell_all(guarded: int) -> None:
    for path in PUBLIC:
        assert get(guarded, path).status == 200
    for path in ("/.well-known/live", "/.well-known/ready"):
        reply = get(guarded, path)
        assert (reply.status, reply.raw) == (204, b"")
    assert get(guarded, "/v1/cluster/auth").json == {"auth": True}
    root = get(guarded, "/").json
    assert (root["authentication"], root["loaded_models"]) == (True, ["embedded"])
    assert get(guarded, "/health").json["model_loaded"]


def test_without_a_token_of_its_own_rest_tells_nothing_of_the_models() -> None:
    with (
        serving(replace(ServerSettings(), access_tokens=TOKENS), runner=CountingRunner()) as server,
        rest_server(server.port) as port,
    ):
        root = get(port, "/").json
        assert (root["authentication"], root["supported_models"]) == (True, [])
        assert get(port, "/health").json == {"status": "healthy"}
        assert get(port, "/v1/cluster/auth").json == {"auth": True}


class Loading:
    """A server with tokens whose model is still loading, as probes see it."""

    def __init__(self) -> None:
        self.probe = HealthServicer()
        self.probe.set("", HealthCheckResponse.NOT_SERVING)
        self.server = ScriptedServer(otherwise=self.answer, probe=self.probe)

    def answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        metadata = dict(context.invocation_metadata())
        code = grpc.StatusCode.UNAVAILABLE
        reason = "ERROR_REASON_MODEL_LOADING"
        if "authorization" not in metadata:
            code, reason = grpc.StatusCode.UNAUTHENTICATED, "ERROR_REASON_UNAUTHENTICATED"
        return fail(code, reason=reason)(request, context)


@pytest.fixture
def loading() -> Iterator[Loading]:
    loading = Loading()
    loading.server.start()
    yield loading
    loading.server.stop()


@pytest.mark.parametrize("token", [None, "a-wrong-token"])
def test_without_a_token_rests_health_is_that_of_grpc_health(loading: Loading, token: str | None) -> None:
    if token:
        loading.server.otherwise = fail(
            grpc.StatusCode.UNAUTHENTICATED, reason="ERROR_REASON_UNAUTHENTICATED"
        )
    with rest_server(loading.server.port, upstream_token=token) as port:
        reply = get(port, "/health")
        assert (reply.status, reply.json) == (503, {"status": "unhealthy"})
        assert reply.headers["retry-after"] == "1"
        loading.probe.set("", HealthCheckResponse.SERVING)
        assert (get(port, "/ping").status, get(port, "/ping").json) == (200, {"status": "healthy"})


def test_a_server_that_says_nothing_without_a_token_counts_as_well() -> None:
    refuse = fail(grpc.StatusCode.UNAUTHENTICATED, reason="ERROR_REASON_UNAUTHENTICATED")
    server = ScriptedServer(otherwise=refuse)
    server.start()
    try:
        with rest_server(server.port) as port:
            assert get(port, "/health").json == {"status": "healthy"}
    finally:
        server.stop()


@pytest.mark.usefixtures("patient_probes")
def test_a_target_that_is_loading_loses_its_turn_though_it_wants_a_token(
    loading: Loading, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(replace(ServerSettings(), access_tokens=TOKENS), runner=CountingRunner()) as ready,
        rest_server(loading.server.port, ready.port) as port,
    ):
        name = f"127.0.0.1:{loading.server.port} is away"
        until(lambda: name in caplog.text)
        del loading.server.calls[:]
        for _ in range(6):
            assert post(port, "/v1/rerank", BODY, authorization="Bearer first-token").status == 200
            assert get(port, "/v1/models", authorization="Bearer first-token").status == 200
        assert "authorization" not in {key for call in loading.server.calls for key in call.metadata}


def test_a_target_that_only_tells_its_state_does_not_get_its_turn_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ScriptedServer(otherwise=lambda *_: pb.HealthResponse(state=pb.MODEL_STATE_LOADING))
    server.start()
    try:
        with rest_server(server.port, server.port) as port:
            until(lambda: f"{server.port} is away" in caplog.text)
            for _ in range(6):
                assert get(port, "/health").status == 503
            assert "is back" not in caplog.text
    finally:
        server.stop()


def test_an_open_server_takes_any_token(port: int) -> None:
    assert get(port, "/v1/cluster/auth").json == {"auth": False}
    for headers in ([], [("Authorization", "Bearer anything")], [("Authorization", "Basic x y")]):
        assert send(port, "POST", "/v1/rerank", headers).status == 200


def test_a_token_longer_than_any_is_none(port: int, guarded: int) -> None:
    # gRPC refuses metadata of 16 KiB, and would blame the size of the request.
    long = [("Authorization", "Bearer " + "t" * 20_000)]
    assert send(port, "POST", "/v1/rerank", long).status == 200
    assert send(guarded, "POST", "/v1/rerank", long).status == 401


def test_fastgpts_prefix_says_access_errors_as_its_app_does() -> None:
    settings = replace(ServerSettings(), access_tokens=TOKENS)
    with (
        serving(settings, runner=CountingRunner()) as server,
        rest_server(server.port, tokens=TOKENS) as port,
    ):
        for ask in (
            lambda **headers: post(port, "/fastgpt/v1/rerank", BODY, **headers),
            lambda **headers: get(port, "/fastgpt/v1/models", **headers),
        ):
            missing, wrong = ask(), ask(x_api_key="no")
            assert (missing.status, missing.json) == (403, {"detail": "Not authenticated"})
            assert (wrong.status, wrong.json) == (401, {"detail": "Invalid token"})
        empty = {"query": "q", "documents": []}
        reply = post(port, "/fastgpt/v1/rerank", empty, authorization="Bearer first-token")
        assert (reply.status, reply.json) == (200, {"results": []})


def test_what_callers_log_at_will_has_a_kind(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with connect(port, b"nonsense\r\n\r\n") as garbage:
        assert garbage.recv(65_536).startswith(b"HTTP/1.1 400 ")
    assert post(port, "/v1/rerank", BODY).status == 200
    assert post(port, "/v1/rerank", {}).status == 400
    assert post(port, "/tei/rerank", {}).status == 422
    calls = [record for record in caplog.records if record.getMessage().startswith("rerank ")]
    answered, wrong, wrong_of_tei = (getattr(record, "kind", None) for record in calls)
    assert answered is None
    assert wrong
    assert wrong_of_tei
    (garbage_line,) = [record for record in caplog.records if record.name == "uvicorn.error"]
    assert garbage_line.kind == "uvicorn Invalid HTTP request received."  # type: ignore[attr-defined]


def test_nothing_of_a_caller_reaches_the_log(caplog: pytest.LogCaptureFixture, refusing: int) -> None:
    caplog.set_level(logging.DEBUG)
    settings = replace(ServerSettings(), access_tokens=TOKENS)
    canary = "CANARY"
    body = {"query": canary, "documents": [canary], "model": canary}
    bodies = (
        body,
        body | {"model": ""},
        body | {"top_n": canary},
        body | {"texts": [canary]},
        {"text_pairs": f"[['{canary}'"},
        f'{{"query": "{canary}'.encode(),
    )
    with (
        serving(settings, runner=CountingRunner()) as server,
        rest_server(server.port) as good,
        rest_server(refusing) as away,
    ):
        for port in (good, away):
            for one in bodies:
                post(port, "/v1/rerank", one, authorization="Bearer first-token")
            post(port, "/v1/rerank", body, authorization=f"Bearer {canary}")
            get(port, f"/{canary}?q={canary}")
            call(port, canary, "/v1/rerank")
    assert canary not in logged(caplog)
