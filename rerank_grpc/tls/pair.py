"""A server's certificate and its key: read once, and checked as a client would see them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rerank_grpc.tls.alerts import TellingContext
from rerank_grpc.tls.names import names_of
from rerank_grpc.tls.pem import (
    FileContent,
    content_of,
    objection,
    present,
    reason_of,
    shake_hands,
    trust,
    trusting,
)

# Numbers of X509_V_ERR, as OpenSSL's verify(1) has them.
_NOT_YET_VALID, _EXPIRED, _PURPOSE = 9, 10, 26
# How a public key begins that gRPC's BoringSSL has no signatures for: Ed25519, Ed448, P-521.
_NOT_OF_GRPC = tuple(
    map(
        bytes.fromhex,
        ("302a300506032b6570032100", "3043300506032b6571033a00", "301006072a8648ce3d020106052b81040023"),
    )
)
ROLES = ("--tls-cert", "--tls-key", "--tls-client-ca")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, and the authorities of callers' certificates, all in PEM.

    `client_ca` is None where callers need no certificate. `names` are those that the certificate is for, and
    `expires` is a time of time.time.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    names: tuple[str, ...]
    expires: float

    def __str__(self) -> str:
        """Says what the certificate is for, and until when."""
        return f"for {', '.join(self.names) or 'no name'}, until {self.end}"

    @property
    def end(self) -> str:
        """The end of the certificate's validity, as RFC 3339 writes it."""
        return datetime.fromtimestamp(self.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def context(self) -> ssl.SSLContext:
        """Makes the context of a server of HTTP/1.1."""
        context = _server_context(self.chain, self.key)
        context.set_alpn_protocols(["http/1.1"])
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            trust(context, self.client_ca)
        return context


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a server's TLS, in the order of ROLES, and what they held when they were read first."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    pair: Pair | None = field(default=None, compare=False)

    @property
    def paths(self) -> Sequence[Path]:
        """The files that are to be read, without a client CA where there is none."""
        return [path for path in (self.cert, self.key, self.client_ca) if path is not None]

    def read(self) -> Pair:
        """Reads the files, once; raises BadPem with what is wrong with one, and what to do."""
        return self.pair_of([content_of(*each) for each in zip(ROLES, self.paths, strict=False)])

    def pair_of(self, contents: Sequence[bytes]) -> Pair:
        """Checks the contents of the files, in the order of `paths`; raises BadPem."""
        chain, key, *rest = map(FileContent, contents, map(str, self.paths))
        shown = _seen(chain, _server_context(chain, key))
        for content in rest:
            if not trusting(ROLES[2], content).cert_store_stats()["x509_ca"]:
                text = "it holds no certificate of an authority, so no caller could ever come in: give the "
                raise objection(ROLES[2], content, f"{text}one that callers' certificates are signed by")
        expires = float(ssl.cert_time_to_seconds(str(shown["notAfter"])))
        # gRPC's servers take bytes themselves, and nothing derived from them.
        client_ca = bytes(rest[0]) if rest else None
        return Pair(bytes(chain), bytes(key), client_ca, names_of(shown), expires)


def readable_by_all(path: Path) -> bool:
    """Tells whether every user of the machine may read a file."""
    try:
        return bool(path.stat().st_mode & 0o004)
    except OSError:
        return False


def _server_context(chain: bytes, key: bytes) -> ssl.SSLContext:
    """Makes a server's context, of TLS 1.2 and later; raises BadPem."""
    context = TellingContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    present(context, chain, key, ROLES)
    return context


def _seen(chain: bytes, server: ssl.SSLContext) -> Mapping[str, Any]:
    """Decodes a server's certificate as a client does that trusts its chain; raises BadPem.

    Which other certificates clients trust is their own matter.
    """
    try:
        client_end = shake_hands(server, trusting(ROLES[0], chain))
    except ssl.SSLCertVerificationError as error:
        raise objection(ROLES[0], chain, _invalid(error)) from None
    except ssl.SSLError as error:
        text = f"no client can use the certificate ({reason_of(error)}): have a new one made"
        raise objection(ROLES[0], chain, text) from None
    der = client_end.getpeercert(binary_form=True) or b""
    if any(key_begins in der for key_begins in _NOT_OF_GRPC):
        text = "gRPC has no signatures for a key of Ed25519, Ed448 or P-521: make one of P-256 or RSA"
        raise objection(ROLES[0], chain, text)
    return client_end.getpeercert() or {}


def _invalid(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case number if number == _EXPIRED:
            return "the certificate, or one of its chain, has expired: renew it"
        case number if number == _NOT_YET_VALID:
            return "the certificate is not valid yet: wait for its time, or set this machine's clock"
        case number if number == _PURPOSE:
            return "the certificate is not for servers: have one made with serverAuth in extendedKeyUsage"
        case _:
            return f"clients refuse the certificate ({error.verify_message}): have a new one made"
