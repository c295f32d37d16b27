"""Connect's unary protocol: the methods of RerankService with one reply, in JSON or protobuf."""

from __future__ import annotations

import time
from typing import NamedTuple

from google.protobuf.message import Message
from starlette.responses import Response

from rerank_grpc.callers import Right
from rerank_grpc.errors import DeadlineExceeded
from rerank_grpc.http.errors import HttpError
from rerank_grpc.rest.body import Charge, read_bytes
from rerank_grpc.rest.connect.protocol import (
    CONNECT,
    SERVICE,
    ConnectForm,
    check_headers,
    codec_of,
    codecs,
    media_type_of,
    model_in,
    required_name,
    timeout_of,
)
from rerank_grpc.rest.connect.stream import CODECS as STREAMING
from rerank_grpc.rest.connect.stream import EndOfStream
from rerank_grpc.rest.errors import problem_of
from rerank_grpc.rest.exchange import Endpoint, Exchange
from rerank_grpc.rest.recorder import code_of
from rerank_grpc.rest.upstream import may_see
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.messages import summary_from

UNARY_PATH = "/rerank.v1.{service}/{method}"
CODECS = codecs("application/json", "application/proto")

NOT_OFFERED = (
    "only Rerank, StreamRerank, ListModels and Health of rerank.v1.RerankService are offered over Connect; "
    "call other methods over gRPC"
)


class Method(NamedTuple):
    """A method with one reply: its name, what it needs, and the types of its messages."""

    name: str
    right: Right
    request: type[Message]
    reply: type[Message]


METHODS = {
    f"{SERVICE}/{method.name}": method
    for method in (
        Method("Rerank", Right.RERANK, pb.RerankRequest, pb.RerankResponse),
        Method("ListModels", Right.LIST, pb.ListModelsRequest, pb.ListModelsResponse),
        Method("Health", Right.LIST, pb.HealthRequest, pb.HealthResponse),
    )
}


class ConnectEndpoint(Endpoint):
    """Passes a call on to the gRPC servers as it is."""

    def needs(self, exchange: Exchange) -> Right | None:
        method = METHODS.get(exchange.path)
        return method and method.right

    def presumed(self, exchange: Exchange) -> ConnectForm:
        return CONNECT

    async def respond(self, exchange: Exchange, charge: Charge) -> Response:
        method = METHODS.get(exchange.path)
        if method is None:
            return _not_offered(exchange, media_type_of(exchange))
        exchange.record.method = method.name
        codec = codec_of(exchange, CODECS)
        check_headers(exchange.request.headers, "content-encoding")
        deadline = time.monotonic() + timeout_of(exchange, self._settings.timeout)
        body = await read_bytes(exchange.request, codec.most_bytes, charge)
        message = codec.read(body, method.request)
        reply = await exchange.while_connected(self._ask(method, message, deadline, exchange))
        return Response(codec.write(reply, method.reply), headers=exchange.ids, media_type=codec.media_type)

    async def _ask(self, method: Method, message: bytes, deadline: float, exchange: Exchange) -> bytes:
        if method.request is pb.RerankRequest:
            return await self._rerank(message, deadline, exchange)
        timeout = deadline - time.monotonic()
        if timeout <= 0:
            raise DeadlineExceeded("the deadline passed before the answer was there")
        if method.request is pb.HealthRequest:
            await self._require_model(exchange, model_in(message))
        reply = await self._upstream.relay_question(method.name, message, timeout, exchange.passed_on)
        if method.request is pb.ListModelsRequest and exchange.caller.models is not None:
            listed = pb.ListModelsResponse.FromString(reply).models
            own = [each for each in listed if may_see(exchange.caller, each.name, each.aliases)]
            reply = pb.ListModelsResponse(models=own).SerializeToString()
        return reply

    async def _require_model(self, exchange: Exchange, name: str | None) -> None:
        await self._upstream.require_model(exchange.caller, required_name(name), exchange.token)

    async def _rerank(self, message: bytes, deadline: float, exchange: Exchange) -> bytes:
        """Passes on a RerankRequest; parses it for the record only once the server has found it in bounds.

        That takes microseconds, where a hostile message's millions of documents would take all memory.
        """
        exchange.model = model_in(message)
        await self._require_model(exchange, exchange.model)
        reply = await self._upstream.relay_rerank(message, deadline, exchange.passed_on)
        exchange.record.documents = len(pb.RerankRequest.FromString(message).documents)
        exchange.record.summary = summary_from(pb.RerankResponse.FromString(reply))
        return reply


def _not_offered(exchange: Exchange, media_type: str) -> Response:
    """Refuses a method; the errors of a stream come with status 200, in a message that ends it."""
    error = HttpError(501, NOT_OFFERED)
    if media_type not in STREAMING:
        raise error
    _, content = CONNECT.error(problem_of(error))
    exchange.record.code = code_of(error.status)
    return EndOfStream(exchange, media_type, {"error": content})
