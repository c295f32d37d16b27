"""Shows the service at work: starts it, reranks the README's example, stops it.

The server is the real command in a process of its own, on free ports. The
first call is an ordinary gRPC call by the Python client, the second the same
in JSON, as older callers make it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable

from rerank_grpc.cli.terminal import Row, Screen, ranking
from rerank_grpc.client import Client, RerankError

QUERY = "How do I reset my password?"
DOCUMENTS = (
    "Our office is closed on public holidays.",
    "To choose a new password, open Settings, then Security, and click Forgot password.",
    "Invoices are sent by e-mail on the first day of each month.",
    "Passwords must have at least twelve characters.",
    "The cafeteria serves lunch from 11:30 to 14:00.",
    "If you cannot sign in, ask the help desk to unlock your account.",
)
START_SECONDS = 120.0
STOP_SECONDS = 40.0


def main() -> int:
    """Runs the demo; returns 0 when all of it worked."""
    begin = time.monotonic()
    server = start()
    try:
        target, url = wait_until_serving(server)
        print(f"The server is up after {time.monotonic() - begin:.1f} s, at {target} and {url}.\n")
        scores = show(target)
        show_rest(url, scores)
    finally:
        status = stop(server)
    print(f"\nThe server has stopped{' cleanly' if status == 0 else f' with status {status}'}.")
    return status


def start() -> subprocess.Popen[str]:
    """Starts the server on free ports, deaf to the caller's own settings."""
    command = [sys.executable, "-m", "rerank_grpc", "serve", "--port", "0", "--admin-port", "off"]
    command += ["--rest-port", "0", "--metrics-port", "off", "--log-format", "text"]
    ours = ("RERANK_", "ACCESS_TOKEN")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until_serving(server: subprocess.Popen[str]) -> tuple[str, str]:
    """Passes on the server's lines until its health is SERVING; returns its address and its URL."""
    assert server.stderr is not None
    target = ""
    for line in server.stderr:
        print(f"  {line}", end="")
        if address := re.search(r"serves rerank\.v1 at (\S+)", line):
            target = address[1]
        if url := re.search(r"(http://\S+)", line):
            # Later lines are not shown, but read: a full pipe would block the server.
            threading.Thread(target=lambda: list(server.stderr or ()), daemon=True).start()
            wait_for_health(target)
            return target, url[1]
    raise SystemExit("demo: the server has ended before it served")


def wait_for_health(target: str) -> None:
    """Asks for the model's health until a call would be answered."""
    with Client(target) as client:
        try:
            client.wait_until_ready(START_SECONDS)
        except RerankError as error:
            raise SystemExit(f"demo: {error}") from None


def show(target: str) -> dict[int, float]:
    """Reranks the example and prints the ranked table; returns each document's score."""
    with Client(target) as client:
        begin = time.monotonic()
        response = client.rerank(QUERY, DOCUMENTS)
        seconds = time.monotonic() - begin
    print(f"Query: {QUERY}\n")
    rows = [
        Row(result.relevance_score, f"[{result.index}]", DOCUMENTS[result.index])
        for result in response.results
    ]
    print_lines(ranking(rows, Screen.of(sys.stdout)))
    model = response.summary.model
    print(f"\n{len(rows)} documents scored by {model!r} over gRPC, first call, {seconds * 1000:.0f} ms.")
    return {result.index: result.relevance_score for result in response.results}


def show_rest(url: str, scores: dict[int, float]) -> None:
    """Reranks the same over REST and says whether the scores are the same."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS}).encode()
    begin = time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    with opener.open(urllib.request.Request(f"{url}/v1/rerank", body), timeout=30) as response:
        results = json.load(response)["results"]
    seconds = time.monotonic() - begin
    print(f"\nThe same as JSON, POST {url}/v1/rerank, {seconds * 1000:.0f} ms:\n")
    for rank, result in enumerate(results[:3], 1):
        print(f"{rank} {result['relevance_score']:.4f} [{result['index']}]")
    print("...")
    if {result["index"]: result["relevance_score"] for result in results} != scores:
        raise SystemExit("demo: REST and gRPC do not agree")
    print("REST and gRPC agree on every score.")


def print_lines(lines: Iterable[str]) -> None:
    """Prints each line."""
    for line in lines:
        print(line, flush=True)


def stop(server: subprocess.Popen[str]) -> int:
    """Stops the server by SIGTERM; returns its exit status."""
    server.send_signal(signal.SIGTERM)
    try:
        return server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
