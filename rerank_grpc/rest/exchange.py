"""One HTTP request and its answer: ids, access token, deadline, and the caller's disconnect."""

from __future__ import annotations

import asyncio
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
from rerank_grpc.rest.dialects import PREFIX_HEADERS
from rerank_grpc.wire.status import CallIds

TOKEN = re.compile(r"[!-~]+")
MAX_TIMEOUT_SECONDS = 86_400

_Result = TypeVar("_Result")


class Exchange:
    """One request, as its line and headers tell it; `token` is None until `authenticate` has read it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        forced = (prefix for header, prefix in PREFIX_HEADERS.items() if header in request.headers)
        self.prefix: str = request.scope.get("rest.prefix") or next(forced, "")
        self.path: str = request.scope["path"]
        ids = CallIds.read(request.headers)
        self.request_id = ids.request_id or uuid.uuid4().hex
        self.token: str | None = None
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
        """Reads the seconds that the caller waits; raises InvalidRequest for any other text."""
        text = self.request.headers.get("x-request-timeout")
        if text is None:
            return default
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            raise InvalidRequest.of("X-Request-Timeout", "must be a number of seconds above 0")
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


def _token_of(headers: Headers) -> str | None:
    """Reads an access token, with Bearer before it or alone; None for a text that can be no token."""
    for name in ("authorization", "api-key", "x-api-key"):
        values = headers.getlist(name)
        if len(values) > 1:
            raise Unauthenticated(f"send one {name}, not several")
        if values:
            before, _, after = split_bearer(values[0].strip())
            token = before + after.lstrip(" ")
            return token if TOKEN.fullmatch(token) else None
    return None
