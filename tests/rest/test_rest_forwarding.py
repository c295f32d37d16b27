"""What of a caller's request reaches the gRPC call: words of every dialect, token, trace, deadline."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rerank_grpc.rest.target import PROBE_SECONDS
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import Call, ScriptedServer, hang, reply, scored
from tests.rest.support import get, post, rest_server

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def score(request: pb.RerankRequest, _context: object) -> pb.RerankResponse:
    results = [pb.RerankResult(index=index, relevance_score=0.5) for index in range(len(request.documents))]
    return pb.RerankResponse(results=results, model="m")


@pytest.fixture(scope="module")
def behind() -> Iterator[ScriptedServer]:
    server = ScriptedServer(otherwise=score)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def port(behind: ScriptedServer) -> Iterator[int]:
    with rest_server(behind.port) as port:
        yield port


def seen(behind: ScriptedServer, port: int, body: Any, path: str = "/v1/rerank", **headers: str) -> Call:
    """Posts a body; returns the last gRPC call that came of it."""
    reply = post(port, path, body, **headers)
    assert reply.status == 200, reply.raw
    return behind.calls[-1]


DOCUMENTS = ["a", "b", "c"]
SUPERSET = {"query": "q", "documents": DOCUMENTS}
TEI = {"query": "q", "texts": DOCUMENTS}
NIM = {"query": {"text": "q"}, "passages": [{"text": text} for text in DOCUMENTS]}
MIXEDBREAD = {"query": "q", "input": DOCUMENTS}


def dashscope(**parameters: Any) -> dict[str, Any]:
    return {"input": SUPERSET, "parameters": parameters}


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        (SUPERSET | {"model": "m"}, "model", "m"),
        (SUPERSET | {"top_n": 2}, "top_n", 2),
        (SUPERSET | {"top_k": 2}, "top_n", 2),
        (SUPERSET | {"instruction": "i"}, "instruction", "i"),
        (SUPERSET | {"instruct": "i"}, "instruction", "i"),
        (SUPERSET | {"kwargs": '{"instruction": "i"}', "instruction": None}, "instruction", "i"),
        (SUPERSET | {"max_tokens_per_doc": 7}, "max_tokens_per_document", 7),
        (SUPERSET | {"truncate_prompt_tokens": 7}, "max_tokens_per_document", 7),
        (SUPERSET | {"truncate_prompt_tokens": -1}, "max_tokens_per_document", 0),
        (SUPERSET | {"max_chunks_per_doc": 5}, "max_chunks_per_document", 5),
        (SUPERSET | {"max_chunks_per_doc": 10_000}, "max_chunks_per_document", 64),
        (SUPERSET | {"truncation": False}, "truncation", pb.TRUNCATION_NONE),
        (SUPERSET | {"truncation": True}, "truncation", pb.TRUNCATION_UNSPECIFIED),
        (SUPERSET | {"return_documents": True}, "return_documents", False),
        (SUPERSET | {"truncation_side": "Left"}, "truncation", pb.TRUNCATION_START),
        (SUPERSET | {"truncation_side": "left", "truncation": False}, "truncation", pb.TRUNCATION_NONE),
        (SUPERSET | {"min_relevance_score": 0.25}, "min_relevance_score", 0.25),
        (SUPERSET | {"min_relevance_score": "0.25"}, "min_relevance_score", 0.25),
        (SUPERSET | {"min_calibrated_score": "0.25"}, "min_calibrated_score", 0.25),
        (SUPERSET | {"kwargs": '{"instruct": "i"}', "instruction": None}, "instruction", "i"),
        (TEI | {"truncation_direction": "LEFT"}, "truncation", pb.TRUNCATION_START),
        (TEI | {"truncate": False, "truncation_direction": "left"}, "truncation", pb.TRUNCATION_NONE),
        (TEI | {"top_n": 1}, "top_n", 1),
        (NIM | {"truncate": "NONE"}, "truncation", pb.TRUNCATION_NONE),
        (NIM | {"model": "m"}, "model", "m"),
        (MIXEDBREAD | {"top_k": 1}, "top_n", 1),
        (dashscope(top_n=1), "top_n", 1),
        (dashscope(instruct="i"), "instruction", "i"),
        ({"text_1": "q", "text_2": DOCUMENTS, "truncate_prompt_tokens": 9}, "max_tokens_per_document", 9),
    ],
)
def test_a_dialects_word_reaches_the_grpc_call(
    behind: ScriptedServer, port: int, body: Any, field: str, value: Any
) -> None:
    assert getattr(seen(behind, port, body).request, field) == value


def test_pairs_are_asked_once_for_each_query(behind: ScriptedServer, port: int) -> None:
    before = len(behind.calls)
    body = {"text_1": ["p", "q", "p", "r"], "text_2": ["a", "b", "c", "d"]}
    assert post(port, "/score", body).status == 200
    asked = {call.request.query: [d.text for d in call.request.documents] for call in behind.calls[before:]}
    assert asked == {"p": ["a", "c"], "q": ["b"], "r": ["d"]}


def test_token_and_trace_go_along(behind: ScriptedServer, port: int) -> None:
    headers = {"x_api_key": "t0ken", "x_request_id": "id-1", "traceparent": TRACE}
    metadata = seen(behind, port, SUPERSET, **headers).metadata
    assert metadata["authorization"] == "Bearer t0ken"
    assert (metadata["x-request-id"], metadata["traceparent"]) == ("id-1", TRACE)
    assert "authorization" not in seen(behind, port, SUPERSET).metadata
    get(port, "/v1/models", authorization="t0ken")
    assert behind.calls[-1].metadata["authorization"] == "Bearer t0ken"


def test_the_callers_time_or_a_minute_is_the_deadline(behind: ScriptedServer, port: int) -> None:
    assert 55 < seen(behind, port, SUPERSET).time_remaining < 61
    assert 15 < seen(behind, port, SUPERSET, x_request_timeout="20.5").time_remaining < 21.5


def test_the_batch_forms_two_calls_share_one_deadline() -> None:
    def slow(request: Any, _context: object) -> pb.RerankResponse:
        threading.Event().wait(0.6)
        return scored(request)

    server = ScriptedServer()
    server.start()
    body = {**SUPERSET, "batch_size": 8}
    try:
        with rest_server(server.port) as port:
            server.script.append(slow)
            assert post(port, "/rerank", body, x_request_timeout="30").status == 200
            first, second = server.calls
            assert (first.method, second.method) == ("Rerank", "ListModels")
            assert PROBE_SECONDS < second.time_remaining < first.time_remaining - 0.5
            # The scores are there: the device's name is not worth more time than the caller has.
            for seconds in ("2", "10"):  # the scores may be late where the machine is busy
                server.script.clear()
                server.script += [slow, hang]
                late = post(port, "/rerank", body, x_request_timeout=seconds)
                if late.status != 504:
                    break
            assert (late.status, late.json["device"], len(late.json["results"])) == (200, "", 3)
    finally:
        server.stop()


def test_an_instruction_is_sent_once_for_the_server_to_leave_out(behind: ScriptedServer, port: int) -> None:
    before = len(behind.calls)
    asked = seen(behind, port, SUPERSET | {"instruction": "i"}).request
    assert (asked.instruction, asked.ignore_unsupported_options) == ("i", True)
    assert len(behind.calls) == before + 1


def test_of_a_request_with_a_least_probability_the_server_leaves_nothing_out(
    behind: ScriptedServer, port: int
) -> None:
    body = SUPERSET | {"instruction": "i", "min_calibrated_score": 0}
    asked = seen(behind, port, body).request
    assert (asked.HasField("min_calibrated_score"), asked.ignore_unsupported_options) == (True, False)
    # A server that does not know the field answers without it: so does REST.
    results = post(port, "/v1/rerank", body).json["results"]
    assert len(results) == len(DOCUMENTS)
    assert not any("calibrated_score" in result for result in results)


def test_a_devices_name_is_asked_for_once_for_each_revision_of_a_model() -> None:
    revisions = {"served": "r1", "listed": "r1", "device": "cpu"}

    def answer(request: Any, _context: object) -> Any:
        if isinstance(request, pb.ListModelsRequest):
            model = pb.Model(name="m", revision=revisions["listed"], device=revisions["device"])
            return pb.ListModelsResponse(models=[model])
        return pb.RerankResponse(
            results=scored(request).results, model="m", model_revision=revisions["served"]
        )

    server = ScriptedServer(otherwise=answer)
    server.start()

    def device(port: int) -> tuple[str, list[str]]:
        del server.calls[:]
        reply = post(port, "/rerank", SUPERSET | {"batch_size": 8})
        assert reply.status == 200
        return reply.json["device"], [call.method for call in server.calls]

    try:
        with rest_server(server.port) as port:
            assert device(port) == ("cpu", ["Rerank", "ListModels"])
            assert device(port) == device(port) == ("cpu", ["Rerank"])
            # The list tells another revision than the one that scored: nothing is known of that one.
            revisions["served"] = "r2"
            assert device(port) == ("", ["Rerank", "ListModels"])
            revisions.update(listed="r2", device="cuda:0")
            assert device(port) == ("cuda:0", ["Rerank", "ListModels"])
            assert device(port) == ("cuda:0", ["Rerank"])
    finally:
        server.stop()


def test_infinitys_callers_see_how_full_the_queue_is() -> None:
    server = ScriptedServer()
    server.start()
    ready = pb.Model(name="m", state=pb.MODEL_STATE_READY, max_batch_tokens=4096)
    away = pb.Model(name="n", state=pb.MODEL_STATE_UNLOADED)
    full = pb.HealthResponse(
        model="m", state=pb.MODEL_STATE_READY, queue_tokens=250, queue_capacity_tokens=1000
    )
    server.script += [reply(pb.ListModelsResponse(models=[ready, away])), reply(full)]
    try:
        with rest_server(server.port) as port:
            first, second = get(port, "/models", authorization="Bearer t").json["data"]
    finally:
        server.stop()
    assert first["stats"] == {
        "queue_fraction": 0.25,
        "queue_absolute": 250,
        "results_pending": None,
        "batch_size": 4096,
    }
    assert (second["stats"]["queue_fraction"], second["stats"]["queue_absolute"]) == (0.0, 0)
    assert (server.calls[1].request.model, server.calls[1].metadata["authorization"]) == ("m", "Bearer t")
    assert len(server.calls) == 2
