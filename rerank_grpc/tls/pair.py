"""A server's certificate and its key: read once, and checked as a client would see them."""

from __future__ import annotations

import os
import re
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.files.watched import MOST_BYTES, Unfinished
from rerank_grpc.tls.alerts import TellingContext
from rerank_grpc.units import in_bytes

_CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_LOCKED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: *4, *ENCRYPTED", re.MULTILINE)
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


class BadFile(ValueError):
    """A file that TLS cannot be served with; `role` is the option that names it."""

    def __init__(self, role: str, path: Path, objection: str) -> None:
        super().__init__(f"{str(path)!r}: {objection}")
        self.role = role


class Mismatch(BadFile, Unfinished):
    """A certificate and the key of another one: perhaps one of the two files is being replaced."""


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
            # As gRPC does, it takes any certificate of the file for a root.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(cadata=_text(self.client_ca))
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
        """Reads the files, once; raises BadFile with what is wrong with one, and what to do."""
        return self.pair_of([_content(*each) for each in zip(ROLES, self.paths, strict=False)])

    def pair_of(self, contents: Sequence[bytes]) -> Pair:
        """Checks the contents of the files, in the order of `paths`; raises BadFile."""
        chain, key, *rest = contents
        if not _CERTIFICATE.search(chain):
            raise BadFile(ROLES[0], self.cert, _no_pem("certificate", chain))
        if _LOCKED.search(key):
            text = "the key needs a passphrase, which a server cannot ask for: write it without one, by "
            raise BadFile(ROLES[1], self.key, f"{text}openssl pkey -in {self.key} -out KEY")
        if not _KEY.search(key):
            raise BadFile(ROLES[1], self.key, _no_pem("private key", key))
        names, expires = self._shown(chain, key)
        for content in rest:
            self._check_authorities(content)
        return Pair(chain, key, next(iter(rest), None), names, expires)

    def _shown(self, chain: bytes, key: bytes) -> tuple[tuple[str, ...], float]:
        """Finds the names and the end of a certificate by a handshake, as a client does."""
        try:
            server = _server_context(chain, key)
        except ssl.SSLError as error:
            raise self._unusable(error, chain, key) from None
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        # The chain's own certificates are trusted: who else trusts them is the clients' matter.
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            client.load_verify_locations(cadata=_text(chain))
            names, expires, certificate = _seen_by(client, server)
        except ssl.SSLCertVerificationError as error:
            raise BadFile(ROLES[0], self.cert, _invalid(error)) from None
        except ssl.SSLError as error:
            text = f"no client can use the certificate ({_reason(error)}): have a new one made"
            raise BadFile(ROLES[0], self.cert, text) from None
        if any(key_begins in certificate for key_begins in _NOT_OF_GRPC):
            text = "gRPC has no signatures for a key of Ed25519, Ed448 or P-521: make one of P-256 or RSA"
            raise BadFile(ROLES[0], self.cert, text)
        return names, expires

    def _unusable(self, error: ssl.SSLError, chain: bytes, key: bytes) -> BadFile:
        """Finds which of the two files OpenSSL refuses."""
        if "MISMATCH" in (error.reason or ""):
            text = f"the certificate does not fit the key {str(self.key)!r}: give the key that it "
            text += "was made for, and have the server's own certificate come first"
            return Mismatch(ROLES[0], self.cert, text)
        if "TOO_SMALL" in (error.reason or "") or "TOO_WEAK" in (error.reason or ""):
            text = (
                f"clients refuse the certificate as too weak ({_reason(error)}): make one with a larger key"
            )
            return BadFile(ROLES[0], self.cert, text)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_text(chain))
        except ssl.SSLError:
            text = "its certificate is damaged or cut off: copy it again, whole"
            return BadFile(ROLES[0], self.cert, text)
        return BadFile(
            ROLES[1], self.key, "its private key is damaged, cut off or of no known kind: copy it again"
        )

    def _check_authorities(self, content: bytes) -> None:
        assert self.client_ca is not None
        if not _CERTIFICATE.search(content):
            raise BadFile(ROLES[2], self.client_ca, _no_pem("certificate", content))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_verify_locations(cadata=_text(content))
        except ssl.SSLError:
            text = "a certificate in it is damaged or cut off: copy it again, whole"
            raise BadFile(ROLES[2], self.client_ca, text) from None
        if not context.cert_store_stats()["x509_ca"]:
            text = "it holds no certificate of an authority, so no caller could ever come in: give the one "
            raise BadFile(ROLES[2], self.client_ca, f"{text}that callers' certificates are signed by")


def readable_by_all(path: Path) -> bool:
    """Tells whether every user of the machine may read a file."""
    try:
        return bool(path.stat().st_mode & 0o004)
    except OSError:
        return False


def _content(role: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadFile(role, path, f"it cannot be read: {obstacle(path, error)}") from None
    if len(content) > MOST_BYTES:
        raise BadFile(role, path, f"it has more than {in_bytes(MOST_BYTES)}: name another file")
    return content


def _no_pem(kind: str, content: bytes) -> str:
    if not content.strip():
        return f"it is empty, where a {kind} in PEM is expected: copy it again"
    if kind == "certificate" and _KEY.search(content):
        return "it holds a key and no certificate: name the file of the certificate"
    if kind == "private key" and _CERTIFICATE.search(content):
        return "it holds a certificate and no private key: name the file of the key"
    line = f"-----BEGIN {kind.upper()}-----"
    return f"it holds no {kind} in PEM, a text with the line {line}: convert it by openssl"


def _server_context(chain: bytes, key: bytes) -> ssl.SSLContext:
    """Makes a server's context, of TLS 1.2 and later; raises ssl.SSLError."""
    context = TellingContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    with _as_path(chain) as chain_path, _as_path(key) as key_path:
        # Without a function for the passphrase OpenSSL would ask at the terminal.
        context.load_cert_chain(chain_path, key_path, password=lambda: "")
    return context


@contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """Gives a content that was read a path, which is all that Python's ssl takes: in memory, if it can."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("tls", os.MFD_CLOEXEC)
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{number}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # only its owner can read it
            file.write(content)
            file.flush()
            yield file.name


def _seen_by(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[tuple[str, ...], float, bytes]:
    """Shakes hands in memory; returns the shown certificate's names, its end, and itself in DER."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    ]
    left = list(ends)
    while left:
        for end in left[::-1]:
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
    shown = ends[1].getpeercert() or {}
    names = [str(entry[1]) for entry in shown.get("subjectAltName", ())]
    expires = float(ssl.cert_time_to_seconds(str(shown["notAfter"])))
    return tuple(names), expires, ends[1].getpeercert(binary_form=True) or b""


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


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "no reason is known").replace("_", " ").lower()


def _text(pem: bytes) -> str:
    """Decodes PEM, which may have any text between its blocks, as ssl takes it: ASCII."""
    return pem.decode("ascii", "replace").replace("\ufffd", "?")
