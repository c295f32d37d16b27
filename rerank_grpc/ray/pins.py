"""The release of Ray that this package was tried with, and the names of Serve's own that it relies on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib import metadata

from rerank_grpc.errors import ConfigurationError

# Private names change without notice, so no other minor release counts as tried.
TRIED = "2.60"
REMEDY = 'pip install "rerank-grpc[server,ray]"'

# The factory of handlers in a replica; with any other, calls come through Serve's proxy.
DIRECT_FACTORY = "_direct_ingress_service_handler_factory"
# Each name as MODULE:ATTRIBUTE, with what relies on it.
NAMES = {
    "ray.serve._private.grpc_util:gRPCGenericServer.add_registered_method_handlers": "requests stay bytes",
    f"ray.serve._private.replica:Replica.{DIRECT_FACTORY}": "the deadline, and errors of streams",
    "ray.serve._private.proxy:gRPCProxy.service_handler_factory": "the deadline in proxy mode",
    "ray.serve._private.proxy_request_response:gRPCStreamingType.UNARY_STREAM": "streams of answers",
    "ray.serve._private.constants:RAY_SERVE_ENABLE_HA_PROXY": "the mode",
    "ray.serve._private.constants:RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": "the limit of a reply",
    "ray.serve._private.constants:RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "a drain's length",
    "ray.serve._private.constants:PROXY_READY_CHECK_TIMEOUT_S": "a start on a busy machine",
    "ray.serve._private.constants:RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "a hung replica is left",
    "ray.serve._private.constants:RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "a hung replica is replaced",
}
# The attributes that an instance of gRPCGenericServer is given when it is made.
FACTORY = "service_handler_factory"
# Texts by which errors of Serve's own are told, in the modules that write them.
DEAD_REPLICA = "actor died"
FULL_REPLICA = "Request dropped due to backpressure"


def check_ray() -> str:
    """Returns the version of Ray; raises ConfigurationError where it is missing or was not tried."""
    version = installed_ray()
    if version is None:
        raise ConfigurationError(f"Ray is not installed: {REMEDY}")
    if not version.startswith(f"{TRIED}."):
        raise ConfigurationError(f"Ray {version} was not tried with this release, {TRIED} was: {REMEDY}")
    return version


def installed_ray() -> str | None:
    """Returns the version of the installed Ray; None without it."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return None


def missing_names() -> Iterator[str]:
    """Yields a line for each name of Serve's that is gone, with what relies on it."""
    for name, use in NAMES.items():
        module, _, path = name.partition(":")
        try:
            found: object = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            yield f"{name} is gone, and with it: {use}"
