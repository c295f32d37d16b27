"""A real gRPC server that answers by script: one step per call, then the last rule for all others."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.authority import Issued

Step = Callable[[Any, grpc.ServicerContext], Any]


def shown(issued: Issued) -> grpc.ServerCredentials:
    """Makes the credentials of a server that shows a certificate and asks for none."""
    return grpc.ssl_server_credentials([(issued.key.read_bytes(), issued.cert.read_bytes())])


@dataclass(frozen=True)
class Call:
    """What the server saw of one attempt."""

    method: str
    request: Any
    metadata: dict[str, str]
    time_remaining: float


@dataclass
class ScriptedServer:
    """Listens on a loopback port, or at an address of gRPC's; `stop` and `start` take it away and back."""

    credentials: grpc.ServerCredentials | None = None
    port: int = 0
    script: deque[Step] = field(default_factory=deque)
    otherwise: Step | None = None
    calls: list[Call] = field(default_factory=list)
    called: threading.Event = field(default_factory=threading.Event)
    probe: HealthServicer | None = None
    address: str = ""

    @property
    def target(self) -> str:
        return self.address or f"127.0.0.1:{self.port}"

    def start(self) -> None:
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)]
        options.append(("grpc.max_send_message_length", 64 << 20))
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(_Servicer(self), self._server)
        if self.probe is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self.probe, self._server)
        self.port = (
            self._server.add_secure_port(self.target, self.credentials)
            if self.credentials
            else self._server.add_insecure_port(self.target)
        )
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def answer(self, method: str, request: Any, context: grpc.ServicerContext, default: Step) -> Any:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.calls.append(Call(method, request, metadata, context.time_remaining()))
        self.called.set()
        step = self.script.popleft() if self.script else self.otherwise or default
        return step(request, context)


class _Servicer(rerank_pb2_grpc.RerankServiceServicer):
    def __init__(self, server: ScriptedServer) -> None:
        self._answer = server.answer

    def Rerank(self, request, context):
        return self._answer("Rerank", request, context, lambda request, _: scored(request))

    def StreamRerank(self, request, context):
        yield from self._answer("StreamRerank", request, context, lambda request, _: streamed(request))

    def ListModels(self, request, context):
        return self._answer("ListModels", request, context, lambda *_: pb.ListModelsResponse())

    def Health(self, request, context):
        return self._answer("Health", request, context, lambda *_: health(pb.MODEL_STATE_READY))


def results(request: Any) -> list[pb.RerankResult]:
    """Scores a document by its place: the first one is best."""
    return [
        pb.RerankResult(
            index=index,
            id=document.id,
            relevance_score=1 / (index + 1),
            document=document if request.return_documents else None,
        )
        for index, document in enumerate(request.documents)
    ]


def scored(request: Any) -> pb.RerankResponse:
    return pb.RerankResponse(results=results(request), model="embedded")


def streamed(request: Any) -> Iterator[pb.StreamRerankResponse]:
    for result in reversed(results(request)):
        yield pb.StreamRerankResponse(results=[result])
    yield pb.StreamRerankResponse(summary=pb.RerankSummary(model="embedded", model_revision="r1"))


def health(state: int, serving: bool = False) -> pb.HealthResponse:
    return pb.HealthResponse(model="embedded", state=state, version="1.2.3", serving=serving)  # type: ignore[arg-type]


def reply(message: Any) -> Step:
    return lambda *_: message


def fail(
    code: grpc.StatusCode,
    text: str = "refused",
    *,
    reason: str | None = None,
    domain: str = "rerank.v1",
    metadata: dict[str, str] | None = None,
    retry_after: float | None = None,
    pushback_ms: int | None = None,
    details: Sequence[Message] = (),
) -> Step:
    """Refuses a call as the server does: details in the status, the pushback in a trailer."""
    messages = list(details)
    if reason is not None:
        messages.append(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_after * 1e9))
        messages.append(retry)
    trailers: list[tuple[str, str | bytes]] = []
    if messages:
        status = status_pb2.Status(code=code.value[0], message=text, details=map(_any, messages))
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    if pushback_ms is not None:
        trailers.append(("grpc-retry-pushback-ms", str(pushback_ms)))

    def step(_request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata(tuple(trailers))
        context.abort(code, text)

    return step


def hang(_request: Any, context: grpc.ServicerContext) -> Any:
    """Answers when the caller has gone: the call ends by the caller's doing alone."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(30)
    return pb.RerankResponse()


def end(_request: Any, context: grpc.ServicerContext) -> Any:
    """Ends a call as the service ends one whose caller is too slow: by a cancellation, without details."""
    context.cancel()
    return pb.RerankResponse()


def _any(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


if __name__ == "__main__":
    # A replica to be killed: says its port, then serves until its input ends.
    replica = ScriptedServer()
    replica.start()
    print(replica.port, flush=True)
    sys.stdin.read()
    replica.stop()
