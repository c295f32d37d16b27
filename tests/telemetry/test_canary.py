"""A caller's texts reach nobody: whatever goes wrong, over every protocol, all that is told is looked at."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from rerank_grpc.access.entries import Known
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.engine.meter import Counts
from rerank_grpc.errors import Reason
from rerank_grpc.protocols import tei_pb2
from rerank_grpc.registry.loading import Loader, ModelLoader
from rerank_grpc.runner.runner import Runner
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.metrics import Metrics
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.telemetry.registry import MetricsRegistry
from rerank_grpc.telemetry.traces import make_traces
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.rest.support import HOST, Reply, call, get, post
from tests.server.test_kserve import FailingLoader, inference
from tests.support import (
    WAIT,
    CountingRunner,
    HeldRunner,
    LateLoader,
    SmallMemory,
    channel_of,
    loaded_in,
    logged,
    request_of,
    stub_of,
    wait_for,
)
from tests.telemetry.receiver import Receiver, Traced, receiving, traced

# Nobody is told these, not even the caller.
QUERY, DOCUMENT, INSTRUCTION, TOKEN = "qUeRyCaNaRy", "dOcUmEnTcAnArY", "iNsTrUcTiOnCaNaRy", "tOkEnCaNaRy"
# The caller alone may be told these: a refusal quotes an unknown model or a field's wrong value.
MODEL, OTHER = "mOdElCaNaRy", "oThErCaNaRy"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# A state of a right form is passed on in spans, as W3C asks; one of another form is the caller's text.
STATE = f"{OTHER}!"
PATHS = {
    "grpc": "/rerank.v1.RerankService/Rerank",
    "tei": "/tei.v1.Rerank/Rerank",
    "kserve": "/inference.GRPCInferenceService/ModelInfer",
}
PROTOCOLS = ("grpc", "rest", "tei", "kserve")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Leaves no variable of the machine, has spans sent at once, and keeps every line of the log."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    caplog.set_level(logging.DEBUG)


@dataclass(frozen=True)
class Asked:
    """A call's content, whatever its protocol."""

    model: str = ""
    document: str = DOCUMENT
    instruction: str = ""
    token: str = TOKEN
    seconds: float = WAIT

    def message(self, protocol: str) -> Any:
        if protocol == "tei":
            return tei_pb2.RerankRequest(query=QUERY, texts=[self.document])
        if protocol == "kserve":
            request = inference([QUERY], [self.document], model_name=self.model)
            if self.instruction:
                request.parameters["instruction"].string_param = self.instruction
            return request
        documents = [pb.Document(text=self.document, id=OTHER)]
        return pb.RerankRequest(
            query=QUERY, documents=documents, model=self.model, instruction=self.instruction
        )

    @property
    def body(self) -> dict[str, Any]:
        given = {"model": self.model, "instruction": self.instruction}
        texts = {"query": QUERY, "documents": [{"text": self.document, "id": OTHER}]}
        # REST leaves out an instruction that the model does not take; it has an option of its own for none.
        spans = {"relevant_spans": {"mode": "enabled"}} if self.instruction else {}
        return texts | spans | {name: text for name, text in given.items() if text}

    @property
    def headers(self) -> dict[str, str]:
        given = {"authorization": f"Bearer {self.token}", "traceparent": TRACEPARENT, "tracestate": STATE}
        return given | {"x-request-timeout": str(self.seconds)}


class Asking:
    """Makes calls, and keeps all that their callers are told."""

    def __init__(self, system: Traced, pool: ThreadPoolExecutor, channel: grpc.Channel) -> None:
        self._system, self._pool, self._channel = system, pool, channel
        self.told: list[str] = []
        self._leaving = list[Callable[[], object]]()

    def __call__(self, protocol: str, asked: Asked) -> Future[None]:
        """Begins a call; the future is done once its caller has been told how it ended."""
        if protocol == "rest":
            connection = http.client.HTTPConnection(HOST, self._system.rest_port, timeout=30)
            headers = {**asked.headers, "content-type": "application/json"}
            connection.request("POST", "/v1/rerank", json.dumps(asked.body), headers)
            socket = connection.sock
            self._leaving.append(lambda: socket.shutdown(2))
            return self._pool.submit(self._keep_reply, connection)
        write: Callable[[Any], bytes] = lambda message: message.SerializeToString()  # noqa: E731
        ask: grpc.UnaryUnaryMultiCallable[Any, bytes] = self._channel.unary_unary(PATHS[protocol], write)
        metadata = tuple((key, text) for key, text in asked.headers.items() if key != "x-request-timeout")
        begun = ask.future(asked.message(protocol), timeout=asked.seconds, metadata=metadata)
        self._leaving.append(begun.cancel)
        return self._pool.submit(self.keep_status, begun)

    def leave(self) -> None:
        """Ends the latest call as a caller who goes away."""
        self._leaving[-1]()

    def keep(self, reply: Reply) -> int:
        self.told.append(f"{reply.status} {reply.headers} {reply.raw.decode('latin-1')}")
        return reply.status

    def _keep_reply(self, connection: http.client.HTTPConnection) -> None:
        try:
            response = connection.getresponse()
            self.keep(Reply(response.status, dict(response.getheaders()), response.read()))
        except (OSError, http.client.HTTPException) as error:
            self.told.append(repr(error))  # the caller has left, or was cut off
        finally:
            connection.close()

    def keep_status(self, ended: Any) -> None:
        metadata = [*ended.initial_metadata(), *ended.trailing_metadata()]
        told = [(item.key, text(item.value)) for item in metadata]
        self.told.append(f"{ended.code()} {ended.details()} {told}")


