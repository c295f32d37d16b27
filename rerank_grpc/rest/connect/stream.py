"""Connect's protocol of a stream: StreamRerank, whose results go out as they are scored."""

from __future__ import annotations

import asyncio
import struct
import time
from contextlib import aclosing

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rerank_grpc.callers import Right
from rerank_grpc.client import IncompleteStream
from rerank_grpc.errors import InvalidRequest
from rerank_grpc.http.errors import HttpError
from rerank_grpc.rest.body import Charge, read_bytes
from rerank_grpc.rest.connect.protocol import (
    CONNECT,
    SERVICE,
    Codec,
    ConnectForm,
    check_headers,
    codec_of,
    codecs,
    media_type_of,
    model_in,
    required_name,
    timeout_of,
)
from rerank_grpc.rest.exchange import Endpoint, Exchange, noted, refusal
from rerank_grpc.rest.forms.decoded import Json
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.messages import summary_from

STREAM_PATH = f"{SERVICE}/StreamRerank"
CODECS = codecs("application/connect+json", "application/connect+proto")

# Before each message: a byte of flags, and the message's length in bytes.
PREFIX = struct.Struct(">BI")
COMPRESSED = 1
END_OF_STREAM = 2
# nginx would gather results that are to go out at once.
UNGATHERED = {"x-accel-buffering": "no"}


def envelope(message: bytes, flags: int = 0) -> bytes:
    """Puts the prefix before a message."""
    return PREFIX.pack(flags, len(message)) + message


def only_message(body: bytearray) -> bytearray:
    """Takes the prefix off the one message of a body, in place.

    Raises InvalidRequest for a body that is no envelope, HttpError 501 for none and for several.
    """
    if not body:
        raise HttpError(501, "the body holds no message: send one, in an envelope")
    if len(body) < PREFIX.size:
        raise InvalidRequest(f"the body ends within an envelope's {PREFIX.size} bytes of flags and length")
    flags, length = PREFIX.unpack_from(body)
    if flags & COMPRESSED:
        raise InvalidRequest(
            "the envelope's flags tell a compressed message, and no header by what: send it as it is"
        )
    if flags:
        raise InvalidRequest(
            f"the envelope's flags are {flags}, and must be 0: is the body without its envelope?"
        )
    rest = len(body) - PREFIX.size - length
    if rest < 0:
        came = len(body) - PREFIX.size
        raise InvalidRequest(f"the envelope tells a message of {length:,} bytes, of which {came:,} came")
    if rest > 0:
        raise HttpError(501, "the body holds more than one message: StreamRerank takes one request")
    del body[: PREFIX.size]
    return body


class EndOfStream(Response):
    """The last envelope of a stream that may have begun: it tells an error, or that there was none."""

    def __init__(self, exchange: Exchange, media_type: str, end: Json) -> None:
        message = envelope(orjson.dumps(end), END_OF_STREAM)
        super().__init__(message, headers=exchange.ids, media_type=media_type)
        self._begun = exchange.begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, and the head of the answer before it where that is not on its way."""
        if self._begun:
            await send({"type": "http.response.body", "body": self.body})
        else:
            await super().__call__(scope, receive, send)


class StreamEndpoint(Endpoint):
    """Passes on StreamRerank to the gRPC servers, and each message of theirs as it comes.

    The next message is read only when the caller has taken the last one off this process's hands.
    """

    method = "StreamRerank"

    def needs(self, exchange: Exchange) -> Right:
        return Right.RERANK

    def presumed(self, exchange: Exchange) -> ConnectForm:
        return CONNECT

    async def respond(self, exchange: Exchange, charge: Charge) -> Response:
        codec = codec_of(exchange, CODECS)
        check_headers(exchange.request.headers, "content-encoding", "connect-content-encoding")
        deadline = time.monotonic() + timeout_of(exchange, self._settings.timeout)
        body = await read_bytes(exchange.request, codec.most_bytes + PREFIX.size, charge)
        message = codec.read(only_message(body), pb.StreamRerankRequest)
        del body
        await exchange.while_connected(self._pass_on(codec, message, deadline, exchange))
        return EndOfStream(exchange, codec.media_type, {})

    def refuse(self, exchange: Exchange, error: Exception | asyncio.CancelledError) -> Response:
        """Tells an error in the envelope that ends the stream, where the caller asked for one."""
        media_type = media_type_of(exchange)
        if media_type not in CODECS:
            return refusal(exchange, error)
        problem = noted(exchange, error)
        _, content = CONNECT.error(problem)
        end = {"error": content}
        if problem.headers:  # of which an answer with status 200 tells nothing
            end["metadata"] = {name: [text] for name, text in problem.headers.items()}
        return EndOfStream(exchange, media_type, end)

    async def _pass_on(self, codec: Codec, message: bytes, deadline: float, exchange: Exchange) -> None:
        """Sends each message of the server's in an envelope; parses the request as ConnectEndpoint does."""
        exchange.model = model_in(message)
        await self._upstream.require_model(exchange.caller, required_name(exchange.model), exchange.token)
        ended = False
        async with aclosing(self._upstream.relay_stream(message, deadline, exchange.passed_on)) as parts:
            async for part in parts:
                if exchange.record.documents is None:
                    exchange.record.documents = len(pb.StreamRerankRequest.FromString(message).documents)
                read = pb.StreamRerankResponse.FromString(part)
                if ended := read.HasField("summary"):
                    exchange.record.summary = summary_from(read.summary)
                own = envelope(codec.write(part, pb.StreamRerankResponse))
                await exchange.send_part(own, codec.media_type, UNGATHERED)
        if not ended:
            raise IncompleteStream("the stream ended without its summary")
