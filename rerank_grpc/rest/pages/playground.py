"""/playground: a page to try queries, documents and models on, out of plain files of this package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.routing import Route

from rerank_grpc.rest.pages.content import MEDIA_TYPES, Content, content_route, way_up

PAGE = "index.html"


def routes() -> list[Route]:
    """Makes the routes, all public: the page, and one for each file of its folder."""
    folder = files("rerank_grpc.rest.pages").joinpath("playground")
    page = folder.joinpath(PAGE).read_text("utf-8")

    def page_for(request: Request) -> Content:
        return Content(page.replace("{up}", way_up(request, "playground")).encode(), "text/html")

    # A route for each file there is: no path leads out of the folder.
    return [
        content_route("/playground", page_for),
        *(
            content_route(f"/playground/{name}", partial(_same, content))
            for name, content in _contents(folder)
            if name != PAGE
        ),
    ]


def _same(content: Content, _request: Request) -> Content:
    return content


def _contents(folder: Traversable, above: str = "") -> Iterator[tuple[str, Content]]:
    """Yields each file's path below the page's folder, and its content; files of other kinds are left out."""
    for each in folder.iterdir():
        name = f"{above}{each.name}"
        if each.is_dir():
            yield from _contents(each, f"{name}/")
        elif media_type := MEDIA_TYPES.get(PurePosixPath(name).suffix):
            yield name, Content(each.read_bytes(), media_type)
