"""/openapi.json and /docs: Swagger UI out of an installed package, with nothing from the net."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rerank_grpc import __version__

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# uvicorn keeps 64 KiB and one piece that a caller does not read.
BODY_PIECE_BYTES = 16_384
FOLDER = files("rerank_grpc.rest")
# The page runs its own script and Swagger's, calls this server alone, and stands in no other page.
POLICY = (
    "default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def document() -> Any:
    """Reads the OpenAPI document, and puts the version in."""
    document = orjson.loads(FOLDER.joinpath("openapi.json").read_bytes())
    document["info"]["version"] = __version__
    return document


def routes() -> list[Route]:
    """Makes the routes, all public."""
    openapi = orjson.dumps(document())
    page = FOLDER.joinpath("docs.html").read_text("utf-8")

    async def serve_document(_request: Request) -> Response:
        return Response(openapi, media_type="application/json")

    async def serve_page(request: Request) -> Response:
        # NormalPath takes every slash off; for a browser each is a directory that the page lies deeper in.
        # Relative links also hold below a prefix or a proxy's path.
        slashes = request.scope["raw_path"].rpartition(b"docs")[2].count(b"/")
        return _page(page.replace("{up}", "../" * slashes))

    return [
        Route("/openapi.json", serve_document, methods=["GET"]),
        Route("/docs", serve_page, methods=["GET"]),
        *(Route(f"/docs/{name}", partial(_serve_asset, name), methods=["GET"]) for name in ASSETS),
    ]


def _page(content: str) -> Response:
    """Makes the response of the page, whose own script the policy names by its digest."""
    script = content.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return HTMLResponse(content, headers={"content-security-policy": POLICY.format(digest=digest)})


class PiecewiseResponse(Response):
    """A long body in pieces, since many callers may not read theirs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the body; `send` returns only when a slow caller has made space."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for begin in range(0, len(body), BODY_PIECE_BYTES):
            piece = body[begin : begin + BODY_PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _serve_asset(name: str, _request: Request) -> Response:
    return _asset(name)


@cache
def _asset(name: str) -> Response:
    """Makes the response of a file of swagger-ui-py, whose code is not run."""
    spec = importlib.util.find_spec("swagger_ui")
    assert spec is not None
    assert spec.submodule_search_locations
    content = Path(spec.submodule_search_locations[0], "static", name).read_bytes()
    return PiecewiseResponse(content, media_type=ASSETS[name], headers={"cache-control": "max-age=86400"})
