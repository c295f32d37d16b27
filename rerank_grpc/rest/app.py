"""The ASGI app: routes, and the path of a rerank call."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_grpc.access import AccessList
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.limits import MIB
from rerank_grpc.rest import dialects, discovery, docs
from rerank_grpc.rest.body import BodyBudget, Charge, read_json
from rerank_grpc.rest.connect import CONNECT_PATH, ConnectEndpoint
from rerank_grpc.rest.errors import HttpError
from rerank_grpc.rest.exchange import Endpoint, Exchange, refusal
from rerank_grpc.rest.forms.decoded import Decoded, Dialect, Posted, Reply, reply_to
from rerank_grpc.rest.target import authorization
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.types import Health

# The bytes of all bodies inside at once: ten of the largest.
BODIES_BYTES = 128 * MIB


def build_app(
    settings: RestSettings, upstream: Upstream, health: Callable[[], Health] | None = None
) -> ASGIApp:
    """Makes the app; with access tokens, callers without one of them are refused here already."""
    accepted = AccessList(settings.access_tokens)
    budget = BodyBudget(BODIES_BYTES)
    rerank = RerankEndpoint(settings, upstream, accepted, budget)
    routes = [Route(path, rerank, methods=["POST"]) for path in dialects.PATHS]
    connect = ConnectEndpoint(settings, upstream, accepted, budget)
    routes.append(Route(CONNECT_PATH, connect, methods=["POST"]))
    for path, endpoint, public in discovery.Discovery(upstream, accepted, health).routes():
        routes.append(Route(path, _json_route(endpoint, None if public else accepted), methods=["GET"]))
    routes += docs.routes()
    app = Starlette(routes=routes, exception_handlers={HTTPException: _on_http_exception})
    return NormalPath(_open_to(settings.cors, app) if settings.cors else app)


def _open_to(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """Lets the pages of these origins call the app and read its answers, also from a public to a private net.

    Browsers send a token only where the page's code has one to set. Credentials of their own stay out.
    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=("x-request-id", "retry-after"),
    )


class NormalPath:
    """Takes the prefix that forces a dialect off the path, and every slash too many."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = re.sub("/+", "/", scope["path"]).rstrip("/")
            prefix, _, rest = path[1:].partition("/")
            if prefix in dialects.PREFIXES:
                scope = {**scope, "path": f"/{rest}", "rest.prefix": prefix}
            else:
                scope = {**scope, "path": path or "/"}
        # A request cancelled here was on its way out when the grace ended: uvicorn would log a traceback.
        with suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)


class RerankEndpoint(Endpoint):
    """Answers a rerank call in any dialect."""

    def __init__(
        self, settings: RestSettings, upstream: Upstream, accepted: AccessList, budget: BodyBudget
    ) -> None:
        super().__init__(accepted, budget)
        self._settings = settings
        self._upstream = upstream

    def presumed(self, exchange: Exchange) -> Dialect:
        return dialects.presumed(exchange.prefix, exchange.path)

    async def respond(self, exchange: Exchange, charge: Charge) -> Response:
        body = await read_json(exchange.request, charge)
        dialect = exchange.form = dialects.dialect_of(body, exchange.prefix, exchange.path)
        posted = Posted(exchange.path, self._settings.documents == "on")
        decoded = dialect.decode(body, posted)
        reply = await exchange.while_connected(self._ask(decoded, exchange))
        return exchange.answer(decoded.encode(reply))

    async def _ask(self, decoded: Decoded, exchange: Exchange) -> Reply:
        if not decoded.requests:
            return Reply((), request_id=exchange.request_id)
        metadata = authorization(exchange.token) | exchange.ids
        timeout, begin = exchange.timeout(self._settings.timeout), time.monotonic()
        responses = await self._upstream.rerank_all(decoded, timeout, metadata)
        seconds, device = time.monotonic() - begin, ""
        if decoded.wants_device:
            device = await self._upstream.device(responses[0].summary, timeout - seconds, exchange.token)
        return reply_to(decoded, responses, exchange.request_id, seconds, device)


def _json_route(
    endpoint: discovery.Endpoint, accepted: AccessList | None
) -> Callable[[Request], Awaitable[Response]]:
    """Makes a route of an endpoint that returns JSON; `accepted` is None where it is public."""

    async def route(request: Request) -> Response:
        exchange = Exchange(request)
        exchange.form = dialects.presumed(exchange.prefix, exchange.path)
        try:
            if accepted is not None:
                exchange.authenticate(accepted)
            content = await endpoint(exchange)
            if isinstance(content, discovery.Unready):
                return exchange.answer(content, 503, {"retry-after": "1"})
            if content is None:
                return Response(status_code=204, headers=exchange.ids)
            return exchange.answer(content)
        except (Exception, asyncio.CancelledError) as error:
            return refusal(exchange, error)

    return route


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answers a refusal of the router: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    headers = {"allow": ", ".join(sorted(_methods(request)))} if status == 405 else {}
    exchange = Exchange(request)
    exchange.form = dialects.presumed(exchange.prefix, exchange.path)
    return refusal(exchange, HttpError(status, _ROUTER_TEXTS.get(status, error.detail), headers))


def _methods(request: Request) -> set[str]:
    """Lists the methods that a path takes: several routes may share it."""
    here = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in here for method in route.methods or ()}


_ROUTER_TEXTS = {
    404: "there is nothing at this path; POST rerank calls to /v1/rerank",
    405: "this path does not take this method",
}
