"""Variables that only libraries read, and the proxy before a client: light, without the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rerank_grpc.config.targets import Proxy, proxy_before


def provide(variable: str, value: str) -> None:
    """Sets a variable that only a library reads, unless the operator has set it."""
    os.environ.setdefault(variable, value)


def provided(variable: str) -> str:
    """Returns a variable that only a library reads, as the operator has set it; "" if it is not set."""
    return os.environ.get(variable, "")


def quiet_libraries() -> None:
    """Keeps libraries from printing errors that are raised as well, with URLs; before their import."""
    provide("GRPC_VERBOSITY", "NONE")
    provide("HF_HUB_VERBOSITY", "critical")


def proxy_of(
    target: str, option: str | None = None, environment: Mapping[str, str] = os.environ
) -> Proxy | None:
    """Finds the proxy that gRPC reaches a target through; see :func:`targets.proxy_before`."""
    return proxy_before(target, environment, option)
