"""Makes the REST shim: alone, or beside the server in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rerank_grpc.cli.address import address
from rerank_grpc.config import RestSettings, Settings
from rerank_grpc.errors import ConfigurationError

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer


def beside(settings: Settings, port: int) -> RestServer | None:
    """Makes the shim of a server's own process, which calls it at `port`; None where it is off."""
    if settings.rest.port is None:
        return None
    # What listens everywhere is called on this machine.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(settings.host, settings.host)
    token = settings.tokens[0] if settings.tokens else None
    return build(settings.rest, [address(host, port)], settings.tokens, token)


def build(
    settings: RestSettings, targets: Sequence[str], tokens: Sequence[str], upstream_token: str | None
) -> RestServer:
    """Makes the shim; raises ConfigurationError where its packages are missing, or its port is taken."""
    try:
        from rerank_grpc.rest.server import RestServer
    except ModuleNotFoundError as error:
        name = error.name or "a package"
        if name.startswith("rerank_grpc"):
            raise
        raise ConfigurationError(
            f'REST needs {name}, which is not installed: pip install "rerank-grpc[rest]", or --rest-port off'
        ) from None
    return RestServer(settings, targets, tokens=tokens, upstream_token=upstream_token)
