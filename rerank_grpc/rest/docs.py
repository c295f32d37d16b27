"""/openapi.json and /docs: Swagger UI from a package's files, not from elsewhere on the net."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from rerank_grpc.rest.openapi import document

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>rerank-grpc</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", persistAuthorization: true})
</script>
</body>
</html>
"""


def routes() -> list[Route]:
    """Makes the routes, all public."""
    openapi = orjson.dumps(document())

    async def serve_document(_request: Request) -> Response:
        return Response(openapi, media_type="application/json")

    async def serve_page(_request: Request) -> Response:
        return HTMLResponse(PAGE)

    return [
        Route("/openapi.json", serve_document, methods=["GET"]),
        Route("/docs", serve_page, methods=["GET"]),
        *(Route(f"/docs/{name}", _asset(name, kind), methods=["GET"]) for name, kind in ASSETS.items()),
    ]


def _asset(name: str, kind: str):  # type: ignore[no-untyped-def]
    async def serve(_request: Request) -> Response:
        return Response(_read(name), media_type=kind, headers={"cache-control": "max-age=86400"})

    return serve


@cache
def _read(name: str) -> bytes:
    """Reads a file of swagger-ui-py, whose code is not run."""
    spec = importlib.util.find_spec("swagger_ui")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "static", name).read_bytes()
