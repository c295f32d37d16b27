"""Connect's unary protocol: the methods of RerankService with one reply, in JSON or protobuf."""

from __future__ import annotations

import base64
import re
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

import orjson
from google.protobuf import any_pb2, json_format, wrappers_pb2
from google.protobuf.message import DecodeError, Message
from starlette.datastructures import Headers
from starlette.responses import Response

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.callers import Right
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.errors import DeadlineExceeded, InvalidRequest
from rerank_grpc.http.errors import HttpError
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.body import BodyBudget, Charge, parse_json, read_bytes
from rerank_grpc.rest.errors import Problem, problem_of
from rerank_grpc.rest.exchange import Endpoint, Exchange
from rerank_grpc.rest.forms.decoded import Json
from rerank_grpc.rest.forms.messages import json_of, message_of
from rerank_grpc.rest.recorder import Recorder, code_of
from rerank_grpc.rest.upstream import Upstream, may_see
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.messages import summary_from
from rerank_grpc.wire.status import CODES, status_of

CONNECT_PATH = "/rerank.v1.{service}/{method}"

# The protocol's codes, with the HTTP status of each; "unknown" goes out with the status that it comes of.
STATUSES = {
    "canceled": 499,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "unauthenticated": 401,
}
# The code of an error that did not come with one of the service.
CODE_OF = {
    408: "deadline_exceeded",
    413: "resource_exhausted",
    500: "internal",
    501: "unimplemented",
    503: "unavailable",
}

STREAMING = ("application/connect+json", "application/connect+proto")
END_OF_STREAM = 2

NOT_OFFERED = (
    "only Rerank, ListModels and Health of rerank.v1.RerankService are offered over Connect; "
    "call other methods over gRPC"
)


class Method(NamedTuple):
    """A method with one reply: its name, what it needs, and the types of its messages."""

    name: str
    right: Right
    request: type[Message]
    reply: type[Message]


METHODS = {
    f"/rerank.v1.RerankService/{method.name}": method
    for method in (
        Method("Rerank", Right.RERANK, pb.RerankRequest, pb.RerankResponse),
        Method("ListModels", Right.LIST, pb.ListModelsRequest, pb.ListModelsResponse),
        Method("Health", Right.LIST, pb.HealthRequest, pb.HealthResponse),
    )
}


class ConnectForm:
    """The form of Connect's errors."""

    name = "connect"

    def error(self, problem: Problem) -> tuple[int, Json]:
        """Writes the code, the text, and the details that gRPC sends in a status."""
        content: dict[str, Json] = {
            "code": CODE_OF.get(problem.status, "unknown"),
            "message": problem.message,
        }
        error = problem.error
        if error is not None and type(error) in CODES:
            content["code"] = CODES[type(error)].name.lower().replace("cancelled", "canceled")
            content["details"] = list(map(_detail, status_of(error).details))
        return STATUSES.get(content["code"], problem.status), content


def _detail(packed: any_pb2.Any) -> Json:
    debug = json_format.MessageToDict(packed)
    del debug["@type"]
    value = base64.b64encode(packed.value).decode().rstrip("=")
    return {"type": packed.TypeName(), "value": value, "debug": debug}


class Codec(NamedTuple):
    """One encoding of messages: its media type, its largest body, the way from and to protobuf's bytes."""

    media_type: str
    most_bytes: int
    read: Callable[[bytearray, type[Message]], bytes]
    write: Callable[[bytes, type[Message]], bytes]


def _from_json(body: bytearray, kind: type[Message]) -> bytes:
    return message_of(parse_json(body or bytearray(b"{}")), kind).SerializeToString()


def _to_json(reply: bytes, kind: type[Message]) -> bytes:
    return orjson.dumps(json_of(kind.FromString(reply)))


CODECS = {
    codec.media_type: codec
    for codec in (
        Codec("application/json", LIMITS.body_bytes, _from_json, _to_json),
        # The gRPC server parses these bytes, within its own bounds.
        Codec("application/proto", LIMITS.message_bytes, lambda body, _: bytes(body), lambda reply, _: reply),
    )
}


