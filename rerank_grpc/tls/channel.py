"""The TLS of a channel, on the side of its caller: which CAs it trusts, which certificate it presents."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.files.watched import MOST_BYTES
from rerank_grpc.units import in_bytes

Pem = str | os.PathLike[str] | bytes  # a file's path, or what it holds

# Without a check of times. OpenSSL has it since 1.1; Python gives it no name.
NO_CHECK_TIME = 0x200000

ARGUMENTS = ("ca", "cert", "key")
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY_END = b"PRIVATE KEY-----"
_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
# The CAs that a system trusts, where OpenSSL's own place for them is empty.
_SYSTEM_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class BadCertificate(ValueError):
    """A certificate or key that cannot be used; the text ends a sentence about the `argument`."""

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(f"{argument}: {text}")
        self.argument = argument
        self.text = text


class FileContent(bytes):
    """The content of a file, which errors still name by its path."""

    def __new__(cls, content: bytes, path: str) -> Self:
        made = super().__new__(cls, content)
        made.path = path
        return made

    path: str


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
        # As gRPC does, it takes any certificate of a file for a root.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if self.ca is not None:
            context.load_verify_locations(cadata=self.ca.decode("ascii", "replace"))
        else:
            context.load_default_certs()
        if self.cert is not None and self.key is not None:
            load_pair(context, self.cert, self.key)
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
        """Tells whether a channel is to be TLS: a CA or a certificate implies it; raises BadCertificate."""
        given = [name for name in (*ARGUMENTS, "server_name") if getattr(self, name) is not None]
        if switch is False and given:
            raise BadCertificate("tls", f"is off, and {given[0]} is for TLS: leave one of them out")
        if not switch and given == ["server_name"]:
            raise BadCertificate("server_name", "is for TLS: give tls or ca too")
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
        """Reads and checks it all; raises BadCertificate, or TypeError for what is neither path nor bytes.

        With `public` the list of public CAs that gRPC has counts, not that of the system.
        """
        if self.cert is None and self.key is not None:
            raise BadCertificate("key", "needs the certificate that it belongs to: give cert too")
        if self.cert is not None and self.key is None:
            raise BadCertificate("cert", "needs its private key: give key too")
        if self.server_name is not None and not _is_name(self.server_name):
            raise BadCertificate("server_name", "is no name of a host, as in rerank.internal")
        ca = _authorities(self.ca, public=public)
        place = f"the CAs of {_named('ca', self.ca)}"
        cert = key = None
        if self.cert is not None and self.key is not None:
            cert, key = _certificates("cert", self.cert), _private_key(self.key)
            _check_pair(cert, key)
        if self.ca is None:
            place = "the CAs that this system trusts" if ca else "the public CAs"
        return ChannelTls(ca, cert, key, self.server_name, place)

    def held(self) -> TlsSources:
        """Reads the files, which of a pipe nobody can do twice, and checks them; raises like `load`."""
        ca, cert, key = (
            None if given is None else _content(name, given)
            for name, given in zip(ARGUMENTS, (self.ca, self.cert, self.key), strict=True)
        )
        held = TlsSources(ca, cert, key, self.server_name)
        held.load()
        return held


def _authorities(given: Pem | None, *, public: bool) -> bytes | None:
    if given is not None:
        return _certificates("ca", given)
    if public:
        return None
    own = ssl.get_default_verify_paths().cafile
    for path in (own, *_SYSTEM_FILES):
        if path is not None and os.path.isfile(path):
            return Path(path).read_bytes()
    return None


def _certificates(argument: str, given: Pem) -> bytes:
    """Reads one certificate or more, as PEM."""
    pem, named = _content(argument, given), _named(argument, given)
    if _CERTIFICATE not in pem:
        what = "a private key, and " if _KEY_END in pem else ""
        raise BadCertificate(argument, f"{named} holds {what}no certificate as PEM ({_CERTIFICATE.decode()})")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "replace"))
    except ssl.SSLError:
        raise BadCertificate(argument, f"{named} holds a certificate that cannot be read") from None
    return pem


def _private_key(given: Pem) -> bytes:
    pem, named = _content("key", given), _named("key", given)
    if _KEY_END not in pem:
        what = "a certificate, and " if _CERTIFICATE in pem else ""
        raise BadCertificate(
            "key", f"{named} holds {what}no private key as PEM (-----BEGIN PRIVATE KEY-----)"
        )
    if any(mark in pem for mark in _ENCRYPTED):
        text = "holds a key with a passphrase, which nobody could type: decrypt it by `openssl pkey`"
        raise BadCertificate("key", f"{named} {text}")
    return pem


def _check_pair(cert: bytes, key: bytes) -> None:
    """Raises BadCertificate for a key that is not the certificate's."""
    try:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = "does not belong to the certificate of cert: the file's first one counts"
        else:
            text = "cannot be read, or does not belong to the certificate of cert"
        raise BadCertificate("key", text) from None


def _content(argument: str, given: Pem) -> bytes:
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{argument}: a path, or PEM in bytes, not {type(given).__name__}")
    text = os.fspath(given)
    if "-----BEGIN" in text:
        raise BadCertificate(argument, "a str is a path: give PEM as bytes, by encode()")
    try:
        with open(text, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadCertificate(argument, f"cannot read {text!r}: {obstacle(text, error)}") from None
    if len(content) > MOST_BYTES:
        raise BadCertificate(argument, f"{text!r} has more than {in_bytes(MOST_BYTES)}")
    return FileContent(content, text)


def _named(argument: str, given: Pem | None) -> str:
    """Names what is given: a file by its path; PEM has no name, and its content is no part of a line."""
    if isinstance(given, FileContent):
        return repr(given.path)
    return f"the PEM of {argument}" if given is None or isinstance(given, bytes) else repr(os.fspath(given))


def _is_name(text: str) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and bool(text) and " " not in text


def load_pair(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Has a context present a certificate; its own functions take files alone."""
    with _in_memory(cert + b"\n") as certificate, _in_memory(key) as private:
        context.load_cert_chain(certificate, private, password=lambda: b"")


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Gives content the path of a file: one without a name where the system has such."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("pem"), "w+b") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
