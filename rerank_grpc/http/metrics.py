"""The app that Prometheus scrapes: what a registry collects, as text."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from rerank_grpc.errors import describe
from rerank_grpc.http.errors import in_text
from rerank_grpc.http.server import HttpServer

log = logging.getLogger(__name__)

PATH = "/metrics"
MOST_CONNECTIONS = 32
# Prometheus scrapes every 15 to 60 s and keeps its connection in between.
KEEP_ALIVE_SECONDS = 90.0
# After an answer the next one waits so many times as long as that took: scrapers without manners get a tenth
# of a core, and calls the rest. What else an answer costs is paid by the least pause.
PAUSES, LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 9.0, 0.005, 1.0
LONGEST_ACCEPT = 1_000  # a longer header takes milliseconds to read, and counts as none
OPEN_METRICS = "application/openmetrics-text"
METHODS = ("GET", "HEAD")
REFUSED = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


class TextForm(NamedTuple):
    """A form in which a scraper takes the text; there are four, whatever it asks for."""

    open_metrics: bool
    gzip: bool

    @classmethod
    def asked(cls, headers: Headers) -> TextForm:
        """Reads the form out of a scrape's headers."""
        try:
            _, content_type = choose_encoder(_accepted(headers, "accept"))
        except Exception:  # a version that is none
            content_type = ""
        return cls(
            content_type.startswith(OPEN_METRICS), gzip_accepted(_accepted(headers, "accept-encoding"))
        )


def _accepted(headers: Headers, name: str) -> str:
    """Reads the members of a header without those that it refuses by q=0."""
    given = ",".join(headers.getlist(name))
    members = given.split(",") if len(given) <= LONGEST_ACCEPT else ()
    return ",".join([each for each in members if not REFUSED.search(each)])


class MetricsApp:
    """Answers /metrics with all that a registry collects.

    Answers are made one at a time, on the loop's own thread, in the order of their requests; all scrapes that
    wait for a text get the same one. A collector that raises has the scrape fail, and the log say so once
    until a scrape succeeds again.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()
        self._free_at = 0.0
        self._next: dict[TextForm, asyncio.Task[Response]] = {}
        self._failing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].rstrip("/") == PATH and scope["method"] in METHODS:
            response = await self._text(TextForm.asked(Headers(scope=scope)))
        else:
            response = await self._in_turn(partial(_elsewhere, scope["path"], scope["method"]))
        await response(scope, receive, send)

    async def _text(self, form: TextForm) -> Response:
        """Waits for the next text of a form, which others may wait for as well."""
        coming = self._next.get(form)
        if coming is None:
            coming = self._next[form] = asyncio.create_task(self._in_turn(partial(self._make, form)))
        try:
            return await asyncio.shield(coming)
        except asyncio.CancelledError:
            return PlainTextResponse("the server is stopping\n", 503)

    async def _in_turn(self, make: Callable[[], Response]) -> Response:
        async with self._turn:
            await asyncio.sleep(self._free_at - time.monotonic())
            began = time.monotonic()
            response = make()
            now = time.monotonic()
            self._free_at = now + min(max(PAUSES * (now - began), LEAST_PAUSE_SECONDS), MOST_PAUSE_SECONDS)
            return response

    def _make(self, form: TextForm) -> Response:
        del self._next[form]  # a scrape that comes from now on would get what was before it
        return self._scrape(form)

    def _scrape(self, form: TextForm) -> Response:
        try:
            response = self._collect(form)
        except Exception as error:
            if not self._failing:
                log.error("the metrics could not be collected: %s", describe(error))
            self._failing = True
            return PlainTextResponse(
                "the metrics could not be collected: the log says where it failed\n", 500
            )
        self._failing = False
        return response

    def _collect(self, form: TextForm) -> Response:
        """Collects and writes the text; raises what a collector raises."""
        encode, content_type = choose_encoder(f"{OPEN_METRICS}; version=1.0.0" if form.open_metrics else "")
        text = encode(self._registry)
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        if form.gzip:
            text = gzip.compress(text, compresslevel=1)
            headers["content-encoding"] = "gzip"
        return Response(text, headers=headers)


def _elsewhere(path: str, method: str) -> Response:
    """Answers what is no scrape."""
    if path.rstrip("/") not in ("", PATH):
        return PlainTextResponse(f"there is nothing at this path; the metrics are at {PATH}\n", 404)
    if method not in METHODS:
        return PlainTextResponse("this path does not take this method\n", 405, {"allow": ", ".join(METHODS)})
    return PlainTextResponse(f"rerank-grpc: the metrics are at {PATH}\n")


def metrics_server(registry: CollectorRegistry, host: str, port: int) -> HttpServer:
    """Makes the server of a registry's metrics; raises ConfigurationError if the port cannot be bound."""
    return HttpServer(
        MetricsApp(registry),
        host,
        port,
        name="metrics",
        option="--metrics-port",
        most_connections=MOST_CONNECTIONS,
        keep_alive_seconds=KEEP_ALIVE_SECONDS,
        write_error=in_text,
        spares_answers=False,
    )
