"""`rerank-grpc rest`: the REST server, in a process of its own or beside a gRPC server."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from rerank_grpc import __version__
from rerank_grpc.cli.process import Process, address, is_loopback, needs
from rerank_grpc.config.reading import read_rest_settings
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.types import Health

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer

# Calls that are cut off at the end of the grace are told so in this time.
_REFUSAL_SECONDS = 0.5


def run(parsed: argparse.Namespace) -> NoReturn:
    """Serves until SIGTERM or SIGINT, and ends the process; raises OptionError before anything starts."""
    settings = read_rest_settings(parsed.flags)
    process = Process(settings.log_level, settings.grace_seconds)
    try:
        server = build(settings)
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
    process.log.say("Ctrl-C stops it.")
    process.wait()
    closing = threading.Thread(target=server.stop, args=[settings.grace_seconds], daemon=True)
    closing.start()
    process.drain(partial(closing.join, settings.grace_seconds + _REFUSAL_SECONDS))
    process.end(0)


def beside(
    settings: ServerSettings, local_port: int | None, health: Callable[[], Health]
) -> RestServer | None:
    """Makes the REST server of a gRPC server's process, which calls its local port; None where it is off."""
    if local_port is None:
        return None
    tokens, targets = settings.access_tokens, (address("127.0.0.1", local_port),)
    own = tokens[0] if tokens else None
    return build(replace(settings.rest, targets=targets, access_tokens=tokens, upstream_token=own), health)


def build(settings: RestSettings, health: Callable[[], Health] | None = None) -> RestServer:
    """Makes the REST server; raises ConfigurationError if a package is missing or the port is taken."""
    with needs("REST", 'pip install "rerank-grpc[rest]", or --rest-port off'):
        from rerank_grpc.rest.server import RestServer
    return RestServer(settings, health)