def text(value: str | bytes) -> str:
    """Reads raw bytes as they are, so that a text in a message of details is seen."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


@contextmanager
def asking(system: Traced) -> Iterator[Asking]:
    with channel_of(system.server.port) as channel, ThreadPoolExecutor(8) as pool:
        yield Asking(system, pool, channel)


@dataclass
class Watched:
    """All that is told of calls."""

    receiver: Receiver
    registry: MetricsRegistry
    records: list[CallRecord] = field(default_factory=list)


@contextmanager
def watched(**given: Any) -> Iterator[tuple[Traced, Watched]]:
    """Runs both servers with traces, metrics and the log."""
    registry, settings = MetricsRegistry(), given.pop("settings", ServerSettings())
    if settings.token_file is None:
        settings = replace(settings, access_tokens=(TOKEN,))
    with receiving() as receiver:
        told = Watched(receiver, registry)
        sinks = (log_call, Metrics(registry, ["embedded"]).call, told.records.append)
        with traced(make_traces(receiver.endpoint), settings=settings, sinks=sinks, **given) as system:
            yield system, told


def check(watched: Watched, told: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Finds a caller's text wherever it must not be."""
    places = {
        "a span": watched.receiver.text,
        "a metric": generate_latest(watched.registry).decode(),
        "the log": logged(caplog),
    }
    found = [
        (canary, place)
        for place, content in {**places, "a reply": "\n".join(told)}.items()
        for canary in (QUERY, DOCUMENT, INSTRUCTION, TOKEN, *((MODEL, OTHER) if place in places else ()))
        if canary.lower() in content.lower()
    ]
    assert found == []
    assert not any(span.events or span.status.message for span in watched.receiver.spans)


# What brings an error about, before its call and after it.


def nothing(_system: Traced, _runner: Runner, _ask: Asking) -> None:
    pass


def occupy(_system: Traced, runner: Runner, ask: Asking) -> None:
    """Has the device hold a call."""
    assert isinstance(runner, HeldRunner)
    ask("grpc", Asked())
    runner.await_batch()


def fill(system: Traced, runner: Runner, ask: Asking) -> None:
    """Has another call wait behind it, in a queue that takes no more."""
    occupy(system, runner, ask)
    ask("grpc", Asked(document=f"{DOCUMENT} second"))
    wait_for(lambda: loaded_in(system.server).engine.queued_tokens > 0)


def slow_down(system: Traced, runner: Runner, ask: Asking) -> None:
    """Has the device take a second for each ten tokens."""
    loaded_in(system.server).engine.calibrate(Counts(1, 1, 0.1), Counts(1, 100, 10))
    occupy(system, runner, ask)


def await_device(_system: Traced, runner: Runner, _ask: Asking) -> None:
    assert isinstance(runner, HeldRunner)
    runner.await_batch()


def leave(system: Traced, runner: Runner, ask: Asking) -> None:
    await_device(system, runner, ask)
    ask.leave()


def close(system: Traced, _runner: Runner, _ask: Asking) -> None:
    """Stops the models as the end of the grace does, which calls on their way may outrun."""
    system.server.registry.close()


def use_up(_system: Traced, _runner: Runner, ask: Asking) -> None:
    """Has the caller use up its rate."""
    ask("grpc", Asked()).result(WAIT)


def named(entry: str) -> ServerSettings:
    """Makes settings of one caller, whose name is known."""
    table = f'[shop]\ntoken = "{TOKEN}"\n{entry}'
    return ServerSettings(token_file=TokenFile.of(Path("nowhere"), table.encode(), Known()))


