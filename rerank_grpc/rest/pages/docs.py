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
from starlette.responses import Response
from starlette.routing import Route

from rerank_grpc import __version__
from rerank_grpc.rest.pages.content import MEDIA_TYPES, POLICY, Content, content_route, way_up

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")


def document() -> Any:
    """Reads the OpenAPI document, and puts the version in."""
    document = orjson.loads(files("rerank_grpc.rest").joinpath("openapi.json").read_bytes())
    document["info"]["version"] = __version__
    return document


def routes() -> list[Route]:
    """Makes the routes, all public."""
    openapi = orjson.dumps(document())
    page = files("rerank_grpc.rest.pages").joinpath("docs.html").read_text("utf-8")

    async def serve_document(_request: Request) -> Response:
        return Response(openapi, media_type="application/json")

    return [
        Route("/openapi.json", serve_document, methods=["GET"]),
        content_route("/docs", lambda request: _page(page.replace("{up}", way_up(request, "docs")))),
        *(content_route(f"/docs/{name}", partial(_asset, name)) for name in ASSETS),
    ]


def _page(text: str) -> Content:
    """Makes the page, whose own script the policy names by its digest; Swagger sets styles inline."""
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = POLICY.format(script=f" 'sha256-{digest}'", style=" 'unsafe-inline'")
    return Content(text.encode(), "text/html", policy)


def _asset(name: str, _request: Request) -> Content:
    return _read(name)


@cache
def _read(name: str) -> Content:
    """Reads a file of swagger-ui-py, whose code is not run."""
    spec = importlib.util.find_spec("swagger_ui")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], "static", name)
    return Content(path.read_bytes(), MEDIA_TYPES[path.suffix])
