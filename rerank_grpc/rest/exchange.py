"""One HTTP request and its answer: ids, access token, deadline, the caller's disconnect, a refusal."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import time
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.entries import TOKEN
from rerank_grpc.access.tokens import split_bearer
from rerank_grpc.callers import ANYONE, Caller, Right
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.errors import (
    Cancelled,
    InvalidRequest,
    RerankError,
    ShuttingDown,
    Unauthenticated,
    describe,
)
from rerank_grpc.http.errors import HttpError
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.body import BodyBudget, Charge
from rerank_grpc.rest.dialects import PREFIX_HEADERS
from rerank_grpc.rest.errors import Problem, problem_of
from rerank_grpc.rest.recorder import Recorder, note
from rerank_grpc.rest.target import authorization
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import CallRecord, OpenSpan
from rerank_grpc.tls.names import CERTIFICATE

log = logging.getLogger(__name__)

# Where a token may be; the first of them that is sent counts.
TOKEN_HEADERS = ("authorization", "api-key", "x-api-key")  # the first that is there counts

_Result = TypeVar("_Result")


class Form(Protocol):
    """The form of a caller's errors, and its name in records."""

    @property
    def name(self) -> str: ...

    def error(self, problem: Problem, /) -> tuple[int, Any]: ...


class Exchange:
    """One request, as its line and headers tell it.

    `certificate` is the name in the caller's certificate, None without one. `token` is None until
    `authenticate` has read it, and `caller` ANYONE until that has found whose it is.
    `more_time` is how a call gets more time than it has, empty until `timeout` has run. `form` is that of its
    errors, set by whoever answers it. `begun` tells that a part of the answer is on its way. `model` is the
    name that it asks for, None until that is known; `trace_headers` are passed on: the caller's,
    or those of the span that it follows.
    """

    form: Form

    def __init__(self, request: Request, method: str, send: Send | None = None) -> None:
        self.request = request
        self._send = send
        self.begun = False
        self.prefix: str = request.scope.get("rest.prefix", "")
        for header, prefix in PREFIX_HEADERS.items():
            if header in request.headers:
                self.prefix = self.prefix or prefix
        self.path: str = request.scope["path"]
        ids = CallIds.read(request.headers)
        self.request_id = ids.request_id or uuid.uuid4().hex
        self.token: str | None = None
        self.caller: Caller = ANYONE
        self.certificate: str | None = request.scope.get(CERTIFICATE)
        self.more_time = ""
        self.model: str | None = None
        self.ids = {"x-request-id": self.request_id}
        self.trace_headers: dict[str, str] = {}
        if ids.traceparent:
            self.ids["traceparent"] = self.trace_headers["traceparent"] = ids.traceparent
        if ids.tracestate:
            self.trace_headers["tracestate"] = ids.tracestate
        # A header of a caller's never tells that the call comes from this process, nor what it is charged.
        ids = ids._replace(request_id=self.request_id, told_by_rest=False, charge=None)
        self.record = CallRecord(method, ids, "rest")
        if route := request.scope.get("rest.route"):
            self.record.route = f"{request.method} {route}"

    def follow(self, span: OpenSpan) -> None:
        """Has the call passed on below a span, whose trace the record and the answer then name."""
        self.trace_headers = dict(span.headers)
        if traceparent := span.headers.get("traceparent"):
            self.ids["traceparent"] = traceparent
        self.record.ids = self.record.ids._replace(
            traceparent=span.headers.get("traceparent", ""), tracestate=span.headers.get("tracestate", "")
        )

    @property
    def passed_on(self) -> dict[str, str]:
        """The caller's ids, and the token if it is set, as gRPC metadata."""
        return authorization(self.token) | {"x-request-id": self.request_id, **self.trace_headers}

    def authenticate(self, accepted: AccessList, right: Right | None) -> None:
        """Reads the access token; raises Unauthenticated unless it is accepted, or none is needed.

        Raises PermissionDenied where its caller lacks the right; None is everybody's who is accepted. Where
        no token is sent, the name counts that TLS has proved by a certificate; `passing` makes the token by
        which its call is passed on.
        """
        self.token = _token_of(self.request.headers)
        if not accepted:
            return
        caller = self._caller_of(accepted)
        self.caller = self.record.caller = caller
        caller.require_current(time.time())
        if right is not None:
            caller.require(right)

    def _caller_of(self, accepted: AccessList) -> Caller:
        """Finds who calls; raises Unauthenticated."""
        sent = any(name in self.request.headers for name in TOKEN_HEADERS)
        if not sent and self.certificate is not None and accepted.by_certificate:
            self.token = accepted.passing(self.certificate)
            return accepted.certified(self.certificate)
        if self.token is None:
            text = "what was sent is no token: send one" if sent else "send a token"
            raise Unauthenticated(f"{text} in a header: Authorization: Bearer TOKEN")
        if (caller := accepted.find(self.token)) is None:
            raise Unauthenticated("the token is wrong")
        return caller

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

    async def send_part(self, part: bytes, media_type: str, headers: Mapping[str, str]) -> None:
        """Sends a part of an answer that comes in parts; waits where the caller has not read those before."""
        assert self._send is not None
        if not self.begun:
            self.begun = True
            head = Response(headers={**self.ids, **headers}, media_type=media_type)
            del head.headers["content-length"]
            await self._send({"type": "http.response.start", "status": 200, "headers": head.raw_headers})
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

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


