"""The ASGI app: routes, and the path of a rerank call."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.callers import Right
from rerank_grpc.config.allowance import scaled
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.config.targets import is_loopback
from rerank_grpc.http.errors import HttpError
from rerank_grpc.http.pages import FOREIGN, OwnPages
from rerank_grpc.limits import BODIES_BYTES
from rerank_grpc.rest import dialects, discovery
from rerank_grpc.rest.body import BodyBudget, Charge, read_json
from rerank_grpc.rest.connect.stream import STREAM_PATH, StreamEndpoint
from rerank_grpc.rest.connect.unary import UNARY_PATH, ConnectEndpoint
from rerank_grpc.rest.exchange import Endpoint, Exchange, refusal
from rerank_grpc.rest.forms.decoded import Decoded, Dialect, Posted, Reply, reply_to
from rerank_grpc.rest.pages import docs, playground
from rerank_grpc.rest.recorder import Recorder
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.types import Health, RerankSummary


def build_app(
    settings: RestSettings,
    upstream: Upstream,
    accepted: AccessList,
    health: Callable[[], Health] | None,
    recorder: Recorder,
) -> ASGIApp:
    """Makes the app; with access tokens, it refuses callers without one of them, or without the right."""
    budget = BodyBudget(scaled(BODIES_BYTES))
    rerank = RerankEndpoint(settings, upstream, accepted, budget, recorder)
    routes: list[Route] = [ToldRoute(path, rerank, methods=["POST"]) for path in dialects.PATHS]
    stream = StreamEndpoint(settings, upstream, accepted, budget, recorder)
    routes.append(ToldRoute(STREAM_PATH, stream, methods=["POST"]))
    unary = ConnectEndpoint(settings, upstream, accepted, budget, recorder)
    routes.append(ToldRoute(UNARY_PATH, unary, methods=["POST"]))
    for path, method, endpoint, right in discovery.Discovery(upstream, accepted, health).routes():
        route = _json_route(method, endpoint, right and (accepted, right), recorder)
        routes.append(Route(path, route, methods=["GET"]))
    routes += [*docs.routes(), *playground.routes()]
    on_http_exception = partial(_on_http_exception, recorder)
    app = Starlette(routes=routes, exception_handlers={HTTPException: on_http_exception})
    # NormalPath takes the slash off that a redirect puts on, and the caller's Host would say where it leads.
    app.router.redirect_slashes = False
    opened = NormalPath(_open_to(settings.cors, app) if settings.cors else app)
    if "*" in settings.cors or not is_loopback(settings.host):
        return opened
    return OwnPages(opened, settings.cors, lambda: not accepted, partial(_refuse_page, recorder))


def _refuse_page(recorder: Recorder, scope: Scope) -> Response:
    """Refuses the call of a page that may not make any."""
    exchange = _bare_exchange(Request(scope), "other")
    response = refusal(exchange, HttpError(403, FOREIGN))
    recorder.end(exchange.record, response.status_code, exchange.model)
    return response


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


class ToldRoute(Route):
    """A route that tells its endpoint the template of the path."""

    def handle(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        # The method of any other request may be any text of a caller's.
        if scope["method"] in (self.methods or ()):
            scope["rest.route"] = self.path_format
        return super().handle(scope, receive, send)


class RerankEndpoint(Endpoint):
    """Answers a rerank call in any dialect."""

    method = "rerank"

    def needs(self, exchange: Exchange) -> Right:
        return Right.RERANK

    def presumed(self, exchange: Exchange) -> Dialect:
        return dialects.presumed(exchange.prefix, exchange.path)

    async def respond(self, exchange: Exchange, charge: Charge) -> Response:
        body = await read_json(exchange.request, charge)
        dialect = exchange.form = dialects.dialect_of(body, exchange.prefix, exchange.path)
        posted = Posted(exchange.path, self._settings.documents == "on")
        decoded = dialect.decode(body, posted)
        exchange.record.documents = sum([len(request.documents) for request in decoded.requests])
        reply = await exchange.while_connected(self._ask(decoded, exchange))
        return exchange.answer(decoded.encode(reply))

    async def _ask(self, decoded: Decoded, exchange: Exchange) -> Reply:
        if not decoded.requests:
            return Reply((), request_id=exchange.request_id)
        exchange.model = decoded.requests[0].model
        timeout, begin = exchange.timeout(self._settings.timeout), time.monotonic()
        for name in {request.model for request in decoded.requests}:
            await self._upstream.require_model(exchange.caller, name, exchange.token)
        responses = await self._upstream.rerank_all(decoded, timeout, exchange.passed_on, exchange.caller)
        summary, *others = map(attrgetter("summary"), responses)
        exchange.record.summary = RerankSummary.of((summary, *others)) if others else summary
        seconds, device = time.monotonic() - begin, ""
        if decoded.wants_device:
            device = await self._upstream.device(responses[0].summary, timeout - seconds, exchange.token)
        return reply_to(decoded, responses, exchange.request_id, seconds, device)


def _json_route(
    method: str, endpoint: discovery.Endpoint, needs: tuple[AccessList, Right] | None, recorder: Recorder
) -> Callable[[Request], Awaitable[Response]]:
    """Makes a route of an endpoint that returns JSON; `needs` is None where it is public."""

    async def answer(exchange: Exchange) -> Response:
        if needs is not None:
            exchange.authenticate(*needs)
        content = await endpoint(exchange)
        if isinstance(content, discovery.Unready):
            return exchange.answer(content, 503, {"retry-after": "1"})
        if content is None:
            return Response(status_code=204, headers=exchange.ids)
        return exchange.answer(content)

    async def route(request: Request) -> Response:
        exchange = _bare_exchange(request, method)
        try:
            response = await answer(exchange)
        except (Exception, asyncio.CancelledError) as error:
            response = refusal(exchange, error)
        recorder.end(exchange.record, response.status_code, exchange.model)
        return response

    return route


async def _on_http_exception(recorder: Recorder, request: Request, error: Exception) -> Response:
    """Answers a refusal of the router: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    headers = {"allow": ", ".join(sorted(_methods(request)))} if status == 405 else {}
    exchange = _bare_exchange(request, "other")
    response = refusal(exchange, HttpError(status, _ROUTER_TEXTS.get(status, error.detail), headers))
    recorder.end(exchange.record, response.status_code, exchange.model)
    return response


def _bare_exchange(request: Request, method: str) -> Exchange:
    """Makes the exchange of a request without a body, which is in a dialect only where its prefix says so."""
    exchange = Exchange(request, method)
    exchange.form = dialects.presumed(exchange.prefix, exchange.path)
    exchange.record.dialect = exchange.form.name if exchange.prefix else ""
    return exchange


def _methods(request: Request) -> set[str]:
    """Lists the methods that a path takes: several routes may share it."""
    here = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in here for method in route.methods or ()}


_ROUTER_TEXTS = {
    404: "there is nothing at this path; POST rerank calls to /v1/rerank",
    405: "this path does not take this method",
}
