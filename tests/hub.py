"""A hub on loopback: what huggingface_hub's client asks for, and the faults of networks and disks."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "5" * 40
LARGE = (".safetensors", ".bin")  # what the hub keeps elsewhere, named by its SHA-256


@dataclass
class Hub:
    """The models it has, the faults it is to make, and what it was asked.

    Attributes:
        models: directories by id.
        cuts: after how many bytes the next answers with a large file end, one each.
        down: whether large files are answered with 500 once there are no cuts left.
        damaged: names of files whose last byte is sent flipped.
        silent: whether it gives neither sizes nor digests in its listing.
        ranges: whether it sends the part of a file that is asked for; else it sends all of it.
        asked: (method, path, Range, whether a token was sent).
        held: cleared, it keeps the contents of large files back.
    """

    models: dict[str, Path] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    down: bool = False
    damaged: set[str] = field(default_factory=set)
    silent: bool = False
    ranges: bool = True
    asked: list[tuple[str, str, str | None, bool]] = field(default_factory=list)
    port: int = 0
    held: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.held.set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def transfers(self, name: str) -> list[str | None]:
        """The ranges that were asked of one file's content."""
        return [span for method, path, span, _ in self.asked if method == "GET" and path.endswith(f"/{name}")]

    def listing(self, directory: Path) -> dict[str, Any]:
        siblings = []
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                entry: dict[str, Any] = {"rfilename": str(path.relative_to(directory))}
                siblings.append(entry if self.silent else entry | described(path))
        return {"id": "any", "sha": COMMIT, "siblings": siblings}


def described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"size": len(content), "blobId": git_id}
    if path.name.endswith(LARGE):
        entry["lfs"] = {"sha256": digest(path), "size": len(content), "pointerSize": 130}
    return entry


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers["Range"], "authorization" in self.headers))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            if match[1] in self.hub.models and match[2] in ("main", COMMIT):
                self.send(200, json.dumps(self.hub.listing(self.hub.models[match[1]])).encode())
            else:
                code = "RevisionNotFound" if match[1] in self.hub.models else "RepoNotFound"
                self.send(404, b"{}", {"X-Error-Code": code})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.resolve(self.hub.models[match[1]] / match[2], match[1])
        elif match := re.fullmatch(r"/elsewhere/([^/]+/[^/]+)/(.+)", path):
            self.content(self.hub.models[match[1]] / match[2])
        else:
            self.send(404, b"{}")

    def resolve(self, path: Path, model: str) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{described(path)["blobId"]}"'}
        if path.name.endswith(LARGE):
            # Another host, as the hub's storage is: the token must not follow.
            name = path.relative_to(self.hub.models[model])
            headers["Location"] = f"http://localhost:{self.hub.port}/elsewhere/{model}/{name}"
            headers |= {"X-Linked-Etag": f'"{digest(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            self.send(302, b"", headers)
        else:
            self.content(path, headers)

    def content(self, path: Path, headers: dict[str, str] | None = None) -> None:
        content = bytearray(path.read_bytes())
        large = path.name.endswith(LARGE)
        if large:
            self.hub.held.wait(20)
        if path.name in self.hub.damaged:
            content[-1] ^= 1
        span = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "") if self.hub.ranges else None
        start = int(span[1]) if span else 0
        cut = self.hub.cuts.pop(0) if large and self.command == "GET" and self.hub.cuts else None
        if cut is None and large and self.hub.down:
            self.send(500, b"{}")
            return
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if span else {}
        self.send(206 if span else 200, bytes(content[start:]), (headers or {}) | extra, cut=cut)

    def send(
        self, code: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int | None = None
    ) -> None:
        self.send_response(code)
        for name, value in (
            {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def running(**models: Path) -> Iterator[Hub]:
    """Serves models as ORG/NAME for each name given, on a free port."""
    hub = Hub({f"org/{name}": path for name, path in models.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
