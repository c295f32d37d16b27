"""The two servers: `rerank-grpc serve`, with REST beside it, and `rerank-grpc rest`, in front of others."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from rerank_grpc import __version__
from rerank_grpc.cli import terminal
from rerank_grpc.cli.process import Process, address, needs
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config.reading import forgotten_token, proxy_of, read_rest_settings, read_settings
from rerank_grpc.config.settings import ANY_NAME, RestSettings, ServerSettings
from rerank_grpc.config.targets import is_loopback
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.types import Health, ModelInfo, State

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer
    from rerank_grpc.server.server import RerankServer

log = logging.getLogger(__name__)

_FRAME_SECONDS = 0.1
_REST_SECONDS = 1.0  # the REST server passes calls on for this long before the gRPC server refuses new ones
_REFUSAL_SECONDS = 0.5  # REST calls that are cut off at the end of the grace are told so in this time
_ANSWER_SECONDS = 1.0  # calls that a hung device has failed are answered within this time


def run(parsed: argparse.Namespace) -> NoReturn:
    """Serves until SIGTERM or SIGINT, and ends the process; raises OptionError before anything starts."""
    settings = read_settings(parsed.flags)
    process = Process(settings.log_level, settings.grace_seconds)
    names = ", ".join(model.name for model in settings.models if not model.lazy)
    start = f"rerank-grpc {__version__} is starting{' with ' if names else ''}{names}"
    process.log.say(process.screen.paint(start, "bold"))
    status, server, rest_server = 0, None, None
    try:
        server = _build(settings, partial(_on_hang, process))
        rest_server = rest_beside(settings, server.local_port, server.health)
        _serve(server, rest_server, process)
    except ConfigurationError as error:
        process.fail(error)
        status = 1
    if server:
        process.drain(partial(_drain, server, rest_server, settings.grace_seconds))
    process.end(status)


def run_rest(parsed: argparse.Namespace) -> NoReturn:
    """Serves REST alone, in front of other servers; ends and raises like `run`."""
    settings = read_rest_settings(parsed.flags)
    process = Process(settings.log_level, settings.grace_seconds)
    try:
        server = _build_rest(settings)
    except ConfigurationError as error:
        process.fail(error)
        process.end(1)
    server.start()
    here, upstreams = address(settings.host, server.port), ", ".join(settings.targets)
    process.log.say(f"rerank-grpc {__version__} serves REST at http://{here}, from {upstreams}")
    if not settings.access_tokens and not is_loopback(settings.host):
        process.log.say(
            f"NOTE: {here} can be reached from other machines; who may call is up to the servers."
        )
    for target in settings.targets:
        if proxy := proxy_of(target):
            process.log.say(f"NOTE: {target} is called {proxy}.")
    process.log.say("Ctrl-C stops it.")
    process.wait()
    closing = threading.Thread(target=server.stop, args=[settings.grace_seconds], daemon=True)
    closing.start()
    process.drain(partial(closing.join, settings.grace_seconds + _REFUSAL_SECONDS))
    process.end(0)


def _serve(server: RerankServer, rest_server: RestServer | None, process: Process) -> None:
    """Serves until a signal comes; raises ConfigurationError if the default model cannot be served."""
    server.start()
    if rest_server:
        rest_server.start()
    if _load(server, process):
        infos, rest_port = server.registry.models(), rest_server.port if rest_server else None
        ports = (server.port, server.admin_port, rest_port)
        process.log.say(*summary(server.settings, ports, infos, process.screen))
        process.wait()


def _build(settings: ServerSettings, on_hang: Callable[[], None]) -> RerankServer:
    with needs("serving", 'pip install "rerank-grpc[server,embedded]"'):
        from rerank_grpc.server.server import RerankServer
    freeze_imports()
    return RerankServer(settings, on_hang=on_hang)


def freeze_imports() -> None:
    """Excludes all imported objects from Python's full collections, which would stop every call for 0.2 s."""
    gc.collect()  # garbage that is frozen stays for ever
    gc.freeze()


def rest_beside(
    settings: ServerSettings, local_port: int | None, health: Callable[[], Health]
) -> RestServer | None:
    """Makes the REST server of a gRPC server's process, which calls its local port; None where it is off."""
    if local_port is None:
        return None
    tokens, targets = settings.access_tokens, (address("127.0.0.1", local_port),)
    own = tokens[0] if tokens else None
    rest = replace(settings.rest, targets=targets, access_tokens=tokens, upstream_token=own)
    return _build_rest(rest, health)


def _build_rest(settings: RestSettings, health: Callable[[], Health] | None = None) -> RestServer:
    """Makes the REST server; raises ConfigurationError if a package is missing or the port is taken."""
    with needs("REST", 'pip install "rerank-grpc[rest]", or --rest-port off'):
        from rerank_grpc.rest.server import RestServer
    return RestServer(settings, health)


