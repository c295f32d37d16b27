"""The ASGI app: JSON in, the same gRPC calls out, JSON back.

The path of a rerank call: normalised path and prefix → token → body →
dialect → gRPC → the dialect's answer, or its error.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_grpc.config.settings import RestSettings
from rerank_grpc.errors import RerankError, ShuttingDown, describe
from rerank_grpc.limits import MIB
from rerank_grpc.rest import auth, discovery, dispatch, docs
from rerank_grpc.rest.body import BodyBudget, read_json
from rerank_grpc.rest.dialects.base import Call, Context, Dialect, Json, Reply, reply_to
from rerank_grpc.rest.errors import HttpError, common_body, problem_of
from rerank_grpc.rest.exchange import Exchange
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.types import Health

log = logging.getLogger(__name__)

# The bytes of all bodies inside at once: ten of the largest.
BODIES_BYTES = 128 * MIB

Endpoint = Callable[[Exchange, str | None], Awaitable[Json]]


def build_app(
    settings: RestSettings,
    upstream: Upstream,
    tokens: Iterable[str] = (),
    health: Callable[[], Health] | None = None,
) -> ASGIApp:
    """Makes the app; with `tokens`, callers without one of them are refused here already.

    `health` is the server's own where it runs in this process: see RestServer.
    """
    check = auth.TokenCheck(tokens)
    rerank = RerankEndpoint(settings, upstream, check)
    routes = [Route(path, rerank, methods=["POST"]) for path in dispatch.PATHS]
    for path, endpoint, public in discovery.Discovery(settings, upstream, check, health).routes():
        route = _json_route(endpoint, None if public else check, settings.fastgpt)
        routes.append(Route(path, route, methods=["GET"]))
    routes += docs.routes()
    return NormalPath(Starlette(routes=routes, exception_handlers={HTTPException: _on_http_exception}))


class NormalPath:
    """Takes the prefix that forces a dialect off the path, and every slash too many."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on under its normal path."""
        if scope["type"] == "http":
            path = re.sub("/+", "/", scope["path"]).rstrip("/")
            prefix, _, rest = path[1:].partition("/")
            if prefix in dispatch.PREFIXES:
                scope = {**scope, "path": f"/{rest}", "rest.prefix": prefix}
            else:
                scope = {**scope, "path": path or "/"}
        # What is cancelled here was on its way out when the grace ended: uvicorn would log a traceback.
        with suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)


class RerankEndpoint:
    """Answers a rerank call in any dialect."""

    def __init__(self, settings: RestSettings, upstream: Upstream, check: auth.TokenCheck) -> None:
        self._settings = settings
        self._upstream = upstream
        self._check = check
        self._budget = BodyBudget(BODIES_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request; no exception leaves it."""
        exchange = Exchange.of(Request(scope, receive, send))
        started = time.monotonic()
        dialect = dispatch.presumed(exchange.prefix, exchange.path, self._settings.fastgpt)
        token = None
        try:
            token = auth.token_of(exchange.request.headers)
            self._check.check(token)
            with self._budget.charging() as charge:
                body = await read_json(exchange.request, self._settings.body_bytes, charge)
                dialect = dispatch.dialect_of(body, exchange.prefix, exchange.path, self._settings.fastgpt)
                context = Context(exchange.path, exchange.request_id, self._settings.data)
                call = dialect.decode(body, context)
                reply = await exchange.while_connected(self._ask(call, context, exchange, token))
                response = exchange.answer(call.encode(reply))
        except (Exception, asyncio.CancelledError) as error:
            response = _refusal(exchange, dialect, error, token)
        await response(scope, receive, send)
        status = response.status_code
        log.info(
            "%s %d %.1f ms %s",
            dialect.name,
            status,
            (time.monotonic() - started) * 1000,
            exchange.request_id,
            extra=_kind(dialect, status) if status >= 400 else None,
        )

    async def _ask(self, call: Call, context: Context, exchange: Exchange, token: str | None) -> Reply:
        if not call.requests:
            return Reply((), "", 0, 0.0, exchange.request_id)
        timeout, begin = exchange.timeout(self._settings.timeout), time.monotonic()
        responses = await self._upstream.rerank_all(call.requests, timeout, exchange.metadata(token))
        seconds, device = time.monotonic() - begin, ""
        if call.wants_device and seconds < timeout:
            # The scores are there: what fails or is late now costs only the device's name.
            with suppress(RerankError):
                models = await self._upstream.models(timeout - seconds, token)
                device = next((m.device for m in models if m.name == responses[0].summary.model), "")
        return reply_to(call, responses, context, seconds, device)


def _json_route(
    endpoint: Endpoint, check: auth.TokenCheck | None, fastgpt: bool
) -> Callable[[Request], Awaitable[Response]]:
    """Makes a route of an endpoint that returns JSON; `check` is None where it is public."""

    async def route(request: Request) -> Response:
        exchange, token = Exchange.of(request), None
        try:
            if check is not None:
                token = auth.token_of(request.headers)
                check.check(token)
            content = await endpoint(exchange, token)
            status = 503 if isinstance(content, discovery.Unready) else 200
            return exchange.answer(content, status, {"retry-after": "1"} if status == 503 else None)
        except (Exception, asyncio.CancelledError) as error:
            dialect = dispatch.presumed(exchange.prefix, exchange.path, fastgpt)
            return _refusal(exchange, dialect, error, token)

    return route


def _refusal(
    exchange: Exchange, dialect: Dialect, error: Exception | asyncio.CancelledError, token: str | None
) -> Response:
    if isinstance(error, asyncio.CancelledError):
        # Only uvicorn cancels a request's task, when the grace is over.
        error = ShuttingDown("the server is stopping", retry_after=1.0)
    if not isinstance(error, RerankError | HttpError):
        log.error("request %s: %s", exchange.request_id, describe(error), extra=_kind(dialect, 500))
    problem = problem_of(error, token_sent=token is not None)
    headers = error.headers if isinstance(error, HttpError) else {}
    return exchange.refuse(problem, dialect.error(problem), headers)


def _kind(dialect: Dialect, status: int) -> dict[str, str]:
    """Names the kind of a log line: callers cause such lines at will, and the log bounds each kind."""
    return {"kind": f"rest {dialect.name} {status}"}


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Says what the router refuses: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    headers = {"allow": ", ".join(sorted(_methods(request)))} if error.status_code == 405 else {}
    problem = problem_of(HttpError(error.status_code, _ROUTER_TEXTS.get(error.status_code, error.detail)))
    return Exchange.of(request).refuse(problem, common_body(problem), headers)


def _methods(request: Request) -> set[str]:
    """Tells which methods a path takes: several routes may share it."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in here for method in route.methods or ()}


_ROUTER_TEXTS = {
    404: "there is nothing at this path; POST rerank calls to /v1/rerank",
    405: "this path does not take this method",
}
