"""The time that a REST call has: what is told where it does not suffice, and what a caller may ask for."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Thread

import pytest

from rerank_grpc.client import Client
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.engine.meter import Counts
from rerank_grpc.limits import LIMITS
from rerank_grpc.server.server import RerankServer
from tests.client.scripted_server import ScriptedServer
from tests.rest.support import HOST, Reply, post, rest_server
from tests.support import HeldRunner, loaded_in, serving, wait_for

BODY = {"query": "q", "documents": ["d"]}
LARGE = {"query": "q", "documents": [f"document {number}" for number in range(500)]}
MORE_TIME = "send fewer or shorter documents at once, or X-Request-Timeout with more seconds, up to 120"


@pytest.fixture
def held() -> Iterator[tuple[HeldRunner, RerankServer]]:
    runner = HeldRunner()
    settings = replace(ServerSettings(), engine=EngineSettings(max_batch_tokens=8))
    with serving(settings, runner=runner) as server:
        yield runner, server


@pytest.mark.case(16)
def test_a_call_whose_time_passes_is_504_and_told_what_gives_more(
    held: tuple[HeldRunner, RerankServer],
) -> None:
    with rest_server(held[1].port, timeout=0.25) as port:
        passed = "the time of the call passed before its answer was there; "
        reply = post(port, "/v1/rerank", LARGE)
        assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_exceeded")
        assert reply.json["message"] == f"{passed}it had 0.25 s, by --rest-timeout: {MORE_TIME}"
        reply = post(port, "/v1/rerank", LARGE, x_request_timeout="0.125")
        assert reply.status == 504
        assert reply.json["message"] == f"{passed}it had 0.125 s, by X-Request-Timeout: {MORE_TIME}"
        tei = post(port, "/tei/rerank", {"query": "q", "texts": ["d"]})
        assert (tei.status, tei.json["error_type"]) == (504, "Backend")
        assert tei.json["error"] == f"{passed}it had 0.25 s, by --rest-timeout: {MORE_TIME}"


@pytest.mark.case(16)
def test_a_call_that_the_load_does_not_allow_is_504_at_once(held: tuple[HeldRunner, RerankServer]) -> None:
    runner, server = held
    # A device that takes a second for each ten tokens.
    loaded_in(server).engine.calibrate(Counts(1, 1, 0.1), Counts(1, 100, 10))
    with rest_server(server.port, timeout=20) as port, Client(f"{HOST}:{server.port}") as client:
        replies: list[Reply] = []
        other = Thread(target=lambda: replies.append(post(port, "/v1/rerank", BODY)))
        other.start()
        runner.await_batch()
        wait_for(lambda: client.health().queue_tokens == 0)
        reply = post(port, "/v1/rerank", LARGE)
        assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_unreachable")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json["message"].endswith(f"it had 20 s, by --rest-timeout: {MORE_TIME}")
        tei = post(port, "/tei/rerank", {"query": "q", "texts": LARGE["documents"]}, x_request_timeout="9")
        assert (tei.status, "it had 9 s, by X-Request-Timeout" in tei.json["error"]) == (504, True)
        runner.let_all()
        other.join()
        assert replies[0].status == 200


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


@pytest.mark.case(18)
@pytest.mark.parametrize("text", ["1e9", "inf", "Infinity", "1e400", "86401", "120.5", " 121 "])
def test_a_longer_time_than_the_limit_is_cut_to_it(scripted_server: ScriptedServer, text: str) -> None:
    with rest_server(scripted_server.port) as port:
        assert post(port, "/v1/rerank", BODY, x_request_timeout=text).status == 200
    assert abs(scripted_server.calls[0].time_remaining - LIMITS.deadline_seconds) < 10


@pytest.mark.case(18)
def test_a_shorter_time_stays_as_it_is(scripted_server: ScriptedServer) -> None:
    with rest_server(scripted_server.port, timeout=1e5) as port:
        for text, most in (("30", 30), ("9.5", 9.5), ("1e1", 10)):
            assert post(port, "/v1/rerank", BODY, x_request_timeout=text).status == 200
            # gRPC rounds it up on its way.
            assert most - 5 < scripted_server.calls[-1].time_remaining < most + 1
        assert post(port, "/v1/rerank", BODY).status == 200
        assert scripted_server.calls[-1].time_remaining < LIMITS.deadline_seconds + 1


@pytest.mark.case(18)
@pytest.mark.parametrize("text", ["0", "-0.0", "-1", "-inf", "nan", "soon", "", "30s", "1,5", "0x10"])
def test_a_time_that_is_none_is_400_and_said_so(scripted_server: ScriptedServer, text: str) -> None:
    with rest_server(scripted_server.port) as port:
        for path, status in (("/v1/rerank", 400), ("/tei/rerank", 422)):
            body = {"query": "q", "texts": ["d"]} if status == 422 else BODY
            reply = post(port, path, body, x_request_timeout=text)
            assert reply.status == status
            told = reply.json["error"] if status == 422 else reply.json["message"]
            assert told == "X-Request-Timeout: must be a number of seconds above 0, such as 30 or 0.5"
    assert scripted_server.calls == []
