"""The responses of pages and their files: policy, media type, caching, and a body in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

# uvicorn keeps 64 KiB and one piece that a caller does not read.
BODY_PIECE_BYTES = 16_384
# A page runs this server's scripts, calls this server alone, and stands in no other page.
POLICY = (
    "default-src 'none'; script-src 'self'{script}; style-src 'self'{style}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STRICT = POLICY.format(script="", style="")
# The kinds of files that pages are made of, by the end of their names.
MEDIA_TYPES = {
    ".css": "text/css",
    ".csv": "text/csv",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


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


class Content:
    """The bytes of a page or a file, with their media type and policy."""

    def __init__(self, body: bytes, media_type: str, policy: str = STRICT) -> None:
        self._body = body
        self._media_type = media_type
        self.tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._headers = {
            "etag": self.tag,
            # A browser asks each time whether its copy is still true: an upgrade changes a script at once.
            "cache-control": "no-cache",
            "content-security-policy": policy,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def response(self, request: Request) -> Response:
        """Makes the response, without a body where the caller's copy is still true."""
        asked = request.headers.get("if-none-match", "")
        if self.tag in (each.strip().removeprefix("W/") for each in asked.split(",")):
            return Response(status_code=304, headers=self._headers)
        return PiecewiseResponse(self._body, media_type=self._media_type, headers=self._headers)


def content_route(path: str, content: Callable[[Request], Content]) -> Route:
    """Makes a public route to a content, for GET and HEAD."""

    async def serve(request: Request) -> Response:
        return content(request).response(request)

    return Route(path, serve, methods=["GET"])


def way_up(request: Request, name: str) -> str:
    """Tells how a page's relative links reach the folder that the page `name` lies in.

    NormalPath takes every slash off the end; for a browser each is a directory that the page lies deeper in.
    Relative links also hold below a prefix or a proxy's path.
    """
    path: bytes = request.scope["raw_path"]
    return "../" * path.rpartition(name.encode())[2].count(b"/")
