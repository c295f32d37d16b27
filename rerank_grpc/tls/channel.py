"""The TLS of a channel, on the side of its caller: which CAs it trusts, which certificate it presents."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank_grpc.tls.pem import BadPem, FileContent, Pem, content_of, present, trust, trusting

ARGUMENTS = ("ca", "cert", "key")
# The CAs that a system trusts, where OpenSSL's own place for them is empty.
_SYSTEM_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class ChannelTls:
    """The TLS of a channel, as PEM; `ca` is None for gRPC's own list of public CAs.

    `place` says where the CAs come from.
    """

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    place: str = "the public CAs"

    def context(self) -> ssl.SSLContext:
        """Makes a context that trusts and presents the same, without a check of names and times."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        trust(context, self.ca)
        if self.cert is not None and self.key is not None:
            present(context, self.cert, self.key)
        context.set_alpn_protocols(["h2"])
        return context


@dataclass(frozen=True, slots=True)
class TlsSources:
    """Where a channel's TLS comes from: files, or PEM; without `ca` the CAs that this system trusts."""

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def ask_for_tls(self, switch: bool | None) -> bool:
        """Tells whether a channel is to be TLS: a CA or a certificate implies it; raises BadPem."""
        given = [name for name in (*ARGUMENTS, "server_name") if getattr(self, name) is not None]
        if switch is False and given:
            raise BadPem("tls", f"is off, and {given[0]} is for TLS: leave one of them out")
        if not switch and given == ["server_name"]:
            raise BadPem("server_name", "is for TLS: give tls or ca too")
        return bool(switch or given)

    def arguments(self) -> dict[str, Any]:
        """Makes the arguments of a client."""
        return {
            "tls": True,
            "ca": self.ca,
            "cert": self.cert,
            "key": self.key,
            "server_name": self.server_name,
        }

    def load(self, *, public: bool = False) -> ChannelTls:
        """Reads and checks it all; raises BadPem, or TypeError for what is neither path nor bytes.

        With `public` the list of public CAs that gRPC has counts, not that of the system.
        """
        if self.cert is None and self.key is not None:
            raise BadPem("key", "needs the certificate that it belongs to: give cert too")
        if self.cert is not None and self.key is None:
            raise BadPem("cert", "needs its private key: give key too")
        if self.server_name is not None and not _is_name(self.server_name):
            raise BadPem("server_name", "is no name of a host, as in rerank.internal")
        ca, place = self._authorities(public=public)
        cert = key = None
        if self.cert is not None and self.key is not None:
            cert, key = content_of("cert", self.cert), content_of("key", self.key)
            present(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert, key)
        return ChannelTls(ca, cert, key, self.server_name, place)

    def held(self) -> TlsSources:
        """Reads the files, which of a pipe nobody can do twice, and checks them; raises like `load`."""
        ca, cert, key = (
            None if given is None else content_of(name, given)
            for name, given in zip(ARGUMENTS, (self.ca, self.cert, self.key), strict=True)
        )
        held = TlsSources(ca, cert, key, self.server_name)
        held.load()
        return held

    def _authorities(self, *, public: bool) -> tuple[bytes | None, str]:
        """Reads the CAs, None for gRPC's own list, and says where they come from."""
        if self.ca is not None:
            ca = content_of("ca", self.ca)
            trusting("ca", ca)
            return ca, f"the CAs of {repr(ca.path) if isinstance(ca, FileContent) else 'the PEM of ca'}"
        own = ssl.get_default_verify_paths().cafile
        for path in () if public else (own, *_SYSTEM_FILES):
            if path is not None and os.path.isfile(path):
                return Path(path).read_bytes(), "the CAs that this system trusts"
        return None, "the public CAs"


def _is_name(text: str) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and bool(text) and " " not in text
