"""Pages in a browser: the ones that may call a server of this machine that knows no callers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_grpc.config.targets import is_loopback

# A scheme, a host and perhaps a port, as browsers write it; "null" has none of them.
ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?")
FOREIGN = (
    "pages of this origin may not call: set tokens, which only callers have, or name the origin with "
    "--rest-cors"
)


class OwnPages:
    """Refuses the calls of foreign pages while `guards` says so.

    A browser calls this machine for any page that its user looks at. It names the page's origin with each
    POST, also where the page has had its own name lead to this machine, by which it would be of the same
    origin as the server (DNS rebinding). Programs and proxies name none unless a page does.
    """

    def __init__(
        self,
        app: ASGIApp,
        origins: Collection[str],
        guards: Callable[[], bool],
        refuse: Callable[[Scope], Response],
    ) -> None:
        self._app = app
        self._origins = origins
        self._guards = guards
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and self._guards():
            origins = Headers(scope=scope).getlist("origin")
            if not all(is_near(origin) or origin in self._origins for origin in origins):
                app = self._refuse(scope)
        await app(scope, receive, send)


def is_near(origin: str) -> bool:
    """Tells whether a page came from this machine."""
    form = ORIGIN.fullmatch(origin)
    return form is not None and is_loopback(form[1])