class Endpoint:
    """Answers calls with a body: access, the answer or a refusal, and a record of either.

    `method` is the record's, unless `respond` finds another.
    """

    method = "other"

    def __init__(
        self,
        settings: RestSettings,
        upstream: Upstream,
        accepted: AccessList,
        budget: BodyBudget,
        recorder: Recorder,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._accepted = accepted
        self._budget = budget
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(Request(scope, receive, send), self.method, send)
        exchange.form = self.presumed(exchange)
        span = None
        try:
            exchange.authenticate(self._accepted, self.needs(exchange))
            if self._recorder.tracer and (span := self._recorder.begin_span(exchange.record.ids)):
                exchange.follow(span)
            with self._budget.charging() as charge:
                response = await self.respond(exchange, charge)
        except (Exception, asyncio.CancelledError) as error:
            response = self.refuse(exchange, error)
        exchange.record.dialect = exchange.form.name
        self._recorder.end(exchange.record, response.status_code, exchange.model, span)
        await response(scope, receive, send)

    def presumed(self, exchange: Exchange) -> Form:
        """Tells the form of the errors that come before the body is read."""
        raise NotImplementedError

    def needs(self, exchange: Exchange) -> Right | None:
        """Tells the right that a caller needs."""
        raise NotImplementedError

    async def respond(self, exchange: Exchange, charge: Charge) -> Response:
        """Reads the body, which `charge` pays for, and answers; the body may show another form."""
        raise NotImplementedError

    def refuse(self, exchange: Exchange, error: Exception | asyncio.CancelledError) -> Response:
        """Answers an error."""
        return refusal(exchange, error)


def refusal(exchange: Exchange, error: Exception | asyncio.CancelledError) -> Response:
    """Tells an error in the caller's form."""
    problem = noted(exchange, error)
    status, content = exchange.form.error(problem)
    return exchange.answer(content, status, problem.headers)


def noted(exchange: Exchange, error: Exception | asyncio.CancelledError) -> Problem:
    """Writes an error into the record; one that nobody foresaw is logged, and its text is not told."""
    if isinstance(error, asyncio.CancelledError):
        # Only uvicorn cancels a request, when the grace is over.
        error = ShuttingDown("the server is stopping")
    if not isinstance(error, RerankError | HttpError):
        # Callers cause such lines at will, and the log bounds each kind.
        kind = {"kind": f"rest {exchange.form.name} 500"}
        log.error("request %s: %s", exchange.request_id, describe(error), extra=kind)
    problem = problem_of(error, token_sent=exchange.token is not None, more_time=exchange.more_time)
    exchange.record.left = isinstance(error, Cancelled)
    note(exchange.record, problem)  # also where the form has an error answered with 200
    return problem


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
    for name in TOKEN_HEADERS:
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
