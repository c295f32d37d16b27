"""tei.v1: callers of Text Embeddings Inference change only their address."""

import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from rerank_grpc import __version__
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.engine.future import Future
from rerank_grpc.limits import LIMITS
from rerank_grpc.protocols import tei_pb2 as tei
from rerank_grpc.server import lanes
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.http2 import raw_connections
from tests.server.test_errors import delay_ms_of, details_of
from tests.server.test_patience import rerank
from tests.stubs import HealthStub, ReflectionStub, message_of, status_code
from tests.support import (
    WAIT,
    CountingRunner,
    HeldRunner,
    PatienceClock,
    call_lines,
    channel_of,
    drains_of,
    loaded_in,
    own_deadline,
    request_of,
    serving,
    stub_of,
    wait_for,
    waiting_of,
)

ROOT = Path(__file__).resolve().parents[2]
QUERY = "How do I reset my password?"
TEXTS = [
    "Our office is closed on public holidays.",
    "To choose a new password, open Settings, then Security.",
    "密码至少要有十二个字符。",
    "",
    "Passwords must have at least twelve characters.",
]
LONG = "password " * 2_000
LEFT, RIGHT = tei.TRUNCATION_DIRECTION_LEFT, tei.TRUNCATION_DIRECTION_RIGHT

RERANK, RERANK_STREAM = "/tei.v1.Rerank/Rerank", "/tei.v1.Rerank/RerankStream"
PAIR, PAIR_STREAM = "/tei.v1.Predict/PredictPair", "/tei.v1.Predict/PredictPairStream"
INFO = "/tei.v1.Info/Info"
REFLECT = ["grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"]


class TeiStub:
    """The stub that TEI's callers generate."""

    def __init__(self, channel: grpc.Channel) -> None:
        write = lambda message: message.SerializeToString()  # noqa: E731
        ranks, prediction = tei.RerankResponse.FromString, tei.PredictResponse.FromString
        self.Rerank = channel.unary_unary(RERANK, write, ranks)
        self.RerankStream = channel.stream_unary(RERANK_STREAM, write, ranks)
        self.PredictPair = channel.unary_unary(PAIR, write, prediction)
        self.PredictPairStream = channel.stream_stream(PAIR_STREAM, write, prediction)
        self.Info = channel.unary_unary(INFO, write, tei.InfoResponse.FromString)


# One call of each method, as (stub, metadata) → what came.
CALLS: dict[str, Callable[..., Any]] = {
    "Rerank": lambda stub, **with_: stub.Rerank(ranking("q", "d"), **with_),
    "RerankStream": lambda stub, **with_: stub.RerankStream(iter(streamed("q", "d")), **with_),
    "PredictPair": lambda stub, **with_: stub.PredictPair(pair("q", "d"), **with_),
    "PredictPairStream": lambda stub, **with_: list(stub.PredictPairStream(iter([pair("q", "d")]), **with_)),
    "Info": lambda stub, **with_: stub.Info(tei.InfoRequest(), **with_),
}


def ranking(query: str, *texts: str, **fields: Any) -> tei.RerankRequest:
    return tei.RerankRequest(query=query, texts=texts, **fields)


def streamed(query: str, *texts: str, **fields: Any) -> list[tei.RerankStreamRequest]:
    return [tei.RerankStreamRequest(query=query, text=text, **fields) for text in texts]


def pair(*inputs: str, **fields: Any) -> tei.PredictPairRequest:
    return tei.PredictPairRequest(inputs=inputs, **fields)


@contextmanager
def tei_stub(server: RerankServer) -> Iterator[TeiStub]:
    with channel_of(server.port) as channel:
        yield TeiStub(channel)


