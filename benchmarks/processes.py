"""Servers that a worker starts beside itself, and calls over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Any


def start(*arguments: str, threads: int) -> None:
    import atexit

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DO_NOT_TRACK": "1"}
    server = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=sys.stderr)
    atexit.register(server.terminate)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/rerank",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    with opener.open(request, timeout=600) as reply:
        return json.load(reply)
