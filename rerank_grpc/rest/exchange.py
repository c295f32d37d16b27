"""One HTTP request and its answer: what every route reads from headers and writes to them."""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from rerank_grpc.errors import Cancelled, InvalidRequest
from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.upstream import authorization

# What is passed on and comes back; anything else is replaced, or left out.
REQUEST_ID = re.compile(r"[!-~]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a request's line and headers say, beside its token and body."""

    request: Request
    prefix: str
    path: str
    request_id: str
    traceparent: str

    @classmethod
    def of(cls, request: Request) -> Exchange:
        """Reads a request; makes an id where it has none."""
        given = request.headers.get("x-request-id", "")
        trace = request.headers.get("traceparent", "")
        return cls(
            request=request,
            prefix=request.scope.get("rest.prefix", ""),
            path=request.scope["path"],
            request_id=given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
            traceparent=trace if TRACEPARENT.fullmatch(trace) else "",
        )

    def timeout(self, default: float) -> float:
        """Reads how many seconds the caller waits; raises InvalidRequest for what is no time."""
        text = self.request.headers.get("x-request-timeout")
        if text is None:
            return default
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= 86_400:
            raise InvalidRequest.of("X-Request-Timeout", "must be a number of seconds above 0")
        return seconds

    def metadata(self, token: str | None) -> dict[str, str]:
        """Makes what goes along with the gRPC call."""
        metadata = {**authorization(token), "x-request-id": self.request_id}
        return {**metadata, "traceparent": self.traceparent} if self.traceparent else metadata

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """Makes a JSON response."""
        ours = {"x-request-id": self.request_id}
        if self.traceparent:
            ours["traceparent"] = self.traceparent
        body = orjson.dumps(content)
        return Response(body, status, {**ours, **(headers or {})}, media_type="application/json")

    def refuse(self, problem: Problem, said: tuple[int, Any], headers: dict[str, str]) -> Response:
        """Makes the response of an error, as a dialect has said it."""
        status, content = said
        return self.answer(content, status, {**problem.headers, **headers})

    async def while_connected(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Awaits `work`, and cancels it when the caller leaves; then raises Cancelled.

        The body must have been read: what comes next is the disconnect.
        """
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._left())
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

    async def _left(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
