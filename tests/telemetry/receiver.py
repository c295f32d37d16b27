"""A collector for tests, by the protocol of the real one, and the servers of a process that sends to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.registry.loading import Loader
from rerank_grpc.rest.server import RestServer
from rerank_grpc.runner.runner import Runner
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import Sink
from rerank_grpc.telemetry.traces import Traces
from tests.support import WAIT, CountingRunner, HeldRunner, ScriptedLoader


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all that it is sent."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.refusal = ""  # told instead of taking anything
        self.port = 0

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        assert self.may_answer.wait(WAIT)
        if self.refusal:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def resource(self) -> dict[str, object]:
        """The attributes of the resource of the first spans."""
        return plain(self.requests[0].resource_spans[0].resource.attributes)

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span

    def below(self, parent: Span) -> list[Span]:
        """Lists the children of a span, in the order in which they began."""
        children = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(children, key=lambda span: span.start_time_unix_nano)

    @property
    def text(self) -> str:
        """All that it was sent, as a reader sees it."""
        return "\n".join(map(str, self.requests))


def attributes(span: Span) -> dict[str, object]:
    return plain(span.attributes)


def plain(pairs: object) -> dict[str, object]:
    """Makes a dict of a message's keys and values."""
    found: dict[str, object] = {}
    for pair in pairs:  # type: ignore[attr-defined]
        assert isinstance(pair, KeyValue)
        value: AnyValue = pair.value
        kind = value.WhichOneof("value")
        assert kind is not None
        found[pair.key] = getattr(value, kind)
    return found


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Runs a receiver."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4, thread_name_prefix="receiver"))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield receiver
    finally:
        receiver.may_answer.set()
        server.stop(0).wait()


@dataclass
class Traced:
    """A gRPC server, and REST before it as in one process."""

    server: RerankServer
    rest_port: int


@contextmanager
def traced(
    traces: Traces,
    *,
    runner: Runner | None = None,
    settings: ServerSettings | None = None,
    sinks: tuple[Sink, ...] = (log_call,),
    loader: Loader | None = None,
    until_loaded: bool = True,
) -> Iterator[Traced]:
    """Runs both servers with traces, which are all sent once they have stopped.

    Models run on a runner, or are those of a loader.
    """
    settings = replace(settings or ServerSettings(), port=0, admin_port=0, rest=RestSettings(port=0))
    runner = runner or CountingRunner()
    server = RerankServer(
        settings,
        loader=loader or ScriptedLoader(runner, settings.engine),
        sinks=(traces.call, *sinks),
        on_batch=traces.batch,
    )
    tokens = settings.access_tokens
    rest = RestServer(
        RestSettings(
            port=0,
            targets=(f"127.0.0.1:{server.local_port}",),
            access_tokens=tokens,
            token_file=settings.token_file,
            upstream_token=tokens[0] if tokens else None,
        ),
        server.health,
        sinks=sinks,
        tracer=traces,
    )
    server.start()
    rest.start()
    try:
        assert not until_loaded or server.wait_until_loaded(60)
        yield Traced(server, rest.port)
    finally:
        if isinstance(runner, HeldRunner):
            runner.let_all()
        rest.stop(5)
        server.stop(5)
        traces.close(WAIT)  # a busy machine may take longer than a server that ends does
