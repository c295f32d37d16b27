"""Runs the server: shows how loading goes, says what is served, ends in time.

Everything it says goes to stderr, as its logs do.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from rerank_grpc import __version__, files
from rerank_grpc.cli import rest, terminal
from rerank_grpc.cli.address import address, is_loopback
from rerank_grpc.cli.logs import BackgroundHandler, log_to
from rerank_grpc.cli.stopping import Stopping, end_process
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config import Settings, forgotten_token, quiet_grpc, read_settings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.types import ModelInfo, State

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer
    from rerank_grpc.server.server import RerankServer

log = logging.getLogger(__name__)

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAME_SECONDS = 0.1
_START_OF_LINE = "\r\x1b[2K"  # and an empty one
# How long the REST shim may pass calls on before the server refuses new ones.
_SHIM_SECONDS = 1.0
# How long calls that a hung device has failed may take to be answered.
_ANSWER_SECONDS = 1.0


def run(parsed: argparse.Namespace) -> NoReturn:
    """Serves until SIGTERM or SIGINT, and ends the process; raises OptionError before anything starts."""
    settings = read_settings(parsed.flags)
    output = log_to(sys.stderr, settings.log_level)
    quiet_grpc()
    files.raise_limit()
    screen = Screen.of(sys.stderr)
    stopping = Stopping(settings.grace_seconds, output)
    output.say(screen.paint(f"rerank-grpc {__version__} is starting", "bold"))
    status, server, shim = 0, None, None
    try:
        server = _build(settings, partial(_on_hang, output))
        shim = rest.beside(settings, server.local_port, server.health)
        _serve(server, shim, screen, output, stopping)
    except ConfigurationError as error:
        output.say(screen.paint(terminal.error_line(str(error)), "red"))
        status = 1
    if server:
        stopping.drain(partial(_drain, server, shim, settings.grace_seconds))
    end_process(status, output)


def _serve(
    server: RerankServer,
    shim: RestServer | None,
    screen: Screen,
    output: BackgroundHandler,
    stopping: Stopping,
) -> None:
    """Serves until a signal comes; raises ConfigurationError if the default model cannot be served."""
    # What the registry logs of loading is shown here already.
    logging.getLogger("rerank_grpc.registry").setLevel(logging.CRITICAL)
    server.start()
    if shim:
        shim.start()
    if _load(server, screen, output, stopping):
        logging.getLogger("rerank_grpc.registry").setLevel(logging.NOTSET)
        rest_port = shim.port if shim else None
        infos = server.registry.models()
        output.say(
            *summary(server.settings, server.port, server.admin_port, infos, screen, rest_port=rest_port)
        )
        stopping.wait()


def _build(settings: Settings, on_hang: Callable[[], None]) -> RerankServer:
    try:
        from rerank_grpc.server.server import RerankServer
    except ModuleNotFoundError as error:
        name = error.name or "a package"
        if name.startswith("rerank_grpc"):
            raise
        raise ConfigurationError(
            f'serving needs {name}, which is not installed: pip install "rerank-grpc[server,embedded]"'
        ) from None
    freeze_imports()
    return RerankServer(settings, on_hang=on_hang)


def freeze_imports() -> None:
    """Spares Python's full collections what has been imported: they would stop every call for 0.2 s."""
    gc.collect()  # what is frozen while it is garbage stays for ever
    gc.freeze()


def _load(server: RerankServer, screen: Screen, output: BackgroundHandler, stopping: Stopping) -> bool:
    """Waits for the models and shows it; False if a signal came first.

    Raises ConfigurationError if the default model cannot be served.
    """
    begin, told, animate = time.monotonic(), dict[str, State](), screen.width is not None
    while not stopping.is_set():
        loaded = server.wait_until_loaded(_FRAME_SECONDS)
        infos, seconds = server.registry.models(), time.monotonic() - begin
        text = "".join(f"{line}\n" for line in _changes(infos, told, seconds))
        if animate:
            progress = "" if loaded else _START_OF_LINE + _progress(infos, seconds, screen)
            text = _START_OF_LINE + text + progress
        if text:
            output.write(text)
        if loaded:
            return True
    return False


