"""The errors, encodings and headers of both of Connect's protocols."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import orjson
from google.protobuf import any_pb2, json_format, wrappers_pb2
from google.protobuf.message import DecodeError, Message
from starlette.datastructures import Headers

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.http.errors import HttpError
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.body import parse_json
from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.exchange import Exchange
from rerank_grpc.rest.forms.decoded import Json
from rerank_grpc.rest.forms.messages import json_of, message_of
from rerank_grpc.wire.status import CODES, status_of

SERVICE = "/rerank.v1.RerankService"

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


CONNECT = ConnectForm()


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


def codecs(json: str, proto: str) -> dict[str, Codec]:
    """Makes the codecs of two media types, by their names."""
    return {
        json: Codec(json, LIMITS.body_bytes, _from_json, _to_json),
        # The gRPC server parses these bytes, within its own bounds.
        proto: Codec(proto, LIMITS.message_bytes, lambda body, _: bytes(body), lambda reply, _: reply),
    }


def media_type_of(exchange: Exchange) -> str:
    """Reads the media type of a request, without its parameters, "" where none is told."""
    return exchange.request.headers.get("content-type", "").partition(";")[0].strip().lower()


def codec_of(exchange: Exchange, known: Mapping[str, Codec]) -> Codec:
    """Finds the codec of a request; raises HttpError 415."""
    codec = known.get(media_type_of(exchange))
    if codec is None:
        text = f"send Content-Type: {' or '.join(known)}"
        raise HttpError(415, text, {"accept-post": ", ".join(known)})
    return codec


def check_headers(headers: Headers, *encodings: str) -> None:
    """Raises HttpError for a compressed body, InvalidRequest for another version of the protocol.

    `encodings` are the headers that tell how a body is compressed.
    """
    for name in encodings:
        if headers.get(name, "identity").strip().lower() not in ("", "identity"):
            raise HttpError(501, f"the {name} is not supported; these are: identity")
    if headers.get("connect-protocol-version", "1") != "1":
        raise InvalidRequest.of("Connect-Protocol-Version", "must be 1")


def timeout_of(exchange: Exchange, default: float) -> float:
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


def model_in(request: bytes) -> str | None:
    """Reads the model's name alone out of a request, whose first field it is; None where it cannot be.

    A message with one field of that number and kind leaves the others unparsed.
    """
    try:
        return wrappers_pb2.StringValue.FromString(request).value
    except (DecodeError, UnicodeDecodeError):
        return None


def required_name(name: str | None) -> str:
    """Names the model that a caller must be allowed; a name that cannot be read is none of a caller's."""
    return "\0" if name is None else name
