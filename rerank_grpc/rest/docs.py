"""/openapi.json and /docs: Swagger UI from a package's files, not from elsewhere on the net."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rerank_grpc.rest.openapi import document

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# uvicorn keeps 64 KiB and one piece of what a caller does not read.
PIECE_BYTES = 16_384

# The links are relative, so that they also hold below a prefix or a proxy's path.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>rerank-grpc</title>
<link rel="stylesheet" href="{up}docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{up}docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{url: "{up}openapi.json", dom_id: "#swagger-ui", persistAuthorization: true}})
</script>
</body>
</html>
"""


def routes() -> list[Route]:
    """Makes the routes, all public."""
    openapi = orjson.dumps(document())

    async def serve_document(_request: Request) -> Response:
        return Response(openapi, media_type="application/json")

    async def serve_page(request: Request) -> Response:
        # NormalPath takes the slash off; a browser takes /docs/ for a directory in which the page lies.
        up = "../" if request.scope["raw_path"].endswith(b"/") else ""
        return HTMLResponse(PAGE.format(up=up))

    return [
        Route("/openapi.json", serve_document, methods=["GET"]),
        Route("/docs", serve_page, methods=["GET"]),
        *(Route(f"/docs/{name}", _asset(name, kind), methods=["GET"]) for name, kind in ASSETS.items()),
    ]


class PiecewiseResponse(Response):
    """A long body that is not handed to the transport at once, for each of many callers who may not read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the body; where the caller reads too slowly, `send` returns only when there is room."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for begin in range(0, len(body), PIECE_BYTES):
            piece = body[begin : begin + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _asset(name: str, kind: str):  # type: ignore[no-untyped-def]
    async def serve(_request: Request) -> Response:
        return _response(name, kind)

    return serve


@cache
def _response(name: str, kind: str) -> Response:
    """Makes the response of a file of swagger-ui-py, whose code is not run, once for all callers."""
    spec = importlib.util.find_spec("swagger_ui")
    assert spec is not None
    assert spec.submodule_search_locations
    content = Path(spec.submodule_search_locations[0], "static", name).read_bytes()
    return PiecewiseResponse(content, media_type=kind, headers={"cache-control": "max-age=86400"})