def _progress(infos: Sequence[ModelInfo], seconds: float, screen: Screen) -> str:
    names = [terminal.printable(info.name) for info in infos if info.state is State.LOADING]
    ready = sum(info.state is State.READY for info in infos)
    frames = _FRAMES if screen.unicode else "|/-\\"
    frame = frames[int(seconds / _FRAME_SECONDS) % len(frames)]
    text = f"{frame} loading {', '.join(names)}  {seconds:.1f} s  {ready} of {len(infos)} ready"
    return terminal.clip(text, (screen.width or 80) - 1)


def _changes(infos: Sequence[ModelInfo], told: dict[str, State], seconds: float) -> Iterable[str]:
    """Says each model's new state once; `told` remembers.

    That the default model failed is what the command ends with, and not said here.
    """
    for info in infos:
        if told.get(info.name) is info.state:
            continue
        told[info.name] = info.state
        name = terminal.printable(info.name)
        if info.state is State.LOADING:
            yield f"loading {name} ..."
        elif info.state is State.READY:
            yield f"{name} is ready after {seconds:.1f} s"
        elif info.state is State.FAILED and not info.is_default:
            yield f"{name} failed: {terminal.printable(info.state_message)}"


def summary(
    settings: Settings,
    port: int,
    admin_port: int | None,
    infos: Sequence[ModelInfo],
    screen: Screen,
    *,
    rest_port: int | None = None,
) -> Iterable[str]:
    """Says on one screen what is served, where, and to whom."""
    target = address(settings.host, port)
    count = len(settings.tokens)
    access = f"one of {count} tokens" if count > 1 else "one token" if count else "none: any caller is served"
    admin = address(settings.admin_host, admin_port) if admin_port is not None else "off"
    yield ""
    yield screen.paint(f"rerank-grpc {__version__} serves rerank.v1 at {target}", "bold")
    yield ""
    yield from terminal.models(infos, screen)
    yield ""
    yield f"{screen.paint('admin port', 'dim')}      {admin}"
    shim = f"http://{address(settings.rest.host, rest_port)}" if rest_port is not None else "off"
    yield f"{screen.paint('REST', 'dim')}            {shim}"
    yield f"{screen.paint('authentication', 'dim')}  {access}"
    yield from (screen.paint(line, "yellow", "bold") for line in _warnings(settings, target))
    yield ""
    yield "Ctrl-C stops it."


def _warnings(settings: Settings, target: str) -> Iterable[str]:
    rest = settings.rest
    open_to_all = [target] if not is_loopback(settings.host) else []
    if rest.port is not None and not is_loopback(rest.host):
        open_to_all.append(f"REST at {rest.host}")
    if open_to_all and not settings.tokens:
        yield ""
        places = " and ".join(open_to_all)
        yield f"WARNING: {places} can be reached from other machines, and any caller is served."
        yield "         Set RERANK_TOKENS or --token-file, or listen on 127.0.0.1."
    if settings.admin_port is not None and not is_loopback(settings.admin_host) and not settings.tokens:
        yield ""
        yield f"WARNING: the admin port at {settings.admin_host} can be reached from other machines;"
        yield "         without tokens, whoever calls it can load and unload models."
    if forgotten_token(settings):
        yield ""
        yield "WARNING: RERANK_TOKEN is what a client sends; a server reads RERANK_TOKENS."


def _drain(server: RerankServer, shim: RestServer | None, grace: float) -> None:
    """Stops both fronts; calls inside have the grace to finish."""
    end = time.monotonic() + grace
    server.leave()
    closing = threading.Thread(target=shim.stop, args=[grace], daemon=True) if shim else None
    if closing:
        # Calls that are complete reach the server in this time, and then have the grace there. A caller
        # who sends a byte a second must not keep the server from draining.
        closing.start()
        closing.join(min(_SHIM_SECONDS, grace / 2))
    server.stop(max(end - time.monotonic(), 0.0))
    if closing:
        closing.join(max(end - time.monotonic(), 0.0))


def _on_hang(output: BackgroundHandler) -> None:
    """Ends the process a moment later: a device that hangs is given back in no other way."""
    status = os.EX_SOFTWARE
    log.critical("the device of a model hangs; ending with status %d for the supervisor to restart", status)
    ending = threading.Timer(_ANSWER_SECONDS, end_process, [status, output])
    ending.daemon = True
    try:
        ending.start()
    except RuntimeError:  # the process may have no further thread
        end_process(status, output)
