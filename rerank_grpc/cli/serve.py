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
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rerank_grpc import __version__
from rerank_grpc.cli import terminal
from rerank_grpc.cli.process import Process, address, needs
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.cli.watching import Watching
from rerank_grpc.config.allowance import memory_limit, provide_threads
from rerank_grpc.config.environment import proxy_of
from rerank_grpc.config.reading import forgotten_token, read_rest_settings, read_settings
from rerank_grpc.config.settings import ANY_NAME, RestSettings, ServerSettings, token_count
from rerank_grpc.config.targets import is_loopback
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.sockets import socket_path
from rerank_grpc.tls.pair import TlsFiles
from rerank_grpc.types import ModelInfo, State
from rerank_grpc.units import size

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer
    from rerank_grpc.server.server import RerankServer

log = logging.getLogger(__name__)

_FRAME_SECONDS = 0.1
# Health says NOT_SERVING, and calls are still taken, for this long before the gRPC server refuses new ones:
# REST passes on what it has, and balancers that look at health in this time send no more. Where nobody has
# called for the second number of seconds, no balancer asks often enough to see it.
_LEAVING_SECONDS, _QUIET_SECONDS = 1.0, 2.0
_REFUSAL_SECONDS = 0.5  # REST calls that are cut off at the end of the grace are told so in this time
_ANSWER_SECONDS = 1.0  # calls that a hung device has failed are answered within this time

_OPEN_METRICS = "can be read from other machines: they tell the models' names and the load, and no texts."


class Remark(NamedTuple):
    """Something about the settings that the operator may not have meant: a name for machines, and lines."""

    event: str
    text: str


class Ports(NamedTuple):
    """The ports of a server's process; None where one is off."""

    main: int
    admin: int | None = None
    rest: int | None = None
    metrics: int | None = None


def run(parsed: argparse.Namespace) -> NoReturn:
    """Serves until SIGTERM or SIGINT, and ends the process; raises OptionError before anything starts."""
    settings = read_settings(parsed.flags)
    process = Process(settings.log_level, settings.log_format, settings.grace_seconds)
    names = [model.name for model in settings.models]
    loaded = ", ".join(model.name for model in settings.models if not model.lazy)
    start = f"rerank-grpc {__version__} is starting{' with ' if loaded else ''}{loaded}"
    process.log.say(process.screen.paint(start, "bold"), event="starting", version=__version__, models=names)
    _say_limits()
    status, server, rest_server, watching = 0, None, None, None
    try:
        server, watching = _build(settings, partial(_on_hang, process))
        rest_server = rest_beside(server, watching)
        watching.follow(lambda: process.log.dropped, server.registry, server.certificates)
        watching.start()
        _serve(server, rest_server, watching.port, process)
    except ConfigurationError as error:
        process.fail(error)
        status = 1
    if server and watching:
        drain = _drain if status else _tell_drain
        process.drain(partial(drain, server, rest_server, settings.grace_seconds))
        watching.stop(process.seconds_left)
    process.end(status)


def run_rest(parsed: argparse.Namespace) -> NoReturn:
    """Serves REST alone, in front of other servers; ends and raises like `run`."""
    settings = read_rest_settings(parsed.flags)
    process = Process(settings.log_level, settings.log_format, settings.grace_seconds)
    process.log.say(event="starting", version=__version__, targets=settings.targets)
    try:
        watching = Watching(settings)
        server = _build_rest(settings, watching=watching)
    except ConfigurationError as error:
        process.fail(error)
        process.end(1)
    watching.follow(lambda: process.log.dropped, certificates=server.certificates)
    watching.start()
    server.start()
    _say_rest(settings, server.port, watching.port, process)
    process.wait()
    closing = threading.Thread(target=server.stop, args=[settings.grace_seconds], daemon=True)
    closing.start()
    process.drain(partial(closing.join, settings.grace_seconds + _REFUSAL_SECONDS))
    watching.stop(process.seconds_left)
    process.end(0)


def _say_rest(settings: RestSettings, port: int, metrics_port: int | None, process: Process) -> None:
    """Says where REST and its metrics are, to people and to machines."""
    facts: dict[str, Any] = {"rest": address(settings.host, port), "targets": settings.targets}
    if metrics_port is not None:
        facts["metrics"] = address(settings.metrics_host, metrics_port)
    lines = rest_summary(settings, port, metrics_port)
    process.log.say(*lines, event="serving", version=__version__, **facts)
    _tell(_rest_notes(settings, port), logging.INFO, process)