def _load(server: RerankServer, process: Process) -> bool:
    """Shows progress; False on a signal. Raises ConfigurationError if the default model cannot be served."""
    begin = time.monotonic()
    while not process.stopping:
        if server.wait_until_loaded(_FRAME_SECONDS):
            return True
        if process.screen.width is not None:
            seconds = time.monotonic() - begin
            process.log.write(_progress(server.registry.models(), seconds, process.screen))
    return False


def _progress(infos: Sequence[ModelInfo], seconds: float, screen: Screen) -> str:
    names = [terminal.printable(info.name) for info in infos if info.state is State.LOADING]
    ready = sum(info.state is State.READY for info in infos)
    frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if screen.unicode else "|/-\\"
    frame = frames[int(seconds / _FRAME_SECONDS) % len(frames)]
    text = f"{frame} loading {', '.join(names)}  {seconds:.1f} s  {ready} of {len(infos)} ready"
    return terminal.clip(text, (screen.width or 80) - 1)


def summary(
    settings: ServerSettings,
    ports: tuple[int, int | None, int | None],
    infos: Sequence[ModelInfo],
    screen: Screen,
) -> Iterable[str]:
    """Says which models are served, to which callers, at the ports of gRPC, of the operators and of REST."""
    port, admin_port, rest_port = ports
    target = address(settings.host, port)
    access = _access(len(settings.access_tokens), settings.reflection)
    admin = address(settings.admin_host, admin_port) if admin_port is not None else "off"
    rest = _rest(settings.rest, rest_port) if rest_port is not None else "off"
    yield from ("", screen.paint(f"rerank-grpc {__version__} serves rerank.v1 at {target}", "bold"), "")
    yield from terminal.models(infos, screen)
    yield ""
    others = [("other names", model.name) for model in settings.models if ANY_NAME in model.aliases]
    for name, text in (*others, ("admin port", admin), ("REST", rest), ("authentication", access)):
        yield f"{screen.paint(name, 'dim')}{' ' * (16 - len(name))}{text}"
    for warning in _warnings(settings, target):
        yield ""
        yield from (screen.paint(line, "yellow", "bold") for line in warning.splitlines())
    yield from ("", "Ctrl-C stops it.")


def _rest(settings: RestSettings, port: int) -> str:
    """Says where REST is, and which pages in a browser may call it."""
    url = f"http://{address(settings.host, port)}"
    if not settings.cors:
        return url
    origins = "every origin" if "*" in settings.cors else ", ".join(settings.cors)
    return f"{url}, for pages of {origins} too"


def _access(count: int, reflection: str) -> str:
    """Says which tokens open the service, and what needs none."""
    if not count:
        return "none: any caller is served"
    tokens = f"one of {count} tokens" if count > 1 else "one token"
    return f"{tokens}, but for health and reflection" if reflection == "open" else tokens


def _warnings(settings: ServerSettings, target: str) -> Iterable[str]:
    rest = settings.rest
    open_to_all = [] if is_loopback(settings.host) else [target]
    if rest.port is not None and not is_loopback(rest.host):
        open_to_all.append(f"REST at {rest.host}")
    if open_to_all and not settings.access_tokens:
        yield (
            f"WARNING: {' and '.join(open_to_all)} can be reached from other machines, "
            "and any caller is served."
            "\n         Set RERANK_TOKENS or --token-file, or listen on 127.0.0.1."
        )
    admin_is_open = settings.admin_port is not None and not is_loopback(settings.admin_host)
    if admin_is_open and not settings.access_tokens:
        yield (
            f"WARNING: the admin port at {settings.admin_host} can be reached from other machines;"
            "\n         without tokens, whoever calls it can load and unload models."
        )
    if forgotten_token(settings):
        yield "WARNING: RERANK_TOKEN is what a client sends; a server reads RERANK_TOKENS."


def _drain(server: RerankServer, rest_server: RestServer | None, grace: float) -> None:
    end = time.monotonic() + grace
    server.leave()
    if rest_server is None:
        server.stop(grace)
        return
    # Complete calls reach the gRPC server in this time, and then have the grace there. A caller
    # that sends a byte a second must not keep that server from draining.
    closing = threading.Thread(target=rest_server.stop, args=[grace], daemon=True)
    closing.start()
    closing.join(min(_REST_SECONDS, grace / 2))
    server.stop(max(end - time.monotonic(), 0.0))
    closing.join(max(end - time.monotonic(), 0.0))


def _on_hang(process: Process) -> None:
    """Ends the process a moment later: only that gives a hung device back."""
    status = os.EX_SOFTWARE
    log.critical("the device of a model hangs; ending with status %d for the supervisor to restart", status)
    ending = threading.Timer(_ANSWER_SECONDS, process.end, [status])
    ending.daemon = True
    try:
        ending.start()
    except RuntimeError:  # the process may have no further thread
        process.end(status)
