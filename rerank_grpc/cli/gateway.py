"""Runs the REST shim in a process of its own, in front of gRPC servers."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from rerank_grpc import __version__, files
from rerank_grpc.cli import rest, terminal
from rerank_grpc.cli.address import address, is_loopback
from rerank_grpc.cli.logs import log_to
from rerank_grpc.cli.stopping import Stopping, end_process
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config import quiet_grpc, read_gateway_settings
from rerank_grpc.errors import ConfigurationError

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer

# Callers that are cut off at the end of the grace get this to be told so.
_REFUSAL_SECONDS = 0.5


def run(parsed: argparse.Namespace) -> NoReturn:
    """Serves until SIGTERM or SIGINT, and ends the process; raises OptionError before anything starts."""
    settings = read_gateway_settings(parsed.flags)
    log = log_to(sys.stderr, settings.log_level)
    quiet_grpc()
    files.raise_limit()
    try:
        server = rest.build(settings.rest, settings.targets, settings.tokens, settings.upstream_token)
    except ConfigurationError as error:
        log.say(Screen.of(sys.stderr).paint(terminal.error_line(str(error)), "red"))
        end_process(1, log)
    stopping = Stopping(settings.grace_seconds, log)
    server.start()
    here = address(settings.rest.host, server.port)
    log.say(f"rerank-grpc {__version__} serves REST at http://{here}, from {', '.join(settings.targets)}")
    if not settings.tokens and not is_loopback(settings.rest.host):
        log.say(f"NOTE: {here} can be reached from other machines; who may call is up to the servers.")
    log.say("Ctrl-C stops it.")
    stopping.wait()
    stopping.drain(lambda: _drain(server, settings.grace_seconds))
    end_process(0, log)


def _drain(server: RestServer, grace: float) -> None:
    closing = threading.Thread(target=server.stop, args=[grace], daemon=True)
    closing.start()
    closing.join(grace + _REFUSAL_SECONDS)