def rest_summary(settings: RestSettings, port: int, metrics_port: int | None) -> Iterable[str]:
    """Says where REST and its metrics are, who can reach them, and which targets are behind a proxy."""
    here, upstreams = _url(settings.host, port, settings.tls), ", ".join(settings.targets)
    yield f"rerank-grpc {__version__} serves REST at {here}, from {upstreams}"
    if settings.tls and settings.tls.pair:
        yield f"TLS: {settings.tls.pair}"
    if metrics_port is not None:
        yield f"The metrics are at {_metrics_url(settings, metrics_port)}"
    for note in _rest_notes(settings, port):
        yield f"NOTE: {note.text}"
    yield "Ctrl-C stops it."


def _rest_notes(settings: RestSettings, port: int) -> Iterable[Remark]:
    here = address(settings.host, port)
    if not _knows_callers(settings) and not is_loopback(settings.host):
        yield Remark(
            "open_to_all", f"{here} can be reached from other machines; who may call is up to the servers."
        )
    if not _knows_callers(settings) and settings.upstream_tls and settings.upstream_tls.cert:
        yield Remark(
            "calls_by_certificate",
            f"whoever reaches {here} without a token calls the servers by the certificate --upstream-cert; "
            "--token-file or --tls-client-ca asks callers for more.",
        )
    if settings.metrics_port is not None and not is_loopback(settings.metrics_host):
        yield Remark("open_metrics", f"the metrics at {settings.metrics_host} {_OPEN_METRICS}")
    yield from _notes_of_callers(settings)
    for target in settings.targets:
        if proxy := proxy_of(target):
            yield Remark("proxied_target", f"{target} is called {proxy}.")


def _notes_of_callers(settings: RestSettings | ServerSettings) -> Iterable[Remark]:
    """Says which limits of the token file another process has to keep, and whom nothing lets in."""
    entries = settings.token_file.entries if settings.token_file else ()
    limited = any(entry.caller.rate or entry.caller.queue_share < 1 for entry in entries)
    if limited and isinstance(settings, RestSettings):
        yield Remark(
            "limits_elsewhere",
            "the rates and queue shares of --token-file hold where the servers behind have the file too.",
        )
    certified = [entry.caller.name for entry in entries if not entry.digests]
    if certified and not (settings.tls and settings.tls.client_ca):
        more = f" and {len(certified) - 1} more" if len(certified) > 1 else ""
        yield Remark(
            "certificate_unasked",
            f"{certified[0]}{more} of --token-file can call by certificate alone, and none is asked for"
            " without --tls-client-ca.",
        )


def _tell(remarks: Iterable[Remark], level: int, process: Process) -> None:
    """Tells machines the remarks that people read below the summary."""
    for remark in remarks:
        process.log.say(event=remark.event, level=level, text=" ".join(remark.text.split()))


def _serve(
    server: RerankServer, rest_server: RestServer | None, metrics_port: int | None, process: Process
) -> None:
    """Serves until a signal comes; raises ConfigurationError if the default model cannot be served."""
    server.start()
    if rest_server:
        rest_server.start()
    if _load(server, process):
        infos, rest_port = server.registry.models(), rest_server.port if rest_server else None
        ports = Ports(server.port, server.admin_port, rest_port, metrics_port)
        tokens = len(server.access)  # the file may have changed since the start
        lines = summary(server.settings, ports, infos, tokens, process.screen)
        process.log.say(*lines, event="serving", **_facts(server.settings, ports, infos, tokens))
        warnings = _warnings(server.settings, address(server.settings.host, server.port))
        _tell(warnings, logging.WARNING, process)
        process.wait()


def _say_limits() -> None:
    """Has the libraries, which are imported after this, follow a quota of CPUs; logs what is allowed."""
    threads, reason = provide_threads()
    limit = memory_limit()
    memory = f"; {limit.source} may use {size(limit.most)} of memory" if limit else ""
    fields = {"threads": threads, "reason": reason, "memory_bytes": limit.most if limit else None}
    text = f"up to {threads} threads compute ({reason}){memory}"
    log.info("%s", text, extra={"event": "limits", **fields})


