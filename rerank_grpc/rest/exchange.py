"""One HTTP request and its answer: ids, access token, deadline, and the caller's disconnect."""

from __future__ import annotations

import asyncio
import base64
import math
import re
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from rerank_grpc.access import AccessList, split_bearer
from rerank_grpc.errors import Cancelled, InvalidRequest, Unauthenticated
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.dialects import PREFIX_HEADERS
from rerank_grpc.wire.status import CallIds

TOKEN = re.compile(r"[!-~]+")

_Result = TypeVar("_Result")


class Exchange:
    """One request, as its line and headers tell it.

    `token` is None until `authenticate` has read it, and `more_time`, how a call gets more time than it has,
    empty until `timeout` has.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        forced = (prefix for header, prefix in PREFIX_HEADERS.items() if header in request.headers)
        self.prefix: str = request.scope.get("rest.prefix") or next(forced, "")
        self.path: str = request.scope["path"]
        ids = CallIds.read(request.headers)
        self.request_id = ids.request_id or uuid.uuid4().hex
        self.token: str | None = None
        self.more_time = ""
        self.ids = {"x-request-id": self.request_id}
        if ids.traceparent:
            self.ids["traceparent"] = ids.traceparent

    def authenticate(self, accepted: AccessList) -> None:
        """Reads the access token; raises Unauthenticated unless it is accepted, or none is needed."""
        self.token = _token_of(self.request.headers)
        if not accepted:
            return
        if self.token is None:
            raise Unauthenticated("send a token in a header: Authorization: Bearer TOKEN")
        if self.token not in accepted:
            raise Unauthenticated("the token is wrong")

    def timeout(self, default: float) -> float:
        """Reads the seconds that the caller waits, cut to the limit of all calls; raises InvalidRequest."""
        text, limit = self.request.headers.get("x-request-timeout"), LIMITS.deadline_seconds
        seconds = min(default if text is None else _positive(text), limit)
        source = "--rest-timeout" if text is None else "X-Request-Timeout"
        more = "send fewer or shorter documents at once"
        if seconds < limit:
            more += f", or X-Request-Timeout with more seconds, up to {limit:g}"
        self.more_time = f"it had {seconds:g} s, by {source}: {more}"
        return seconds

    def answer(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        body = orjson.dumps(content)
        return Response(body, status, {**self.ids, **(headers or {})}, media_type="application/json")

    async def while_connected(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Awaits `work`, after the body; cancels it and raises Cancelled when the caller leaves."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._disconnect())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Cancelled("the caller has left")
        finally:
            for task in (working, leaving):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    async def _disconnect(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def _positive(text: str) -> float:
    """Reads a number of seconds, which may be infinite."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequest.of("X-Request-Timeout", "must be a number of seconds above 0, such as 30 or 0.5")
    return seconds


def _token_of(headers: Headers) -> str | None:
    """Reads an access token, with Bearer before it, alone, or within Basic; None for what can be no token."""
    for name in ("authorization", "api-key", "x-api-key"):
        values = headers.getlist(name)
        if len(values) > 1:
            raise Unauthenticated(f"send one {name}, not several")
        if values:
            token = _token_in(values[0].strip())
            return token if TOKEN.fullmatch(token) else None
    return None


def _token_in(value: str) -> str:
    scheme, _, credentials = value.partition(" ")
    if scheme.lower() == "basic":
        return _token_in_basic(credentials)
    before, _, after = split_bearer(value)
    return before + after.lstrip(" ")


def _token_in_basic(credentials: str) -> str:
    """Reads the password, or the user where there is none: some callers send what their URL holds, alone."""
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True).decode()
    except ValueError:
        return ""
    user, colon, password = decoded.partition(":")
    return (password or user) if colon else ""
