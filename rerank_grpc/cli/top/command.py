"""`rerank-grpc top`: shows a server's figures once, or as long as the terminal is there."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rerank_grpc.cli.process import needs
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import may_color, read_metrics_target
from rerank_grpc.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from rerank_grpc.cli.top.scrape import ScrapeError

_PORT, _PATH = 9090, "/metrics"
_WIDTH = 160  # cells of a line where nothing bounds it


def endpoint(text: str) -> str:
    """Reads HOST:PORT, HOST or an HTTP URL; returns the URL to scrape. Raises ArgumentTypeError."""
    if "://" not in text:
        address = f"[{text}]" if text.count(":") > 1 and "[" not in text else text  # an IPv6 address alone
        port = "" if ":" in address.rpartition("]")[2] else f":{_PORT}"
        text = f"http://{address}{port}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or not _is_plain(text):
        raise argparse.ArgumentTypeError(f"it is not HOST:PORT, as in 127.0.0.1:{_PORT}, or an HTTP URL")
    return text if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{_PATH}"


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _endpoint_here() -> str:
    target = read_metrics_target()
    try:
        return endpoint(target)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"RERANK_METRICS_HOST: {target!r}: {error}") from None


def run(parsed: argparse.Namespace) -> int:
    """Shows the figures; 0 where that worked. Raises ConfigurationError where there are none to show."""
    url = parsed.endpoint or _endpoint_here()
    with needs("top", 'pip install "rerank-grpc[top]"'):
        from rerank_grpc.cli.top.live import watch
        from rerank_grpc.cli.top.scrape import ScrapeError
    console = _console()
    if not parsed.once and (not console.is_terminal or console.is_dumb_terminal):
        raise ConfigurationError("top renews a terminal's screen, and this is none: --once prints plain text")
    try:
        return _print_once(url, console) if parsed.once else watch(url, console)
    except ScrapeError as error:
        raise ConfigurationError(_no_figures(url, error)) from None


def _console() -> Console:
    from rich.console import Console

    # The stream and the environment decide alone, as for the other commands, not rich's own variables.
    terminal = sys.stdout.isatty()
    width = None if terminal else _WIDTH
    return Console(
        width=width,
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="auto" if may_color() else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _no_figures(url: str, error: ScrapeError) -> str:
    port = urlsplit(url).port or 80
    return f"no metrics at {url}: {error} (is the server started with --metrics-port {port}?)"


def _print_once(url: str, console: Console) -> int:
    """Prints the figures of two scrapes, between which the rates are; raises ScrapeError."""
    from rerank_grpc.cli.top.figures import figures_of, remember
    from rerank_grpc.cli.top.scrape import Poller
    from rerank_grpc.cli.top.view import draw

    with Poller(url) as poller:
        scrapes = remember((), poller.wait())
        scrapes = remember(scrapes, poller.wait())
    with console.capture() as printed:
        console.print(draw(figures_of(scrapes), url, "", console.width, None))
    for line in printed.get().splitlines():
        print(line.rstrip())
    return 0