@contextmanager
def scripted(**settings: Any) -> Iterator[tuple[RerankServer, TeiStub]]:
    """A server whose model costs nothing, and a stub for it."""
    with (
        serving(replace(ServerSettings(), **settings), runner=CountingRunner()) as server,
        tei_stub(server) as stub,
    ):
        yield server, stub


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, list[str]]:
    """Makes a call that fails; returns its code, its ErrorInfo's reason, and the fields that are wrong."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    message, _ = details_of(caught.value)
    info = error_details_pb2.ErrorInfo.FromString(message.details[0].value)
    assert info.domain == "rerank.v1"
    wrong = error_details_pb2.BadRequest()
    fields = [
        each.field for detail in message.details if detail.Unpack(wrong) for each in wrong.field_violations
    ]
    return caught.value.code(), info.reason.removeprefix("ERROR_REASON_"), fields


def code_of(channel: grpc.Channel, method: str, message: bytes) -> grpc.StatusCode:
    """Calls a method with a message that fails."""
    call: Any = channel.unary_unary(method)
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=WAIT)
    return status_code(caught.value)


INVALID = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"


# Scores


@pytest.fixture(scope="module")
def embedded() -> Iterator[RerankServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def expected(embedded: RerankServer) -> list[pb.RerankResult]:
    """What rerank.v1 says of TEXTS, best first."""
    with stub_of(embedded.port) as stub:
        return list(stub.Rerank(request_of(QUERY, *TEXTS), timeout=WAIT).results)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("method", ["Rerank", "RerankStream"])
def test_ranks_are_those_of_rerank_v1_to_the_bit(
    method: str, raw: bool, embedded: RerankServer, expected: list[pb.RerankResult]
):
    with tei_stub(embedded) as stub:
        if method == "Rerank":
            answer = stub.Rerank(ranking(QUERY, *TEXTS, raw_scores=raw, truncate=True), timeout=WAIT)
        else:
            requests = streamed(QUERY, *TEXTS, raw_scores=raw, truncate=True)
            answer = stub.RerankStream(iter(requests), timeout=WAIT)
    wanted = [(each.index, each.logit if raw else each.relevance_score) for each in expected]
    assert [(rank.index, rank.score) for rank in answer.ranks] == wanted
    assert not any(rank.HasField("text") for rank in answer.ranks)
    assert sorted((score for _, score in wanted), reverse=True) == [score for _, score in wanted]


def test_each_rank_carries_its_text_where_it_is_asked_for(embedded: RerankServer):
    with tei_stub(embedded) as stub:
        ranked = stub.Rerank(ranking(QUERY, *TEXTS, return_text=True), timeout=WAIT)
        gathered = stub.RerankStream(iter(streamed(QUERY, *TEXTS, return_text=True)), timeout=WAIT)
    for answer in (ranked, gathered):
        assert {rank.index: rank.text for rank in answer.ranks} == dict(enumerate(TEXTS))
        assert all(rank.HasField("text") for rank in answer.ranks)  # the empty one too


def test_metadata_tells_what_the_call_cost(embedded: RerankServer):
    with stub_of(embedded.port) as ours, tei_stub(embedded) as stub:
        usage = ours.Rerank(request_of(QUERY, *TEXTS), timeout=WAIT).usage
        metadata = stub.Rerank(ranking(QUERY, *TEXTS), timeout=WAIT).metadata
    assert metadata.compute_tokens == usage.input_tokens
    assert metadata.compute_chars == len(TEXTS) * len(QUERY) + sum(map(len, TEXTS))
    parts = metadata.tokenization_time_ns + metadata.queue_time_ns + metadata.inference_time_ns
    assert 0 < metadata.tokenization_time_ns < parts <= metadata.total_time_ns < WAIT * 1e9


@pytest.mark.parametrize(("direction", "ours"), [(RIGHT, pb.TRUNCATION_END), (LEFT, pb.TRUNCATION_START)])
@pytest.mark.parametrize("text", [f"cats sleep. {LONG}", f"{LONG} cats sleep."])
def test_a_long_text_is_cut_at_the_end_that_the_direction_says(
    text: str, direction: tei.TruncationDirection, ours: pb.Truncation, embedded: RerankServer
):
    options = {"truncate": True, "truncation_direction": direction}
    with stub_of(embedded.port) as stub:
        (want,) = stub.Rerank(request_of("cats", text, truncation=ours), timeout=WAIT).results
    with tei_stub(embedded) as stub:
        answers: list[Any] = [
            stub.Rerank(ranking("cats", text, **options), timeout=WAIT).ranks[0],
            stub.RerankStream(iter(streamed("cats", text, **options)), timeout=WAIT).ranks[0],
            stub.PredictPair(pair("cats", text, **options), timeout=WAIT).predictions[0],
        ]
    assert [answer.score for answer in answers] == [want.relevance_score] * 3


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("texts[1]", lambda stub: stub.Rerank(ranking("q", "short", LONG))),
        ("texts[1]", lambda stub: stub.Rerank(ranking("q", "short", LONG, truncation_direction=LEFT))),
        ("query", lambda stub: stub.Rerank(ranking(LONG, "short"))),
        ("requests[2].text", lambda stub: stub.RerankStream(iter(streamed("q", "one", "two", LONG)))),
        (
            "requests[1].text",
            lambda stub: stub.RerankStream(iter([*streamed("q", "d"), *streamed("p", LONG)])),
        ),
        ("inputs[0]", lambda stub: stub.PredictPair(pair(LONG, "short"))),
        ("inputs[1]", lambda stub: stub.PredictPair(pair("q", LONG))),
        ("inputs[1]", lambda stub: list(stub.PredictPairStream(iter([pair("q", "d"), pair("q", LONG)])))),
    ],
)
def test_without_truncate_a_long_text_is_refused_by_the_callers_own_name(
    field: str, call: Callable[[TeiStub], Any], embedded: RerankServer
):
    """As TEI does over gRPC, where --auto-truncate has no effect."""
    with tei_stub(embedded) as stub:
        assert refusal(lambda: call(stub)) == (*INVALID, [field])


# Pairs


def test_a_pairs_prediction_is_the_score_of_its_text(embedded: RerankServer, expected: list[pb.RerankResult]):
    pairs = [pair(QUERY, text) for text in TEXTS]
    with tei_stub(embedded) as stub:
        alone = [stub.PredictPair(each, timeout=WAIT) for each in pairs]
        together = list(stub.PredictPairStream(iter(pairs), timeout=WAIT))
        raw = stub.PredictPair(pair(QUERY, TEXTS[1], raw_scores=True), timeout=WAIT)
    wanted = {each.index: each.relevance_score for each in expected}
    for answers in (alone, together):
        scores = [[(each.score, each.label) for each in answer.predictions] for answer in answers]
        assert scores == [[(wanted[index], "LABEL_0")] for index in range(len(TEXTS))]
    logits = {each.index: each.logit for each in expected}
    assert raw.predictions[0].score == logits[1]
    assert alone[0].metadata.compute_chars == len(QUERY) + len(TEXTS[0])


def test_pairs_are_answered_one_by_one_while_their_caller_waits_for_each():
    sent: SimpleQueue[tei.PredictPairRequest | None] = SimpleQueue()
    with scripted() as (_, stub):
        answers = stub.PredictPairStream(iter(sent.get, None), timeout=WAIT)
        for number in range(3):
            sent.put(pair("q", f"text {number}"))
            assert len(next(answers).predictions) == 1
        sent.put(None)
        assert list(answers) == []


def test_a_stream_without_a_pair_ends_well():
    with scripted() as (_, stub):
        assert list(stub.PredictPairStream(iter(()), timeout=WAIT)) == []


@pytest.mark.parametrize("inputs", [[], ["one"], ["one", "two", "three"], ["d"] * 1_001])
def test_what_is_no_pair_is_refused(inputs: list[str]):
    with scripted() as (server, stub):
        assert refusal(lambda: stub.PredictPair(pair(*inputs), timeout=WAIT)) == (*INVALID, ["inputs"])
        assert loaded_in(server).engine.counts.batches == 0


def test_a_wrong_pair_ends_the_stream_after_the_answers_of_those_before():
    with scripted() as (_, stub):
        answers = stub.PredictPairStream(iter([pair("q", "d"), pair("q")]), timeout=WAIT)
        assert len(next(answers).predictions) == 1
        assert refusal(lambda: next(answers)) == (*INVALID, ["inputs"])


@pytest.mark.parametrize(
    "method", ["Predict/Predict", "Predict/PredictStream", "Embed/Embed", "Tokenize/Tokenize"]
)
def test_what_no_reranker_answers_is_unimplemented(method: str):
    with scripted() as (server, _), channel_of(server.port) as channel:
        code = code_of(channel, f"/tei.v1.{method}", b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED


# Info


def test_info_tells_the_default_model_and_the_limits(embedded: RerankServer):
    with tei_stub(embedded) as stub:
        info = stub.Info(tei.InfoRequest(), timeout=WAIT)
    model = embedded.registry.info("")
    assert info == tei.InfoResponse(
        version=__version__,
        model_id="embedded",
        model_sha=model.revision,
        model_dtype="float32",
        model_type=tei.MODEL_TYPE_RERANKER,
        max_concurrent_requests=96,
        max_input_length=model.max_tokens,
        max_batch_tokens=model.max_batch_tokens,
        max_client_batch_size=1_000,
        tokenization_workers=1,
    )
    assert model.revision
    assert model.max_tokens
    assert model.max_batch_tokens


def test_info_tells_how_many_calls_this_server_admits():
    with scripted(max_calls=7) as (_, stub):
        assert stub.Info(tei.InfoRequest(), timeout=WAIT).max_concurrent_requests == 7


# Limits

MOST = ["d"] * LIMITS.documents
OVER_LONG = "x" * (LIMITS.characters + 1)
WRONG: dict[str, tuple[list[str], Callable[[TeiStub], Any]]] = {
    "no texts": (["texts"], lambda stub: stub.Rerank(ranking("q"))),
    "too many texts": (["texts"], lambda stub: stub.Rerank(ranking("q", *MOST, "d"))),
    "a million texts": (["texts"], lambda stub: stub.Rerank(ranking("q", *[""] * 1_000_000))),
    "no query": (["query"], lambda stub: stub.Rerank(ranking("", "d"))),
    "a query too long": (["query"], lambda stub: stub.Rerank(ranking(OVER_LONG, "d", truncate=True))),
    "a text too long": (["texts[1]"], lambda stub: stub.Rerank(ranking("q", "d", OVER_LONG, truncate=True))),
    "no such direction": (
        ["truncation_direction"],
        lambda stub: stub.Rerank(ranking("q", "d", truncation_direction=2)),
    ),
    "a stream without a request": ([], lambda stub: stub.RerankStream(iter(()))),
    "a stream of too many": ([], lambda stub: stub.RerankStream(iter(streamed("q", *MOST, "d")))),
    "a stream of too many bytes": (
        [],
        lambda stub: stub.RerankStream(iter(streamed("q", *["x" * 99_000] * 85, truncate=True))),
    ),
    "a stream without a query": (
        ["requests[0].query"],
        lambda stub: stub.RerankStream(iter(streamed("", "d"))),
    ),
    "a stream with a later query too long": (
        ["requests[1].query"],
        lambda stub: stub.RerankStream(iter([*streamed("q", "d"), *streamed(OVER_LONG, "d", "e")])),
    ),
    "a stream with a text too long": (
        ["requests[1].text"],
        lambda stub: stub.RerankStream(iter(streamed("q", "d", OVER_LONG, truncate=True))),
    ),
    "a stream with no such direction": (
        ["requests[1].truncation_direction"],
        lambda stub: stub.RerankStream(
            iter([*streamed("q", "d"), *streamed("q", "d", truncation_direction=-1)])
        ),
    ),
    "a pair without a query": (["inputs[0]"], lambda stub: stub.PredictPair(pair("", "d"))),
    "a pair too long": (["inputs[1]"], lambda stub: stub.PredictPair(pair("q", OVER_LONG, truncate=True))),
}


@pytest.fixture(scope="module")
def counted() -> Iterator[tuple[TeiStub, CountingRunner]]:
    runner = CountingRunner()
    with serving(runner=runner) as server, tei_stub(server) as stub:
        yield stub, runner


@pytest.mark.parametrize("case", WRONG)
def test_past_a_limit_the_field_is_named_and_nothing_is_computed(
    case: str, counted: tuple[TeiStub, CountingRunner]
):
    stub, runner = counted
    fields, call = WRONG[case]
    before = len(runner.batches)
    assert refusal(lambda: call(stub)) == (*INVALID, fields)
    assert len(runner.batches) == before


def test_every_limit_at_its_maximum_is_served(counted: tuple[TeiStub, CountingRunner]):
    stub, _ = counted
    longest = "x" * LIMITS.characters
    assert len(stub.Rerank(ranking("q", *MOST), timeout=WAIT).ranks) == 1_000
    assert len(stub.RerankStream(iter(streamed("q", *MOST)), timeout=WAIT).ranks) == 1_000
    assert len(stub.RerankStream(iter(streamed("q", *[longest] * 83)), timeout=WAIT).ranks) == 83
    assert stub.PredictPair(pair(longest, longest), timeout=WAIT).predictions


@pytest.mark.parametrize("message", [ranking("q", *["x" * 99_000] * 85), pair("q", "x" * (9 << 20))])
def test_a_message_over_8_mib_is_refused_by_grpc_itself(message: Any):
    method = RERANK if isinstance(message, tei.RerankRequest) else PAIR
    with scripted() as (server, _), channel_of(server.port) as channel:
        code = code_of(channel, method, message.SerializeToString())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


HOSTILE = {"no message": b"\xff\xff\xff", "no UTF-8": b"\x0a\x02\xc3\x28", "cut off": b"\x0a\x7fq"}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("method", [RERANK, RERANK_STREAM, PAIR, PAIR_STREAM, INFO])
def test_bytes_that_are_no_message_are_refused_and_logged(
    method: str, data: bytes, caplog: pytest.LogCaptureFixture
):
    if method == INFO:
        data = b"\xff\xff\xff"  # no field of its message is a text
    caplog.set_level(logging.INFO, "rerank_grpc.calls")
    with scripted() as (server, _), channel_of(server.port) as channel:
        good = ranking("q").SerializeToString()
        sent = [good, data] if method == RERANK_STREAM else [data]
        call: Any = channel.stream_stream(method)
        code, reason, _ = refusal(lambda: list(call(iter(sent), timeout=WAIT)))
    assert (code, reason) == INVALID
    wait_for(lambda: len(call_lines(caplog)) == 1)
    name = "tei." + method.rpartition("/")[2]
    assert call_lines(caplog)[0].startswith(f"{name} INVALID_ARGUMENT reason=invalid_request")


# Requests that come one by one


def test_the_first_request_of_a_stream_tells_the_form_of_the_answer(embedded: RerankServer):
    first = streamed(QUERY, TEXTS[0], raw_scores=True, return_text=True)
    with tei_stub(embedded) as stub:
        answer = stub.RerankStream(iter([*first, *streamed("", *TEXTS[1:])]), timeout=WAIT)
        alike = stub.Rerank(ranking(QUERY, *TEXTS, raw_scores=True, return_text=True), timeout=WAIT)
    assert answer.ranks == alike.ranks
    assert answer.metadata.compute_chars == alike.metadata.compute_chars


def test_each_text_of_a_stream_is_scored_against_its_own_query(embedded: RerankServer):
    asked = [("holidays", TEXTS[0]), ("password", TEXTS[1]), ("holidays", TEXTS[1]), ("password", TEXTS[0])]
    requests = [tei.RerankStreamRequest(query=query, text=text) for query, text in asked]
    with tei_stub(embedded) as stub:
        answer = stub.RerankStream(iter(requests), timeout=WAIT)
        alone = [stub.PredictPair(pair(*each), timeout=WAIT) for each in asked]
    scores = [each.predictions[0].score for each in alone]
    wanted = sorted(enumerate(scores), key=lambda each: each[1], reverse=True)
    assert [(rank.index, rank.score) for rank in answer.ranks] == wanted
    assert len(set(scores)) == 4
    assert answer.metadata.compute_chars == sum(each.metadata.compute_chars for each in alone)


def test_equal_scores_stand_in_the_callers_order():
    requests = [tei.RerankStreamRequest(query=query, text="same") for query in "qrqrq"]
    with serving(runner=CountingRunner(lambda _: 0.0)) as server, tei_stub(server) as stub:
        assert [rank.index for rank in stub.Rerank(ranking("q", *"abcde")).ranks] == [0, 1, 2, 3, 4]
        assert [rank.index for rank in stub.RerankStream(iter(requests)).ranks] == [0, 1, 2, 3, 4]


def test_scores_that_saturate_keep_the_order_of_their_logits():
    logits = iter([30.0, 90.0, 60.0])
    with serving(runner=CountingRunner(lambda _: next(logits))) as server, tei_stub(server) as stub:
        ranks = stub.Rerank(ranking("q", "a", "b", "c"), timeout=WAIT).ranks
    assert [rank.score for rank in ranks] == [1.0] * 3
    assert [rank.index for rank in ranks] == [1, 2, 0]


class Sender:
    """Sends a stream's requests when a test says so, and gets the answer in the background."""

    def __init__(self, method: Any, *requests: Any) -> None:
        self._sent: SimpleQueue[Any] = SimpleQueue()
        self.send(*requests)
        self.call = method.future(iter(self._sent.get, None), timeout=WAIT)

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._sent.put(request)

    def end(self) -> None:
        self._sent.put(None)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.call.exception(timeout=seconds)
        except grpc.FutureTimeoutError:
            return False
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a request wait a second for its bytes."""
    monkeypatch.setattr("rerank_grpc.server.methods.REQUEST_SECONDS", 1.0)
    monkeypatch.setattr("rerank_grpc.server.methods.BYTES_PER_SECOND", 1 << 40)


@pytest.mark.clock
@pytest.mark.usefixtures("impatient")
def test_a_stream_whose_sender_withholds_is_ended():
    with scripted() as (server, stub):
        silent, begun = Sender(stub.RerankStream), Sender(stub.RerankStream, *streamed("q", "d"))
        for sender in (silent, begun):
            assert sender.call.exception(timeout=WAIT).code() is grpc.StatusCode.CANCELLED
            sender.end()
        wait_for(lambda: server._lanes[0].idle)
        assert rerank(server.port) < 5


@pytest.mark.clock
@pytest.mark.usefixtures("impatient")
def test_a_stream_whose_sender_drips_has_no_more_time_than_one_request():
    with scripted() as (server, stub):
        started = time.monotonic()
        sender = Sender(stub.RerankStream)
        while not sender.ends_within(0.05):
            sender.send(*streamed("q", "d"))
        assert sender.call.code() is grpc.StatusCode.CANCELLED
        assert time.monotonic() - started < 5
        sender.end()
        wait_for(lambda: server._lanes[0].idle)


@pytest.mark.clock
def test_a_sender_that_takes_its_time_is_served():
    with scripted() as (server, stub):
        sender, requests = Sender(stub.RerankStream), waiting_of(server, "a request (rerank)")
        for number in range(3):
            sender.send(*streamed("q", f"text {number}"))
            wait_for(lambda: len(requests) == 1)
            assert rerank(server.port, number) < 5
        sender.end()
        assert len(sender.call.result().ranks) == 3
        assert len(requests) == 0


@pytest.mark.parametrize("method", ["RerankStream", "PredictPairStream"])
def test_a_sender_that_leaves_frees_its_thread(method: str):
    with scripted() as (server, stub):
        noun = "a request (rerank)" if method == "RerankStream" else "a request (stream)"
        requests, sent = waiting_of(server, noun), SimpleQueue[Any]()
        call: Any
        if method == "RerankStream":
            call = stub.RerankStream.future(iter(sent.get, None))
        else:
            call = stub.PredictPairStream(iter(sent.get, None))
        wait_for(lambda: len(requests) == 1)
        call.cancel()
        wait_for(lambda: len(requests) == 0)
        wait_for(lambda: all(lane.idle for lane in server._lanes))
        sent.put(None)


def test_pairs_end_with_the_time_of_a_stream(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "rerank_grpc.server.methods.LIMITS", replace(LIMITS, deadline_seconds=0.5 - lanes.READER_SECONDS)
    )
    clock = PatienceClock(monkeypatch)
    with scripted() as (server, stub):
        sent: SimpleQueue[Any] = SimpleQueue()
        answers = stub.PredictPairStream(iter(sent.get, None), timeout=WAIT)
        sent.put(pair("q", "d"))
        assert len(next(answers).predictions) == 1
        clock.now += 0.6
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert status_code(caught.value) is grpc.StatusCode.CANCELLED
        sent.put(None)
        wait_for(lambda: all(lane.idle for lane in server._lanes))


@pytest.mark.clock
def test_all_pairs_of_a_stream_have_the_deadline_of_one_call(monkeypatch: pytest.MonkeyPatch):
    own_deadline(monkeypatch, 0.5)
    pairs = (pair("q", f"text {number}") for number in count())
    with scripted() as (_, stub):
        started = time.monotonic()
        code, reason, _ = refusal(lambda: list(stub.PredictPairStream(pairs, timeout=WAIT)))
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert 0.4 < time.monotonic() - started < 5


def test_nothing_is_kept_of_the_pairs_that_are_answered():
    sent: SimpleQueue[Any] = SimpleQueue()
    with scripted() as (_, stub):
        answers = stub.PredictPairStream(iter(sent.get, None), timeout=WAIT)
        gc.collect()
        before = sum(type(each) is Future for each in gc.get_objects())
        for number in range(50):
            sent.put(pair("q", f"text {number}"))
            next(answers)
        gc.collect()
        assert sum(type(each) is Future for each in gc.get_objects()) - before < 5
        sent.put(None)
        assert list(answers) == []


def test_the_texts_of_all_queries_are_inside_while_one_is_scored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rerank_grpc.reranker.LIMITS", replace(LIMITS, characters_inside=1_000))
    runner = HeldRunner()
    with serving(runner=runner) as server, tei_stub(server) as stub:
        sender = Sender(stub.RerankStream, *streamed("q", "short"), *streamed("r", "word " * 150))
        sender.end()
        runner.await_batch()
        code, reason, _ = refusal(lambda: stub.Rerank(ranking("q", "word " * 100), timeout=WAIT))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        runner.let_all()
        assert len(sender.call.result(timeout=WAIT).ranks) == 2
        assert server.reranker.gate.calls == 0


@pytest.mark.clock
@pytest.mark.parametrize("method", [RERANK_STREAM, PAIR_STREAM])
def test_senders_that_withhold_keep_no_call_out(method: str):
    with scripted() as (server, stub), raw_connections(server.port, 6) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(method)
        wait_for(lambda: rerank(server.port) < 1)
        assert max(rerank(server.port, n) for n in range(5)) < 1
        assert stub.RerankStream(iter(streamed("q", "d")), timeout=5).ranks


def test_a_stopping_server_gives_a_sender_little_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rerank_grpc.server.methods.TEXTS_DRAIN_SECONDS", 0.5)
    monkeypatch.setattr("rerank_grpc.server.methods.REQUEST_SECONDS", 200.0)
    with scripted() as (server, stub):
        sender = Sender(stub.RerankStream, *streamed("q", "d"))
        wait_for(lambda: len(waiting_of(server, "a request (rerank)")) == 1)
        started, drains = time.monotonic(), drains_of(monkeypatch)
        server.stop(90)
        assert time.monotonic() - started < 60
        assert drains["a request (rerank)"] == 0.5
        # Not by its own deadline.
        assert status_code(sender.call.exception(timeout=WAIT)) is not grpc.StatusCode.DEADLINE_EXCEEDED
        sender.end()


def test_a_stream_that_is_complete_when_the_server_stops_is_answered():
    runner = HeldRunner()
    with serving(runner=runner) as server, tei_stub(server) as stub:
        sender = Sender(stub.RerankStream, *streamed("q", "d"))
        sender.end()
        runner.await_batch()
        stopping = threading.Thread(target=server.stop, args=[WAIT])
        stopping.start()
        runner.let_all()
        assert len(sender.call.result(timeout=WAIT).ranks) == 1
        stopping.join(WAIT)


# Beside rerank.v1


def test_all_protocols_share_the_calls_that_are_admitted():
    runner = HeldRunner()
    settings = replace(ServerSettings(), max_calls=1)
    with serving(settings, runner=runner) as server, stub_of(server.port) as ours, tei_stub(server) as stub:
        inside = ours.Rerank.future(request_of("q", "d"), timeout=WAIT)
        runner.await_batch()
        for method in ("Rerank", "RerankStream", "PredictPair", "PredictPairStream"):
            with pytest.raises(grpc.RpcError) as caught:
                CALLS[method](stub)
            message, trailers = details_of(caught.value)
            assert status_code(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error_details_pb2.ErrorInfo.FromString(message.details[0].value).reason.endswith(
                "QUEUE_FULL"
            )
            assert (delay_ms_of(message) or 0) >= 100
            assert int(str(trailers["grpc-retry-pushback-ms"])) >= 100
        runner.let_all()
        assert inside.result().results
        assert stub.Rerank(ranking("q", "d"), timeout=WAIT).ranks


def test_calls_of_both_protocols_are_answered_together(embedded: RerankServer):
    texts = [f"text number {number}" for number in range(40)]
    with stub_of(embedded.port) as ours, tei_stub(embedded) as stub:
        wanted = [r.relevance_score for r in ours.Rerank(request_of(QUERY, *texts), timeout=WAIT).results]
        calls = []
        for _ in range(10):
            calls += [
                ours.Rerank.future(request_of(QUERY, *texts), timeout=WAIT),
                stub.Rerank.future(ranking(QUERY, *texts), timeout=WAIT),
                stub.RerankStream.future(iter(streamed(QUERY, *texts)), timeout=WAIT),
            ]
        for call in calls:
            answer = call.result()
            found = (
                [r.relevance_score for r in answer.results]
                if isinstance(answer, pb.RerankResponse)
                else [rank.score for rank in answer.ranks]
            )
            assert found == pytest.approx(wanted, abs=1e-5)


# Tokens, reflection, health, log

TOKEN = (("authorization", "Bearer first-token"),)


@pytest.mark.parametrize("reflection", ["guarded", "open"])
@pytest.mark.parametrize("method", CALLS)
def test_where_tokens_are_set_every_method_needs_one(method: str, reflection: str):
    with scripted(access_tokens=("first-token",), reflection=reflection) as (_, stub):
        for metadata in ((), (("authorization", "Bearer other"),), (("authorization", "first-token"),)):
            code, reason, _ = refusal(partial(CALLS[method], stub, metadata=metadata))
            assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert CALLS[method](stub, metadata=TOKEN)


def reflected(channel: grpc.Channel, service: str, metadata: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Lists the services by reflection of either name."""
    request, response = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    ask = channel.stream_stream(
        f"/{service}/ServerReflectionInfo", request.SerializeToString, response.FromString
    )
    (answer,) = ask(iter([request(list_services="")]), timeout=WAIT, metadata=tuple(metadata))
    return [each.name for each in answer.list_services_response.service]


