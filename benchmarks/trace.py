"""Which of our functions answer one call of three documents, file by file: the path of a request as data.

    python -m benchmarks.trace          both paths, in the order of their steps
    python -m benchmarks.trace --json   the number of calls on each path

A function that is a generator counts each time it goes on. Left out is all that
a clock sets off: threads that look at one (the watchdog's, the one that cancels
slow callers), and the HTTP server, which wakes ten times a second.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import rerank_grpc

PACKAGE = str(Path(rerank_grpc.__file__).parent) + os.sep
CLOCKS = ("patience", "watch-", "keep-models", "log")
TICKING = "HttpServer._serve"  # goes on whenever uvicorn looks whether it shall stop
QUERY = "How do I reset my password?"
DOCUMENTS = [
    "Our office is closed on public holidays.",
    "Open Settings and click Forgot password.",
    "Passwords must have twelve characters.",
]
# A call ends on the server after its answer is read. All of it has run once nothing of ours has for so long,
# which is more than a busy machine keeps a thread waiting.
QUIET_SECONDS, LONGEST_SECONDS = 0.5, 30


class Visit(NamedTuple):
    """One call of one of our functions."""

    thread: str
    file: str
    function: str


class Recorder:
    """Records the calls of our functions on all threads that start after it."""

    def __init__(self) -> None:
        self._visits: list[Visit] = []
        self._on = False
        self._latest = time.monotonic()  # the time of the latest visit, recorded or not
        threading.setprofile(self._profile)

    @contextmanager
    def recording(self) -> Iterator[list[Visit]]:
        """Records what a `with` statement sets off, and nothing of a call before it."""
        self._wait_for_quiet()
        self._visits, self._on = [], True
        yield self._visits
        self._wait_for_quiet()
        self._on = False

    def _wait_for_quiet(self) -> None:
        end = time.monotonic() + LONGEST_SECONDS
        while (left := self._latest + QUIET_SECONDS - time.monotonic()) > 0:
            assert time.monotonic() < end, "functions run without a call: name the clock that calls them"
            time.sleep(left)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_qualname == TICKING:
            return
        thread = threading.current_thread().name
        if not thread.startswith(CLOCKS):
            self._latest = time.monotonic()
            if self._on:
                self._visits.append(Visit(thread, code.co_filename.removeprefix(PACKAGE), code.co_qualname))


def record() -> dict[str, list[Visit]]:
    """Answers one call over gRPC and one over REST, and returns what each of them visited."""
    recorder = Recorder()
    from rerank_grpc.client import Client
    from rerank_grpc.config.settings import RestSettings, ServerSettings
    from rerank_grpc.rest.server import RestServer
    from rerank_grpc.server.server import RerankServer

    server = RerankServer(replace(ServerSettings(), port=0, admin_port=None, rest=RestSettings(port=0)))
    server.start()
    assert server.wait_until_loaded(60)
    target = f"127.0.0.1:{server.port}"
    rest = RestServer(RestSettings(port=0, targets=(target,)))
    rest.start()
    with Client(target) as client:
        paths: dict[str, Callable[[], object]] = {
            "grpc": lambda: client.rerank(QUERY, DOCUMENTS, top_n=2),
            "rest": lambda: post(rest.port),
        }
        visits = {}
        for name, call in paths.items():
            call()  # what only the first call does is no part of the path
            with recorder.recording() as visits[name]:
                call()
    rest.stop(1)
    server.stop(1)
    return visits


def post(port: int) -> None:
    """Sends the same call as JSON, in one piece: a body sent apart comes at a time of its own."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS, "top_n": 2}).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    head += "connection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer


def show(path: str, visits: list[Visit]) -> None:
    """Prints a path: each thread's visits to files, with the functions called there."""
    print(f"{path}: {len(visits)} calls of our functions in {len({visit.file for visit in visits})} files")
    for thread in dict.fromkeys(visit.thread for visit in visits):
        own = [visit for visit in visits if visit.thread == thread]
        print(f"  {thread}: {len(own)} calls")
        for file, stay in groupby(own, key=lambda visit: visit.file):
            print(f"    {file}: {', '.join(visit.function for visit in stay)}")


def main() -> None:
    visits = record()
    if "--json" in sys.argv[1:]:
        print(json.dumps({path: len(each) for path, each in visits.items()}))
    else:
        for path, each in visits.items():
            show(path, each)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