class ConnectEndpoint(Endpoint):
    """Passes a call on to the gRPC servers as it is."""

    def __init__(
        self,
        settings: RestSettings,
        upstream: Upstream,
        accepted: AccessList,
        budget: BodyBudget,
        recorder: Recorder,
    ) -> None:
        super().__init__(accepted, budget, recorder)
        self._timeout = settings.timeout
        self._upstream = upstream

    def needs(self, exchange: Exchange) -> Right | None:
        method = METHODS.get(exchange.path)
        return method and method.right

    def presumed(self, exchange: Exchange) -> ConnectForm:
        return CONNECT

    async def respond(self, exchange: Exchange, charge: Charge) -> Response:
        headers = exchange.request.headers
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        method = METHODS.get(exchange.path)
        if method is None:
            return _not_offered(exchange, media_type)
        exchange.record.method = method.name
        codec = _codec(media_type)
        _check(headers)
        deadline = time.monotonic() + _timeout(exchange, self._timeout)
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
            await self._require_model(exchange, _model_in(message))
        reply = await self._upstream.relay_question(method.name, message, timeout, exchange.passed_on)
        if method.request is pb.ListModelsRequest and exchange.caller.models is not None:
            listed = pb.ListModelsResponse.FromString(reply).models
            own = [each for each in listed if may_see(exchange.caller, each.name, each.aliases)]
            reply = pb.ListModelsResponse(models=own).SerializeToString()
        return reply

    async def _require_model(self, exchange: Exchange, name: str | None) -> None:
        # A name that cannot be read is none of a caller's.
        await self._upstream.require_model(exchange.caller, "\0" if name is None else name, exchange.token)

    async def _rerank(self, message: bytes, deadline: float, exchange: Exchange) -> bytes:
        """Passes on a RerankRequest; parses it for the record only once the server has found it in bounds.

        That takes microseconds, where a hostile message's millions of documents would take all memory.
        """
        exchange.model = _model_in(message)
        await self._require_model(exchange, exchange.model)
        reply = await self._upstream.relay_rerank(message, deadline, exchange.passed_on)
        exchange.record.documents = len(pb.RerankRequest.FromString(message).documents)
        exchange.record.summary = summary_from(pb.RerankResponse.FromString(reply))
        return reply


CONNECT = ConnectForm()


def _not_offered(exchange: Exchange, media_type: str) -> Response:
    """Refuses a method; the errors of a stream come with status 200, in a message that ends it."""
    error = HttpError(501, NOT_OFFERED)
    if media_type not in STREAMING:
        raise error
    _, content = CONNECT.error(problem_of(error))
    exchange.record.code = code_of(error.status)
    end = orjson.dumps({"error": content})
    envelope = struct.pack(">BI", END_OF_STREAM, len(end))
    return Response(envelope + end, headers=exchange.ids, media_type=media_type)


def _model_in(request: bytes) -> str | None:
    """Reads the model's name alone out of a request, whose first field it is; None where it cannot be.

    A message with one field of that number and kind leaves the others unparsed.
    """
    try:
        return wrappers_pb2.StringValue.FromString(request).value
    except (DecodeError, UnicodeDecodeError):
        return None


def _codec(media_type: str) -> Codec:
    if media_type not in CODECS:
        accepted = list(CODECS)
        text = f"send Content-Type: {' or '.join(accepted)}"
        raise HttpError(415, text, {"accept-post": ", ".join(accepted)})
    return CODECS[media_type]


def _check(headers: Headers) -> None:
    """Raises HttpError for a compressed body, InvalidRequest for another version of the protocol."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise HttpError(501, "the Content-Encoding is not supported; these are: identity")
    if headers.get("connect-protocol-version", "1") != "1":
        raise InvalidRequest.of("Connect-Protocol-Version", "must be 1")


def _timeout(exchange: Exchange, default: float) -> float:
    """Reads the seconds that the caller waits, cut to the limit of all calls."""
    text = exchange.request.headers.get("connect-timeout-ms")
    if text is None:
        return exchange.timeout(default)
    if not re.fullmatch("[0-9]{1,10}", text):
        raise InvalidRequest.of("Connect-Timeout-Ms", "must be a whole number, of at most 10 digits")
    seconds = min(int(text) / 1000, LIMITS.deadline_seconds)
    exchange.more_time = (
        f"it had {seconds:g} s, by Connect-Timeout-Ms: send fewer or shorter documents at once"
    )
    return seconds