@dataclass(frozen=True)
class Failure:
    """An error, and how it comes about; with `times`, a call that had too little of them is made again."""

    asked: Asked = Asked()
    times: tuple[float, ...] = (WAIT,)
    runner: Callable[[], Runner] = CountingRunner
    loader: Callable[[ServerSettings], Loader | None] = lambda _: None
    until_loaded: bool = True
    settings: ServerSettings = field(default_factory=ServerSettings)
    before: Callable[[Traced, Runner, Asking], None] = nothing
    after: Callable[[Traced, Runner, Asking], None] = nothing
    protocols: tuple[str, ...] = PROTOCOLS


def fail(_sequence: Sequence) -> Output | None:
    raise RuntimeError(f"{QUERY} {DOCUMENT}")


# On a busy machine a short time may pass before its call has come so far.
SHORT = 0.3, 3.0, 10.0
FAILURES = {
    # TEI's callers name no model and no instruction.
    "unknown_model": Failure(Asked(model=MODEL), protocols=("grpc", "rest", "kserve")),
    "invalid_request": Failure(Asked(document=DOCUMENT * 10_000)),
    "unsupported_option": Failure(
        Asked(instruction=INSTRUCTION), loader=ModelLoader, protocols=("grpc", "rest", "kserve")
    ),
    "queue_full": Failure(
        runner=HeldRunner, settings=ServerSettings(engine=EngineSettings(max_queue_tokens=5)), before=fill
    ),
    "rate_limited": Failure(settings=named("documents_per_second = 0.001\nburst = 1"), before=use_up),
    "deadline_unreachable": Failure(
        Asked(document=f"{DOCUMENT} " * 200), (5.0,) * 3, runner=HeldRunner, before=slow_down
    ),
    "deadline_exceeded": Failure(times=SHORT, runner=HeldRunner),
    "cancelled": Failure(runner=HeldRunner, after=leave),
    "model_loading": Failure(times=SHORT, loader=lambda _: LateLoader(), until_loaded=False),
    "model_failed": Failure(loader=lambda _: FailingLoader(), until_loaded=False),
    "shutting_down": Failure(before=close),
    "pair_too_large": Failure(Asked(document=f"{DOCUMENT} " * 40), runner=lambda: SmallMemory(20)),
    "unauthenticated": Failure(Asked(token=f"{TOKEN}-of-another")),
    "internal": Failure(runner=lambda: CountingRunner(fail)),
}


@pytest.mark.parametrize(
    ("reason", "protocol"),
    [(reason, protocol) for reason, failure in FAILURES.items() for protocol in failure.protocols],
)
def test_no_text_of_a_caller_is_told_when_a_call_fails(
    caplog: pytest.LogCaptureFixture, reason: str, protocol: str
):
    failure = FAILURES[reason]
    runner, loader = failure.runner(), failure.loader(failure.settings)
    given = {"settings": failure.settings, "until_loaded": failure.until_loaded}
    with watched(runner=runner, loader=loader, **given) as (system, told):
        with asking(system) as ask:
            failure.before(system, runner, ask)
            for seconds in failure.times:
                known = len(told.records)
                ended = ask(protocol, replace(failure.asked, seconds=seconds))
                failure.after(system, runner, ask)
                ended.result(WAIT)
                if len(failure.times) == 1:
                    break
                wait_for(lambda: any(record.protocol == protocol for record in told.records[known:]))  # noqa: B023
                if records_of(told, protocol, reason):
                    break
                # Nothing but the end of its time.
                assert {record.reason for record in told.records[known:]} <= {
                    Reason.DEADLINE_EXCEEDED,
                    Reason.CANCELLED,
                }
            replies = list(ask.told)
            if isinstance(runner, HeldRunner):
                runner.let_all()
            if isinstance(loader, LateLoader):
                loader.may_load.set()
        wait_for(lambda: bool(records_of(told, protocol, reason)))
    check(told, replies, caplog)
    assert replies
    # A stranger makes no span.
    assert bool(told.receiver.spans) is (reason != "unauthenticated")


def test_a_callers_name_is_told_where_its_token_is_not(caplog: pytest.LogCaptureFixture):
    with watched(settings=named("")) as (system, told):
        with asking(system) as ask:
            for protocol in PROTOCOLS:
                ask(protocol, Asked()).result(WAIT)
        wait_for(lambda: len(told.records) == 5)  # two of the call over REST
    check(told, [], caplog)  # replies may return documents
    calls = [span for span in told.receiver.spans if "/" in span.name]
    assert len(calls) == 5
    for span in calls:
        attributes = {each.key: each.value.string_value for each in span.attributes}
        assert attributes["enduser.id"] == "shop"
    lines = [line for line in caplog.records if getattr(line, "event", "") == "call"]
    assert [line.caller for line in lines] == ["shop"] * 5  # type: ignore[attr-defined]
    metrics = generate_latest(told.registry).decode()
    assert 'rerank_documents_total{caller="shop",model="embedded"} 4.0' in metrics


