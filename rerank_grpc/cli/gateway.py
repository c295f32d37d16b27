"""Runs the REST shim in a process of its own, in front of gRPC servers."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from rerank_grpc import __version__
from rerank_grpc.cli import rest
from rerank_grpc.cli.address import address, is_loopback
from rerank_grpc.cli.logs import log_to
from rerank_grpc.cli.serve import say
from rerank_grpc.cli.stopping import Stopping, end_process
from rerank_grpc.config import read_gateway_settings


def run(parsed: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; raises ConfigurationError for what cannot start."""
    settings = read_gateway_settings(parsed.flags)
    log_to(sys.stderr, settings.log_level)
    server = rest.build(settings.rest, settings.targets, settings.tokens, settings.upstream_token)
    stopping = Stopping(settings.grace_seconds)
    server.start()
    here = address(settings.rest.host, server.port)
    say(f"rerank-grpc {__version__} serves REST at http://{here}, from {', '.join(settings.targets)}")
    if not settings.tokens and not is_loopback(settings.rest.host):
        say(f"NOTE: {here} can be reached from other machines; who may call is up to the servers.")
    say("Ctrl-C stops it.")
    stopping.wait()
    stopping.drain(partial(server.stop, settings.grace_seconds))
    end_process(0)
