"""Binds a gRPC server to an address or a Unix socket; refuses one that is taken."""

from __future__ import annotations

import grpc

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.sockets import OwnSocket, making_room, socket_path


def bind(
    server: grpc.Server, host: str, port: int, option: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Binds to an address, by TLS with `credentials`; returns the port. Raises ConfigurationError."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(target)
        return server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: the port is taken or the address is not this machine's; "
            f"choose another with {option}, or stop what listens there"
        ) from error


def bind_socket(server: grpc.Server, host: str, option: str) -> OwnSocket | None:
    """Binds to the socket that a host such as unix:/run/rerank.sock means; None where it is an address.

    Raises ConfigurationError.
    """
    path = socket_path(host)
    if path is None:
        return None
    try:
        with making_room(path):
            # gRPC itself would take the place of a living server's socket.
            server.add_insecure_port(f"unix:{path}")
            return OwnSocket(path)
    except ValueError as error:
        objection = str(error)
    except RuntimeError:
        objection = "gRPC cannot bind it: check the folder's rights"
    raise ConfigurationError(f"cannot listen on {host} ({option}): {objection}")