def records_of(watched: Watched, protocol: str, reason: str) -> list[CallRecord]:
    return [
        record
        for record in watched.records
        if record.protocol == protocol and record.reason and record.reason.name.lower() == reason
    ]


def misplaced() -> Iterator[tuple[str, dict[str, str]]]:
    """Yields paths and headers with a token where callers have put theirs, and where none belongs."""
    right, wrong = (f"{TOKEN}{ending}" for ending in ("", "-of-another"))
    for token in (right, wrong):
        basic = base64.b64encode(f"user:{token}".encode()).decode()
        user_alone = base64.b64encode(f"{token}:".encode()).decode()
        yield f"/v1/rerank?token={token}&access_token={token}", {}
        yield f"/v1/rerank#{token}", {}
        yield f"/{token}/rerank", {}
        yield f"/{token}", {}
        yield "/v1/rerank", {"authorization": f"Basic {basic}"}
        yield "/v1/rerank", {"authorization": f"Basic {user_alone}"}
        yield "/v1/rerank", {"authorization": f"Digest username={token}"}
        yield "/v1/rerank", {"authorization": f"Bearer {token} {token}"}
        yield "/v1/rerank", {"authorization": f"Bearer \xe9{token}"}
        for name in ("cookie", "proxy-authorization", "x-api-key", "api-key", "user-agent", "referer"):
            yield "/v1/rerank", {name: token}
        for name in ("x-request-timeout", "content-type", "content-encoding", "connect-timeout-ms", "origin"):
            yield "/v1/rerank", {"authorization": f"Bearer {right}", name: token}
            yield PATHS["grpc"], {"authorization": f"Bearer {right}", name: token}


def test_no_text_of_a_caller_is_told_whatever_is_odd_about_a_call(caplog: pytest.LogCaptureFixture):
    good = Asked()
    bearer = {"authorization": f"Bearer {TOKEN}", "traceparent": TRACEPARENT, "tracestate": STATE}
    # Replies of paths with further forms of errors.
    odd: list[tuple[str, Any, dict[str, str]]] = [
        (f"/{OTHER}/rerank", {**good.body, "return_documents": False}, bearer),
        (f"/{OTHER}", good.body, bearer),
        (f"/v1/inference/{MODEL}", good.body, bearer),
        ("/v1/rerank", {**good.body, "top_n": OTHER}, bearer),
        ("/v1/rerank", f'{{"query": "{QUERY}", "documents": ["{DOCUMENT}"'.encode(), bearer),
        ("/v1/rerank", {"query": [QUERY], "documents": [DOCUMENT]}, bearer),
        ("/v1/rerank", good.body, {**bearer, "x-request-timeout": OTHER}),
        ("/v1/rerank", good.body, {"authorization": f"Basic {TOKEN}"}),
        ("/tei/rerank", {"query": QUERY, "texts": [DOCUMENT], "truncation_direction": OTHER}, bearer),
        (PATHS["grpc"], {**good.body, "model": MODEL}, {**bearer, "content-type": "application/json"}),
    ]
    odd += [(path, {**good.body, "return_documents": False}, headers) for path, headers in misplaced()]
    with watched() as (system, told), asking(system) as ask, stub_of(system.server.port) as stub:
        statuses = [ask.keep(call(system.rest_port, "POST", *each)) for each in odd]
        statuses.append(ask.keep(get(system.rest_port, f"/v1/models/{MODEL}", **bearer)))
        assert {400, 401, 404} <= set(statuses)
        assert post(system.rest_port, "/v1/rerank", good.body, **bearer).status == 200
        metadata = tuple(bearer.items())
        stub.Rerank(request_of(QUERY, DOCUMENT, ignore_unsupported_options=True), metadata=metadata)
        for bad in (request_of(QUERY, DOCUMENT, truncation=99), request_of("", DOCUMENT), request_of(QUERY)):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Rerank(bad, metadata=metadata)
            ask.keep_status(caught.value)
        for key in ("token", "x-api-key", "cookie", "authorization", "x-token-bin"):
            sent = TOKEN.encode() if key.endswith("-bin") else TOKEN
            with pytest.raises(grpc.RpcError) as caught:
                stub.Rerank(request_of(QUERY, DOCUMENT), metadata=((key, sent),))
            ask.keep_status(caught.value)
        left = stub.StreamRerank(pb.StreamRerankRequest(query=QUERY), metadata=metadata)
        left.cancel()
    assert len(told.receiver.named("rerank.v1.RerankService/Rerank")) >= 4
    check(told, ask.told, caplog)
