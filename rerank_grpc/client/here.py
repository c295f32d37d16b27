"""A client of the server of this machine, which is known by its own certificate instead of by a name."""

from __future__ import annotations

from dataclasses import replace

from rerank_grpc.client.errors import TlsError
from rerank_grpc.config.targets import endpoints_of
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.diagnosis import PROBE_SECONDS, certificate_served, probe, told
from rerank_grpc.tls.names import called_by


def named(target: str, sources: TlsSources, timeout: float) -> TlsSources:
    """Adds the name that the server's certificate is for, of which `sources.ca` is the chain, or one above.

    Connects once. Raises TlsError for a certificate that is not of that chain, or out of its time.
    """
    tls, (endpoint, *_) = sources.load(), endpoints_of(target)
    peer = probe(endpoint, tls, min(timeout, PROBE_SECONDS), any_name=True)
    if peer.problem is not None:
        raise TlsError(told(peer, target, tls), problem=peer.problem)
    return replace(sources, server_name=called_by(peer.certificate))


def believed(target: str, sources: TlsSources, timeout: float) -> TlsSources:
    """Takes the very certificate that the server shows for the one to trust; raises TlsError like `named`.

    Only for calls without a token or a text: whoever listens at the port is believed.
    """
    (endpoint, *_) = endpoints_of(target)
    shown = certificate_served(endpoint, min(timeout, PROBE_SECONDS))
    return sources if shown is None else named(target, replace(sources, ca=shown), timeout)