def _build(settings: ServerSettings, on_hang: Callable[[], None]) -> tuple[RerankServer, Watching]:
    """Makes the gRPC server and what watches it; raises ConfigurationError where either cannot start."""
    with needs("serving", 'pip install "rerank-grpc[server,embedded]"'):
        from rerank_grpc.server.server import RerankServer
    watching = Watching(settings, [model.name for model in settings.models])
    observers = watching.observers()
    freeze_imports()
    server = RerankServer(
        settings,
        on_hang=on_hang,
        sinks=watching.sinks,
        on_batch=watching.on_batch,
        interceptors=observers,
    )
    return server, watching


def freeze_imports() -> None:
    """Excludes all imported objects from Python's full collections, which would stop every call for 0.2 s."""
    gc.collect()  # garbage that is frozen stays for ever
    gc.freeze()


def rest_beside(server: RerankServer, watching: Watching | None = None) -> RestServer | None:
    """Makes the REST server of a gRPC server's process, which calls its local port or socket.

    None where it is off.
    """
    if server.settings.rest.port is None:
        return None
    own = server.access.own if server.access else None
    port = server.local_port
    target = server.settings.host if port is None else address("127.0.0.1", port)
    settings = replace(server.settings.rest, targets=(target,), upstream_token=own)
    return _build_rest(settings, watching, server)


def _build_rest(
    settings: RestSettings, watching: Watching | None = None, beside: RerankServer | None = None
) -> RestServer:
    """Makes the REST server; raises ConfigurationError if a package is missing or the port is taken."""
    with needs("REST", 'pip install "rerank-grpc[rest]", or --rest-port off'):
        from rerank_grpc.rest.server import RestServer
    watched: dict[str, Any] = {"sinks": watching.sinks, "tracer": watching.tracer} if watching else {}
    if beside is None:
        return RestServer(settings, **watched)
    name_of = beside.registry.configured_name
    known: dict[str, Any] = {"access": beside.access, "certificates": beside.certificates}
    return RestServer(settings, beside.health, configured_name=name_of, **known, **watched)


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
    ports: Ports,
    infos: Sequence[ModelInfo],
    tokens: int,
    screen: Screen,
) -> Iterable[str]:
    """Says which models are served, to callers with one of so many tokens, and at which ports."""
    target = address(settings.host, ports.main)
    access = _access(tokens, settings)
    admin = address(settings.admin_host, ports.admin) if ports.admin is not None else "off"
    rest = _rest(settings, ports.rest) if ports.rest is not None else "off"
    metrics = _metrics_url(settings, ports.metrics) if ports.metrics is not None else "off"
    yield from ("", screen.paint(f"rerank-grpc {__version__} serves rerank.v1 at {target}", "bold"), "")
    yield from terminal.models(infos, screen)
    yield ""
    others = [("other names", model.name) for model in settings.models if ANY_NAME in model.aliases]
    told = (("admin port", admin), ("REST", rest), ("metrics", metrics), ("authentication", access))
    tls = [("TLS", str(settings.tls.pair))] if settings.tls else []
    for name, text in (*others, *told, *tls):
        yield f"{screen.paint(name, 'dim')}{' ' * (16 - len(name))}{text}"
    for warning in _warnings(settings, target):
        yield ""
        shown = f"WARNING: {warning.text}".replace("\n", "\n         ")
        yield from (screen.paint(line, "yellow", "bold") for line in shown.splitlines())
    yield from ("", "Ctrl-C stops it.")


def _facts(settings: ServerSettings, ports: Ports, infos: Sequence[ModelInfo], tokens: int) -> dict[str, Any]:
    """Says the same to machines."""
    hosts = {"grpc": settings.host, "admin": settings.admin_host, "rest": settings.rest.host}
    hosts["metrics"] = settings.metrics_host
    listening = zip(hosts.items(), ports, strict=True)
    addresses = {name: address(host, port) for (name, host), port in listening if port is not None}
    models = {info.name: info.state.value for info in infos}
    return {
        "version": __version__,
        "models": models,
        **addresses,
        "tokens": tokens,
        "tls": settings.tls is not None,
    }