@pytest.mark.parametrize("service", REFLECT)
@pytest.mark.parametrize("tokens", [(), ("first-token",)])
@pytest.mark.parametrize("reflection", ["guarded", "open"])
def test_reflection_lists_the_services_to_whom_the_setting_lets_in(
    reflection: str, tokens: tuple[str, ...], service: str
):
    settings = {"access_tokens": tokens, "reflection": reflection}
    with scripted(**settings) as (server, _), channel_of(server.port) as channel:
        if tokens and reflection == "guarded":
            with pytest.raises(grpc.RpcError) as caught:
                reflected(channel, service)
            assert status_code(caught.value) is grpc.StatusCode.UNAUTHENTICATED
        else:
            assert {"tei.v1.Rerank", "tei.v1.Predict", "tei.v1.Info"} < {*reflected(channel, service)}
        assert "rerank.v1.RerankService" in reflected(channel, service, TOKEN)


def test_open_reflection_opens_nothing_beside_it():
    with (
        scripted(access_tokens=("first-token",), reflection="open") as (server, _),
        channel_of(server.port) as channel,
    ):
        for path in ("/rerank.v1.RerankService/Rerank", "/grpc.reflection.v1.Other/Method", "/"):
            assert code_of(channel, path, b"") is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("service", ["tei.v1.Rerank", "tei.v1.Predict", "tei.v1.Info"])
