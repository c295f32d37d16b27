"""gRPC's credentials of the certificate in force."""

from __future__ import annotations

import grpc

from rerank_grpc.tls.pair import Pair
from rerank_grpc.tls.serving import Certificates


def credentials_of(certificates: Certificates | None) -> grpc.ServerCredentials | None:
    """Makes the credentials of one port, by which each new connection gets the pair in force.

    gRPC asks at the beginning of each handshake, on its own thread: the pair is there, and nothing is read or
    waited for. TLS is 1.2 or later, as gRPC has it. None without certificates.
    """
    if certificates is None:
        return None
    shown = certificates.pair

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        pair = certificates.pair
        if pair is shown:
            return None
        shown = pair
        return _configuration(pair)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        renewed,  # type: ignore[arg-type]  # None means no change
        require_client_authentication=certificates.names_callers,
    )


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], pair.client_ca)
