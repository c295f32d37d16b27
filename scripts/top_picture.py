"""Draws docs/images/top.svg, the picture of `rerank-grpc top` in the README.

    python scripts/top_picture.py                  starts a server, and calls it for half a minute
    python scripts/top_picture.py HOST:PORT        watches the metrics of a server that others call

Both scrape a real server as `top` itself does. What is shown of the address is the default one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from rerank_grpc.cli.top.command import endpoint
from rerank_grpc.cli.top.figures import WINDOW_SECONDS, Figures, Scrape, figures_of, remember
from rerank_grpc.cli.top.scrape import Poller, ScrapeError
from rerank_grpc.cli.top.view import draw
from rerank_grpc.client import Client, RerankError

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "top.svg"
COLUMNS, LINES = 132, 14  # from 132 columns on a model has one line
MOST_BYTES = 100_000
START_SECONDS = 120.0
PAUSE_SECONDS = 0.5  # after a refusal
SIZES = (1, 5, 20, 40, 400, 600, 600)  # documents of a call, for each caller
DOCUMENTS = "Our office is closed on public holidays.", "Open Settings and click Forgot password."
# A picture in a page may load nothing: the fonts of the reader's machine will do.
FORMAT = re.sub(r"\n *@font-face \{\{.*?\n    \}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "font-family: Fira Code, monospace",
    "font-family: Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace",
)
# Some programs trim a text, and numbers would leave their columns.
FORMAT = FORMAT.replace(
    '<g class="{unique_id}-matrix">', '<g class="{unique_id}-matrix" xml:space="preserve">'
)


def main() -> int:
    """Draws the picture; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("endpoint", nargs="?", type=endpoint, metavar="HOST:PORT")
    parser.add_argument("--seconds", type=float, default=WINDOW_SECONDS + 2, help="how long it is watched")
    parsed = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = parsed.endpoint or stack.enter_context(server_under_load())
        figures = watch(url, parsed.seconds)
    svg = picture(figures)
    if len(svg.encode()) > MOST_BYTES:
        raise SystemExit(f"the picture has {len(svg.encode()):,} bytes, more than {MOST_BYTES:,}")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(svg, "utf-8")
    return 0


def watch(url: str, seconds: float) -> Figures:
    """Scrapes for some seconds; ends the script where that fails."""
    scrapes: tuple[Scrape, ...] = ()
    end = time.monotonic() + seconds
    with Poller(url) as poller:
        while len(scrapes) < 2 or time.monotonic() < end:
            try:
                scrapes = remember(scrapes, poller.wait())
            except ScrapeError as error:
                raise SystemExit(f"{url}: {error}") from None
    return figures_of(scrapes)


def picture(figures: Figures) -> str:
    """Lays figures out as on a terminal, in SVG."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    console.print(draw(figures, "http://127.0.0.1:9090/metrics", "", COLUMNS, LINES))
    console.print()  # the last line's underscores would be cut off
    return console.export_svg(title="rerank-grpc top", code_format=FORMAT, unique_id="top")


@contextlib.contextmanager
def server_under_load() -> Iterator[str]:
    """Starts the real command with two models, and calls it; yields the URL of its metrics."""
    with contextlib.ExitStack() as sockets:
        listening = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        port, metrics_port = (each.getsockname()[1] for each in listening)
    command = [sys.executable, "-m", "rerank_grpc", "serve", "--port", str(port), "--admin-port", "off"]
    command += ["--rest-port", "off", "--metrics-port", str(metrics_port), "--max-queue-tokens", "12000"]
    command += ["--model", "embedded", "--lazy-model", "embedded-second=embedded"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RERANK_")}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    over = threading.Event()
    callers = [threading.Thread(target=call, args=[port, n, over]) for n in range(len(SIZES))]
    try:
        wait_until_serving(port, process)
        for caller in callers:
            caller.start()
        yield f"http://127.0.0.1:{metrics_port}/metrics"
    finally:
        over.set()
        for caller in callers:
            if caller.ident is not None:
                caller.join()
        process.terminate()
        process.wait(60)


def wait_until_serving(port: int, process: subprocess.Popen[bytes]) -> None:
    """Asks for health until a call would be answered; ends the script where the server does."""
    end = time.monotonic() + START_SECONDS
    with Client(f"127.0.0.1:{port}") as client:
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(RerankError):
                if client.health().serving:
                    return
            time.sleep(0.2)
    raise SystemExit("the server has not started")


def call(port: int, number: int, over: threading.Event) -> None:
    """Calls again and again, each thread with calls of its own size; refusals are part of the picture."""
    turn = 0
    with Client(f"127.0.0.1:{port}", timeout=20, retries=0) as client:
        while not over.is_set():
            turn += 1
            documents = [f"{DOCUMENTS[n % 2]} {number}.{turn}.{n}" for n in range(SIZES[number])]
            model = "embedded-second" if number == 1 else "no-such-model" if turn % 10 == 0 else "embedded"
            try:
                client.rerank(f"How do I reset my password? {turn}", documents, model=model)
            except RerankError:
                over.wait(PAUSE_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