def test_health_answers_for_each_service(service: str):
    with scripted(access_tokens=("first-token",)) as (server, _), channel_of(server.port) as channel:
        answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        server.leave()
        answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("method", CALLS)
def test_a_calls_line_tells_the_protocol(method: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "rerank_grpc.calls")
    with scripted() as (_, stub):
        CALLS[method](stub, metadata=(("x-request-id", "order-66"),))
    wait_for(lambda: bool(call_lines(caplog)))
    (line,) = call_lines(caplog)
    facts = "" if method == "Info" else " documents=1 model=embedded tokens=4"
    assert line.startswith(f"tei.{method} OK{facts} request_id=order-66 ms=")


# Stubs of a caller's own

CALLER = """
import json, sys, grpc, tei_pb2 as tei, tei_pb2_grpc as services
channel = grpc.insecure_channel(sys.argv[1])
ranker, predict = services.RerankStub(channel), services.PredictStub(channel)
query, texts = "password", ["holidays", "choose a password"]
ranked = ranker.Rerank(tei.RerankRequest(query=query, texts=texts, return_text=True), timeout=20)
requests = [tei.RerankStreamRequest(query=query, text=text) for text in texts]
gathered = ranker.RerankStream(iter(requests), timeout=20)
pair = predict.PredictPair(tei.PredictPairRequest(inputs=[query, texts[1]]), timeout=20)
info = services.InfoStub(channel).Info(tei.InfoRequest(), timeout=20)
print(json.dumps({
    "file": tei.DESCRIPTOR.name,
    "ranks": [(rank.index, rank.text, rank.score) for rank in ranked.ranks],
    "gathered": [(rank.index, rank.score) for rank in gathered.ranks],
    "pair": pair.predictions[0].score,
    "kind": tei.ModelType.Name(info.model_type),
}))
"""