def _rest(settings: ServerSettings, port: int) -> str:
    """Says where REST is, and which pages in a browser may call it."""
    url, cors = _url(settings.rest.host, port, settings.tls), settings.rest.cors
    if not cors:
        return url
    origins = "every origin" if "*" in cors else ", ".join(cors)
    return f"{url}, for pages of {origins} too"


def _url(host: str, port: int, tls: TlsFiles | None) -> str:
    """Writes where HTTP is served; a Unix socket as curl's --unix-socket takes its path."""
    if socket_path(host) is not None:
        return host
    return f"{'https' if tls else 'http'}://{address(host, port)}"


def _metrics_url(settings: ServerSettings | RestSettings, port: int) -> str:
    return f"http://{address(settings.metrics_host, port)}/metrics"


def _access(count: int, settings: ServerSettings) -> str:
    """Says which tokens or certificates open the service, and what needs none."""
    tokens = f"one of {count} tokens" if count > 1 else "one token"
    if settings.tls and settings.tls.client_ca:
        by_token = f", or is that of {tokens} that it sends as well" if count else ""
        return f"a certificate by {settings.tls.client_ca}, whose name is the caller's{by_token}"
    if not count:
        return "none: any caller is served"
    return f"{tokens}, but for health and reflection" if settings.reflection == "open" else tokens


def _knows_callers(settings: ServerSettings | RestSettings) -> bool:
    """Tells whether callers need a token or a certificate."""
    return token_count(settings) > 0 or (settings.tls is not None and settings.tls.client_ca is not None)


def _warnings(settings: ServerSettings, target: str) -> Iterable[Remark]:
    rest = settings.rest
    open_to_all = [] if is_loopback(settings.host) else [target]
    if rest.port is not None and not is_loopback(rest.host):
        open_to_all.append(f"REST at {rest.host}")
    if open_to_all and not _knows_callers(settings):
        yield Remark(
            "open_to_all",
            f"{' and '.join(open_to_all)} can be reached from other machines, and any caller is served."
            "\nSet RERANK_TOKENS or --token-file, or listen on 127.0.0.1.",
        )
    if settings.metrics_port is not None and not is_loopback(settings.metrics_host):
        yield Remark("open_metrics", f"the metrics at {settings.metrics_host} {_OPEN_METRICS}")
    if rest.port is not None and "*" in rest.cors and not token_count(settings):
        yield Remark(
            "open_to_pages",
            "--rest-cors * without tokens lets every page that somebody here looks at call REST."
            "\nName the origins of your pages, or set tokens.",
        )
    yield from _notes_of_callers(settings)
    if forgotten_token(settings):
        yield Remark("forgotten_token", "RERANK_TOKEN is what a client sends; a server reads RERANK_TOKENS.")


def _tell_drain(server: RerankServer, rest_server: RestServer | None, grace: float) -> None:
    """Drains, and logs how many calls are inside before and after."""
    gates, began = (server.reranker.gate, server.reranker.lobby), time.monotonic()
    inside = sum(gate.calls for gate in gates)
    log.info("draining: %d calls inside", inside, extra={"event": "draining", "calls": inside})
    _drain(server, rest_server, grace, _LEAVING_SECONDS)
    left, seconds = sum(gate.calls for gate in gates), round(time.monotonic() - began, 3)
    drained = {"event": "drained", "calls": left, "seconds": seconds}
    log.info("drained after %.1f s: %d calls left inside", seconds, left, extra=drained)


def _drain(server: RerankServer, rest_server: RestServer | None, grace: float, leaving: float = 0.0) -> None:
    end = time.monotonic() + grace
    server.leave()
    closing = threading.Thread(target=rest_server.stop, args=[grace], daemon=True) if rest_server else None
    if closing:
        closing.start()
    # Complete calls of REST reach the gRPC server in this time, and then have the grace there. A caller
    # that sends a byte a second must not keep that server from draining.
    wait = min(leaving, grace / 2)
    if server.quiet_seconds() < _QUIET_SECONDS:
        time.sleep(wait)
    elif closing:
        closing.join(wait)
    server.stop(max(end - time.monotonic(), 0.0))
    if closing:
        closing.join(max(end - time.monotonic(), 0.0) + _REFUSAL_SECONDS)


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
