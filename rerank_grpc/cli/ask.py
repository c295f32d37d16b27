"""Asks a running server: `rerank-grpc models` and `health`; lists the known models without one."""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from rerank_grpc.checkpoints.catalogue import read_catalogue
from rerank_grpc.cli import terminal
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import (
    read_catalogue_path,
    read_client_settings,
    read_here_settings,
    read_listening,
)
from rerank_grpc.config.running import server_command
from rerank_grpc.config.targets import is_local
from rerank_grpc.errors import ConfigurationError, PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from rerank_grpc.client import Client
    from rerank_grpc.config.settings import ClientSettings
    from rerank_grpc.tls.channel import TlsSources

_KNOWN_FIELDS = (
    *("id", "kind", "family", "served", "unsupported", "evidence", "parameters", "max_tokens"),
    *("languages", "licence", "noncommercial", "good_for"),
)


def models(parsed: argparse.Namespace) -> int:
    """Lists the models of a server, or those of the catalogue; raises RerankError or ConfigurationError."""
    if parsed.available:
        known = tuple(read_catalogue(read_catalogue_path(parsed.flags)))
        value = {"models": [{name: getattr(each, name) for name in _KNOWN_FIELDS} for each in known]}
        _print(parsed, value, terminal.available(known, Screen.of(sys.stdout)))
        return 0
    with connect(parsed) as client:
        infos = tuple(client.list_models())
    _print(parsed, {"models": list(map(asdict, infos))}, terminal.models(infos, Screen.of(sys.stdout)))
    return 0


def health(parsed: argparse.Namespace) -> int:
    """Tells whether a call for a model would be answered: 0 if so, else 1; raises RerankError.

    An orchestrator's check fails for no token: while tokens are exchanged, one may be refused or unreadable,
    and of the default model grpc.health.v1 tells as much without.
    """
    if parsed.here:
        return _health_here(parsed)
    with connect(parsed, needs_token=False) as client:
        try:
            answer = client.health(parsed.model)
        except (Unauthenticated, PermissionDenied):
            if parsed.model:
                raise
            serving = client.serving()
            _print(parsed, {"serving": serving}, terminal.bare_health(serving))
            return 0 if serving else 1
    _print(parsed, asdict(answer), terminal.health(answer))
    return 0 if answer.serving else 1


def _health_here(parsed: argparse.Namespace) -> int:
    """Asks the server of this container; raises RerankError, or ConfigurationError where there is none.

    grpc.health.v1 and /health want no token, so that one that changes makes no container unhealthy. Where
    both are served, gRPC decides: REST would be well without the port that most callers use.
    """
    from rerank_grpc.cli.parser import parse

    for name in ("model", "target", "token-file"):
        if parsed.flags.get(name) or getattr(parsed, name, None):
            raise OptionError(f"--here asks the server of this container, and takes no --{name}")
    command = server_command()
    if command is None:
        raise ConfigurationError("no rerank-grpc serve or rest runs here")
    server = parse(command)
    rest = server.command == "rest"
    host, port = read_listening(server.flags, rest=rest)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    target = host if host.startswith("unix:") else target
    timeout, presented = read_here_settings(parsed.flags, server.flags)
    tls = None if target == host else presented  # a Unix socket is plain
    serving = _rest_serves(host, port, tls, timeout) if rest else _grpc_serves(target, tls, timeout)
    value = {"role": server.command, "address": target, "serving": serving}
    state = "serving" if serving else "not serving"
    _print(parsed, value, [f"{server.command} at {target} is {state}"])
    return 0 if serving else 1


def _grpc_serves(target: str, tls: TlsSources | None, timeout: float) -> bool:
    from rerank_grpc.client import Client
    from rerank_grpc.client.here import believed

    given = believed(target, tls, timeout).arguments() if tls is not None else {}
    with Client(target, timeout=timeout, **given) as client:
        return client.serving()


def _rest_serves(host: str, port: int, tls: TlsSources | None, timeout: float) -> bool:
    from http.client import HTTPException

    try:
        with closing(_http_connection(host, port, tls, timeout)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, HTTPException) as error:
        raise ConfigurationError(f"cannot ask REST at {host}:{port}: {error}") from None


def _http_connection(host: str, port: int, tls: TlsSources | None, timeout: float) -> HTTPConnection:
    """Makes a connection to REST here, whose certificate is believed: neither token nor text is sent."""
    from http.client import HTTPConnection, HTTPSConnection

    if tls is not None:
        context = tls.load().context()
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return HTTPSConnection(host, port, timeout=timeout, context=context)
    connection = HTTPConnection("localhost" if host.startswith("unix:") else host, port, timeout=timeout)
    if host.startswith("unix:"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(host.removeprefix("unix:").removeprefix("//"))
    return connection


def connect(parsed: argparse.Namespace, *, needs_token: bool = True, calls: int = 1) -> Client:
    """Makes a client of the server that the options name; raises OptionError or ConfigurationError.

    Its deadline is the time of so many calls: a large one is sent in as many.
    """
    from rerank_grpc.client import Client

    settings = read_client_settings(parsed.flags, needs_token=needs_token)
    return Client(settings.target, timeout=settings.timeout * calls, **identity(settings))


def identity(settings: ClientSettings) -> dict[str, Any]:
    """Makes a client's arguments of a token and of TLS; warns of a token that would be sent in plaintext."""
    tls, target = settings.tls, settings.target
    if tls is None and settings.token and not is_local(target):
        terminal.warn(f"the token goes to {target} in plaintext: call it with --tls, or with --ca FILE")
    if tls is not None and settings.own_certificate:
        from rerank_grpc.client.here import named

        tls = named(target, tls, settings.timeout)
    return {"token": settings.token, **({} if tls is None else tls.arguments())}


def _print(parsed: argparse.Namespace, value: Any, lines: Iterable[str]) -> None:
    if parsed.json:
        print(json.dumps(value, ensure_ascii=False, indent=2, default=attrgetter("value")))  # of an enum
    else:
        for line in lines:
            print(line)
