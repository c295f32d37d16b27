"""What both clients answer, over a real channel."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from rerank_grpc.client import (
    Document,
    IncompleteStream,
    InvalidRequest,
    MessageTooLarge,
    ModelFailed,
    Priority,
    RerankRequest,
    Scoring,
    ServerUnavailable,
    Span,
    State,
    Truncation,
    UnexpectedStatus,
    core,
)
from rerank_grpc.errors import Cancelled, DeadlineExceeded
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, hang, health, reply, scored
from tests.stubs import status_code
from tests.support import WAIT, wait_for


def test_a_reply_becomes_results_in_the_servers_order_with_its_summary(client, server):
    usage = pb.Usage(input_tokens=7, cached_pairs=1, queue_duration=duration_pb2.Duration(nanos=500_000_000))
    best = pb.RerankResult(
        index=1,
        id="b",
        relevance_score=0.5,
        logit=-2.5,
        document=pb.Document(text="two", id="b"),
        tokens=3,
        truncated=True,
        best_chunk=pb.Span(start=1, end=4),
        calibrated_score=0.75,
    )
    server.script.append(
        reply(
            pb.RerankResponse(
                results=[best, pb.RerankResult()],
                model="m",
                model_revision="r",
                usage=usage,
                query_truncated=True,
            )
        )
    )
    response = client.rerank("q", ["one", "two"])
    first, second = response.results
    assert (first.index, first.id, first.relevance_score, first.logit) == (1, "b", 0.5, -2.5)
    assert (first.document, first.tokens, first.truncated) == (Document("two", "b"), 3, True)
    assert (first.best_chunk, first.calibrated_score) == (Span(1, 4), 0.75)
    assert (second.document, second.best_chunk, second.calibrated_score) == (None, None, None)
    summary = response.summary
    assert (summary.model, summary.model_revision, summary.query_truncated) == ("m", "r", True)
    assert (summary.usage.input_tokens, summary.usage.cached_pairs) == (7, 1)
    assert (summary.usage.queue_seconds, summary.usage.inference_seconds) == (0.5, 0.0)


def test_every_argument_reaches_the_server(client, server):
    arguments = {
        "return_documents": True,
        "min_relevance_score": 0.25,
        "min_calibrated_score": 0.75,
        "instruction": "judge",
        "max_tokens_per_document": 64,
        "truncation": Truncation.NONE,
        "max_chunks_per_document": 4,
        "priority": Priority.BATCH,
        "ignore_unsupported_options": True,
    }
    documents = ["a", Document("b", "2"), {"text": "c", "id": "3"}, {"text": "d"}]
    client.rerank("q", documents, "m", 3, **arguments)
    list(client.stream_rerank("q", iter(documents), "m", 3, **arguments))
    expected: dict[str, Any] = {
        "query": "q",
        "documents": [{"text": t, "id": i} for t, i in (("a", ""), ("b", "2"), ("c", "3"), ("d", ""))],
        "model": "m",
        "top_n": 3,
        **arguments,
        "truncation": "TRUNCATION_NONE",
        "priority": "PRIORITY_BATCH",
    }
    unary, stream = (call.request for call in server.calls)
    assert unary == pb.RerankRequest(**expected)
    assert stream == pb.StreamRerankRequest(**expected)


def test_a_request_that_is_made_already_is_sent_as_it_is(client, server):
    request = RerankRequest("q", [Document("a", "1")], "m", 3, priority=Priority.BATCH)
    assert client.send(request, timeout=20, metadata={"x-request-id": "r"}).results
    assert list(client.stream(request, timeout=20, metadata={"x-request-id": "s"}))
    unary, stream = server.calls
    expected: dict[str, Any] = {
        "query": "q",
        "documents": [{"text": "a", "id": "1"}],
        "model": "m",
        "top_n": 3,
        "priority": 2,
    }
    assert unary.request == pb.RerankRequest(**expected)
    assert stream.request == pb.StreamRerankRequest(**expected)
    assert unary.time_remaining < 20.5
    assert stream.time_remaining < 20.5
    assert (unary.metadata["x-request-id"], stream.metadata["x-request-id"]) == ("r", "s")


@pytest.mark.parametrize("method", ["send", "stream"])
def test_a_made_request_that_no_message_can_hold_is_refused_before_any_network(client, server, method):
    with pytest.raises(InvalidRequest, match="query: a lone surrogate"):
        getattr(client, method)(RerankRequest("\ud800", [Document("a")]))
    assert server.calls == []


def test_what_is_left_out_is_left_to_the_server(client, server):
    client.rerank("q", ["a"])
    assert server.calls[0].request == pb.RerankRequest(query="q", documents=[pb.Document(text="a")])
    assert not server.calls[0].request.HasField("min_relevance_score")


def test_a_bound_of_zero_is_not_the_same_as_no_bound(client, server):
    client.rerank("q", ["a"], min_relevance_score=0)
    assert server.calls[0].request.HasField("min_relevance_score")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"documents": "a string"}, TypeError, "documents: a sequence"),
        ({"documents": Document("one")}, TypeError, "documents: a sequence"),
        ({"documents": {"text": "one"}}, TypeError, "documents: a sequence"),
        ({"documents": 5}, TypeError, "documents: a sequence"),
        ({"documents": ["a", None]}, TypeError, r"documents\[1\]: .*NoneType"),
        ({"documents": ["a", ("id", "text")]}, TypeError, r"documents\[1\]: .*tuple"),
        ({"documents": [{"id": "1"}]}, InvalidRequest, r'documents\[0\]: a mapping needs "text"'),
        ({"documents": [{"text": "a", "name": "b"}]}, InvalidRequest, r"documents\[0\]: unknown key 'name'"),
        ({"documents": [{"text": 1}]}, TypeError, r"documents\[0\].text: a str, not int"),
        (
            {"documents": [Document("a", 7)]},  # type: ignore[arg-type]
            TypeError,
            r"documents\[0\].id: a str, not int",
        ),
        ({"documents": ["ok", "secret\ud800"]}, InvalidRequest, r"documents\[1\].text: .*character 6"),
        ({"query": "\udfff"}, InvalidRequest, "query: a lone surrogate"),
        ({"query": None}, TypeError, "query: a str"),
        ({"query": b"bytes"}, TypeError, "query: a str, not bytes"),
        ({"model": 3}, TypeError, "model: a str"),
        ({"top_n": -1}, InvalidRequest, "top_n: 0 to 4294967295, not -1"),
        ({"top_n": 2**40}, InvalidRequest, "top_n: 0 to"),
        ({"top_n": 1.5}, TypeError, "top_n: an int, not float"),
        ({"top_n": True}, TypeError, "top_n: an int, not bool"),
        ({"min_relevance_score": "0.5"}, TypeError, "min_relevance_score: a float"),
        ({"min_relevance_score": 10**400}, InvalidRequest, "min_relevance_score: too large"),
        ({"max_chunks_per_document": -4}, InvalidRequest, "max_chunks_per_document: 0 to"),
        ({"truncation": "middle"}, InvalidRequest, "truncation: one of end, start, none"),
        ({"truncation": Priority.BATCH}, TypeError, "truncation: a Truncation or its name"),
        ({"priority": 1}, TypeError, "priority: a Priority or its name"),
        ({"timeout": 0}, ValueError, "timeout: more than 0"),
        ({"timeout": float("nan")}, ValueError, "timeout: more than 0"),
        ({"timeout": "5"}, TypeError, "timeout: seconds"),
        ({"top_k": 3}, TypeError, "top_k"),
    ],
)
@pytest.mark.parametrize("method", ["rerank", "stream_rerank"])
def test_what_a_message_cannot_hold_is_refused_before_any_network(
    client, server, method, arguments, error, says
):
    with pytest.raises(error, match=says) as refused:
        getattr(client, method)(**({"query": "q", "documents": ["a"]} | arguments))
    assert "secret" not in str(refused.value)
    assert server.calls == []


def test_a_refused_value_names_its_field(client):
    with pytest.raises(InvalidRequest) as refused:
        client.rerank("q", ["a", "\ud800"])
    assert [violation.field for violation in refused.value.violations] == ["documents[1].text"]
    assert refused.value.__cause__ is None


def test_options_may_be_named_by_words(client, server):
    client.rerank("q", ["a"], truncation="start", priority="batch")
    assert server.calls[0].request.truncation == pb.TRUNCATION_START
    assert server.calls[0].request.priority == pb.PRIORITY_BATCH


def test_a_stream_yields_results_as_they_come_and_then_has_its_summary(client):
    with client.stream_rerank("q", ["a", "b", "c"]) as stream:
        assert next(stream).index == 2
        with pytest.raises(RuntimeError, match="summary comes last"):
            _ = stream.summary
        assert [result.index for result in stream] == [1, 0]
    assert (stream.summary.model, stream.summary.model_revision) == ("embedded", "r1")


def test_a_stream_that_ends_without_its_summary_is_an_error_after_its_results(client, server):
    server.script.append(reply([pb.StreamRerankResponse(results=[pb.RerankResult(index=4)])]))
    stream = client.stream_rerank("q", ["a"])
    assert next(stream).index == 4
    with pytest.raises(IncompleteStream):
        next(stream)


def test_a_stream_cut_by_the_connection_is_an_error_after_its_results(client, server):
    def first_then_hang(request, context):
        yield pb.StreamRerankResponse(results=[pb.RerankResult(index=4)])
        hang(request, context)

    server.script.append(first_then_hang)
    stream = client.stream_rerank("q", ["a"])
    assert next(stream).index == 4
    server.stop()
    with pytest.raises((ServerUnavailable, Cancelled)):
        next(stream)
    assert len(server.calls) == 1


def test_leaving_a_stream_early_cancels_it_at_the_server(client, server):
    gone = threading.Event()

    def endless(_request, context):
        context.add_callback(gone.set)
        while context.is_active():
            yield pb.StreamRerankResponse(results=[pb.RerankResult()])

    server.script.append(endless)
    with client.stream_rerank("q", ["a"]) as stream:
        next(stream)
        assert not gone.is_set()
    assert gone.wait(WAIT)


def test_models_are_listed_with_all_that_the_server_says(client, server):
    model = pb.Model(
        name="m",
        aliases=["x", "y"],
        state=pb.MODEL_STATE_READY,
        is_default=True,
        revision="r",
        family="bert",
        device="cpu",
        precision="fp32",
        attention="packed",
        max_tokens=512,
        max_batch_tokens=4096,
        scoring=pb.SCORING_COSINE,
        accepts_instruction=True,
        serving=True,
        activation="cosine",
        pooling="mean",
        prompt_source="chat_template.jinja",
    )
    server.script.append(reply(pb.ListModelsResponse(models=[model])))
    (info,) = client.list_models()
    assert (info.name, info.aliases, info.state, info.scoring) == (
        "m",
        ("x", "y"),
        State.READY,
        Scoring.COSINE,
    )
    assert (info.family, info.device, info.precision, info.attention) == ("bert", "cpu", "fp32", "packed")
    assert (info.max_tokens, info.max_batch_tokens, info.revision) == (512, 4096, "r")
    assert info.is_default
    assert (info.activation, info.pooling, info.prompt_source) == ("cosine", "mean", "chat_template.jinja")
    assert info.accepts_instruction
    assert info.serving


def test_numbers_that_a_newer_server_has_added_do_not_break_the_client(client, server):
    unknown = pb.Model(name="m", state=77, scoring=99)  # type: ignore[arg-type]
    server.script.append(reply(pb.ListModelsResponse(models=[unknown])))
    server.script.append(reply(health(77)))
    (info,) = client.list_models()
    assert info.scoring is None
    assert info.state is not State.READY
    assert client.health().state is not State.READY


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_known(client, server, state):
    server.script.append(reply(health(pb.ModelState.Value(f"MODEL_STATE_{state.name}"))))
    assert client.health("m").state is state
    assert server.calls[0].request.model == "m"


@pytest.mark.parametrize("serving", [True, False])
def test_a_model_that_is_not_in_memory_may_be_serving(client, server, serving):
    server.script.append(reply(health(pb.MODEL_STATE_UNLOADED, serving)))
    assert client.health().serving is serving


def test_a_ready_model_of_a_server_that_does_not_say_so_is_serving(client, server):
    server.script.append(reply(health(pb.MODEL_STATE_READY, serving=False)))
    ready = pb.Model(name="m", state=pb.MODEL_STATE_READY)
    server.script.append(reply(pb.ListModelsResponse(models=[ready])))
    assert client.health().serving
    assert client.list_models()[0].serving


@pytest.fixture
def no_look(monkeypatch):
    """Has the first question wait for its answer, where a busy machine may take longer than a look allows."""
    monkeypatch.setattr(core, "READY_LOOK_SECONDS", WAIT)


@pytest.mark.usefixtures("no_look")
def test_waiting_until_ready_ends_where_a_call_would_load_the_model(client, server):
    server.otherwise = reply(health(pb.MODEL_STATE_UNLOADED, serving=True))
    assert client.wait_until_ready(WAIT).state is State.UNLOADED
    assert len(server.calls) == 1


@pytest.mark.usefixtures("no_look")
def test_waiting_until_ready_lasts_as_long_as_the_model_loads(client, server):
    server.script.extend([reply(health(pb.MODEL_STATE_LOADING)), reply(health(pb.MODEL_STATE_READY))])
    assert client.wait_until_ready(WAIT).state is State.READY
    assert len(server.calls) == 2


@pytest.mark.usefixtures("no_look")
def test_waiting_until_ready_ends_at_once_where_the_model_has_failed(client, server):
    server.script.append(reply(health(pb.MODEL_STATE_FAILED)))
    with pytest.raises(ModelFailed):
        client.wait_until_ready(WAIT, model="m")


def test_waiting_until_ready_ends_with_its_time(client, server):
    server.otherwise = reply(health(pb.MODEL_STATE_LOADING))
    with pytest.raises(DeadlineExceeded):
        client.wait_until_ready(0.3)


def test_the_default_deadline_is_thirty_seconds_and_the_token_a_bearers(connect, server):
    client = connect(server.target, token="s3cret")
    client.rerank("q", ["a"])
    client.health(timeout=20)
    first, second = server.calls
    # The wire rounds a deadline up.
    assert 25 < first.time_remaining < 30.5
    assert second.time_remaining < 20.5
    assert first.metadata["authorization"] == second.metadata["authorization"] == "Bearer s3cret"
    assert first.metadata["user-agent"].startswith("rerank-grpc-python/")


def test_a_call_that_outlasts_its_deadline_is_given_up(client, server):
    server.script.append(hang)
    with pytest.raises(DeadlineExceeded) as late:
        client.rerank("q", ["a"], timeout=0.2)
    assert status_code(late.value.__cause__) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_closed_client_says_so(connect, server):
    client = connect(server.target)
    client.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.rerank("q", ["a"])
    with pytest.raises(RuntimeError, match="the client is closed"):
        next(client.stream_rerank("q", ["a"]))


def test_closing_a_client_ends_its_calls_as_cancelled(connect, server):
    client = connect(server.target)
    server.otherwise = hang
    with ThreadPoolExecutor(2) as threads:
        unary = threads.submit(client.rerank, "q", ["a"])
        stream = threads.submit(lambda: next(client.stream_rerank("q", ["a"])))
        wait_for(lambda: len(server.calls) == 2)
        client.__exit__(None, None, None)
        for call in (unary, stream):
            with pytest.raises(Cancelled):
                call.result(WAIT)


def test_a_reply_of_up_to_sixteen_mebibytes_is_taken(client, server):
    text = "x" * (15 << 20)
    server.script.append(reply(pb.RerankResponse(results=[pb.RerankResult(document=pb.Document(text=text))])))
    assert client.rerank("q", ["a"]).results[0].document.text == text


def test_the_callers_own_channel_options_win(connect, server):
    client = connect(server.target, options=[("grpc.max_receive_message_length", 1000)])
    server.otherwise = lambda request, _: scored(request)
    with pytest.raises(MessageTooLarge):
        client.rerank("q", ["x" * 2000], return_documents=True)
    assert len(server.calls) == 1


def test_a_server_that_speaks_another_contract_is_told_by_its_status(client, server):
    def unimplemented(_request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    server.script.append(unimplemented)
    with pytest.raises(
        UnexpectedStatus, match=r"^UNIMPLEMENTED: .* of another service: .* \(Method not found!\)"
    ) as refused:
        client.rerank("q", ["a"])
    assert refused.value.code == "UNIMPLEMENTED"


def test_a_client_hears_what_a_probe_of_grpc_health_would(connect):
    probe = HealthServicer()
    server = ScriptedServer(probe=probe)
    server.start()
    try:
        client = connect(server.target)
        for state in ("SERVING", "NOT_SERVING", "UNKNOWN"):
            probe.set("", HealthCheckResponse.ServingStatus.Value(state))
            assert client.serving() is (state == "SERVING")
        probe.set("rerank.v1.RerankService", HealthCheckResponse.SERVING)
        assert client.serving("rerank.v1.RerankService")
        with pytest.raises(UnexpectedStatus) as unknown:
            client.serving("none.such")
        assert unknown.value.code == "NOT_FOUND"
    finally:
        server.stop()


def test_a_server_without_grpc_health_is_told_apart(client):
    with pytest.raises(UnexpectedStatus) as missing:
        client.serving()
    assert missing.value.code == "UNIMPLEMENTED"
