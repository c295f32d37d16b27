"""Makes the REST shim: alone, or beside the server in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rerank_grpc.cli.address import address
from rerank_grpc.config import RestSettings, Settings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.types import Health

if TYPE_CHECKING:
    from rerank_grpc.rest.server import RestServer


def beside(settings: Settings, local_port: int | None, health: Callable[[], Health]) -> RestServer | None:
    """Makes the shim of a server's own process, which calls it at its local port; None where it is off."""
    if local_port is None:
        return None
    token = settings.tokens[0] if settings.tokens else None
    return build(settings.rest, [address("127.0.0.1", local_port)], settings.tokens, token, health)


def build(
    settings: RestSettings,
    targets: Sequence[str],
    tokens: Sequence[str],
    upstream_token: str | None,
    health: Callable[[], Health] | None = None,
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
    return RestServer(settings, targets, tokens=tokens, upstream_token=upstream_token, health=health)