def described(port: int | None) -> bytes:
    """Asks reflection for the file that describes tei.v1."""
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="tei.v1.Rerank")
    with channel_of(port) as channel:
        (answer,) = ReflectionStub(channel).ServerReflectionInfo(iter([question]), timeout=WAIT)
    (file,) = answer.file_descriptor_response.file_descriptor_proto
    return file


def test_stubs_that_a_caller_generates_under_teis_own_file_name_are_served(
    embedded: RerankServer, tmp_path: Path
):
    """In a process of their own: two files with the same messages clash in one."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto.FromString(described(embedded.port))
    assert (file.package, list(file.dependency)) == ("tei.v1", [])
    file.name = "tei.proto"
    (tmp_path / "set").write_bytes(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")]
    generator = [
        sys.executable,
        str(ROOT / "scripts/protoc.py"),
        f"--descriptor_set_in={tmp_path / 'set'}",
        *outs,
    ]
    subprocess.run([*generator, "tei.proto"], check=True)
    (tmp_path / "caller.py").write_text(CALLER)
    command = [sys.executable, "caller.py", f"127.0.0.1:{embedded.port}"]
    own = {**os.environ, "no_grpc_proxy": "127.0.0.1"}  # its channel is gRPC's own, and obeys gRPC's own rule
    called = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60)
    assert called.returncode == 0, called.stderr
    told = json.loads(called.stdout)
    with stub_of(embedded.port) as stub:
        results = stub.Rerank(request_of("password", "holidays", "choose a password"), timeout=WAIT).results
    scores = [[each.index, each.relevance_score] for each in results]
    assert told == {
        "file": "tei.proto",
        "ranks": [[1, "choose a password", scores[0][1]], [0, "holidays", scores[1][1]]],
        "gathered": scores,
        "pair": scores[0][1],
        "kind": "MODEL_TYPE_RERANKER",
    }


def test_a_wrong_call_says_what_is_wrong_in_one_line(embedded: RerankServer):
    with tei_stub(embedded) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.PredictPair(pair("one text alone"), timeout=WAIT)
    assert message_of(caught.value) == "inputs: must be a query and a text to score against it, not 1 texts"
