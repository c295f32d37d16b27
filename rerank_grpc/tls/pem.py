"""Certificates and keys as PEM: read, checked and shown, with one line for what is wrong with one."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from rerank_grpc.files.obstacles import MOST_BYTES, Unfinished, obstacle
from rerank_grpc.units import in_bytes

Pem = str | os.PathLike[str] | bytes  # a file's path, or what it holds

# Without a check of times. OpenSSL has it since 1.1; Python gives it no name.
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)

_CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_LOCKED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: *4, *ENCRYPTED", re.MULTILINE)
_ROUNDS = 6  # that two parties of a handshake take turns; four are enough for every version of TLS


class BadPem(ValueError):
    """A certificate or key that cannot be used; the text ends a sentence about the `argument`."""

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(f"{argument}: {text}")
        self.argument = argument
        self.text = text


class MismatchedPair(BadPem, Unfinished):
    """A certificate and the key of another one: perhaps one of the two files is being replaced."""


class FileContent(bytes):
    """The content of a file, which errors still name by its path."""

    def __new__(cls, content: bytes, path: str) -> Self:
        made = super().__new__(cls, content)
        made.path = path
        return made

    path: str


def content_of(argument: str, given: Pem) -> bytes:
    """Reads a file once; raises BadPem, or TypeError for what is neither path nor bytes."""
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{argument}: a path, or PEM in bytes, not {type(given).__name__}")
    path = os.fspath(given)
    if "-----BEGIN" in path:
        raise BadPem(argument, "a str is a path: give PEM as bytes, by encode()")
    try:
        with open(path, "rb") as file:
            content = FileContent(file.read(MOST_BYTES + 1), path)
    except OSError as error:
        raise BadPem(argument, f"cannot read {path!r}: {obstacle(path, error)}") from None
    if len(content) > MOST_BYTES:
        raise objection(argument, content, f"it has more than {in_bytes(MOST_BYTES)}: name another file")
    return content


def objection(argument: str, pem: bytes, text: str, kind: type[BadPem] = BadPem) -> BadPem:
    """Makes an error about PEM: a file is named by its path; content is no part of a line."""
    return kind(argument, f"{pem.path!r}: {text}" if isinstance(pem, FileContent) else text)


def trusting(argument: str, pem: bytes) -> ssl.SSLContext:
    """Makes a caller's context that trusts some certificates, whatever a server's name; raises BadPem."""
    if not _CERTIFICATE.search(pem):
        raise objection(argument, pem, _no_pem("certificate", pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        trust(context, pem)
    except ssl.SSLError:
        text = "a certificate in it is damaged or cut off: copy it again, whole"
        raise objection(argument, pem, text) from None
    return context


def trust(context: ssl.SSLContext, pem: bytes | None) -> None:
    """Has a context trust certificates, or those of the system; raises ssl.SSLError."""
    # As gRPC does, it takes any certificate for a root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if pem is None:
        context.load_default_certs()
    else:  # any text may stand between the blocks of PEM, and Python takes ASCII alone
        context.load_verify_locations(cadata=pem.decode("ascii", "replace").replace("\ufffd", "?"))


def present(
    context: ssl.SSLContext, cert: bytes, key: bytes, arguments: Sequence[str] = ("cert", "key")
) -> None:
    """Has a context present a certificate; raises BadPem for what is wrong with it or its key."""
    trusting(arguments[0], cert)
    if _LOCKED.search(key):
        name = key.path if isinstance(key, FileContent) else "LOCKED"
        text = "the key needs a passphrase, which nobody could type: write it without one, by "
        raise objection(arguments[1], key, f"{text}openssl pkey -in {name} -out KEY")
    if not _KEY.search(key):
        raise objection(arguments[1], key, _no_pem("private key", key))
    try:
        with _as_path(cert) as cert_path, _as_path(key) as key_path:
            # Without a function for the passphrase OpenSSL would ask at the terminal.
            context.load_cert_chain(cert_path, key_path, password=lambda: "")
    except ssl.SSLError as error:
        raise _unusable(error, cert, key, arguments) from None


def shake_hands(server: ssl.SSLContext, caller: ssl.SSLContext) -> ssl.SSLObject:
    """Shakes hands within this process; returns the caller's end, or raises ssl.SSLError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    calling = caller.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    for _ in range(_ROUNDS):
        for end in (calling, answering):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    calling.do_handshake()  # raises where it still waits
    return calling


def certificate_of(cert: bytes, key: bytes) -> Mapping[str, Any]:
    """Decodes a certificate, in PEM, whose key is there, whatever its times; empty where that fails.

    The standard library decodes no certificate but another party's, hence a handshake with itself.
    """
    server, caller = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trusting("cert", cert)
    present(server, cert, key)
    caller.verify_flags |= NO_CHECK_TIME
    with suppress(ssl.SSLError):
        return shake_hands(server, caller).getpeercert() or {}
    return {}


def reason_of(error: ssl.SSLError) -> str:
    """Says in OpenSSL's words what an error is."""
    return (error.reason or "no reason is known").replace("_", " ").lower()


def _unusable(error: ssl.SSLError, cert: bytes, key: bytes, arguments: Sequence[str]) -> BadPem:
    """Finds which of the two OpenSSL refuses."""
    reason = reason_of(error)
    if "mismatch" in reason:
        of = f" {key.path!r}" if isinstance(key, FileContent) else ""
        text = f"the certificate does not fit the key{of}: give the key that it was made for, and have its "
        return objection(arguments[0], cert, f"{text}own certificate come first", MismatchedPair)
    if "too small" in reason or "too weak" in reason:
        text = f"the certificate is refused as too weak ({reason}): make one with a larger key"
        return objection(arguments[0], cert, text)
    text = "its private key is damaged, cut off or of no known kind: copy it again"
    return objection(arguments[1], key, text)


def _no_pem(kind: str, content: bytes) -> str:
    if not content.strip():
        return f"it is empty, where a {kind} in PEM is expected: copy it again"
    if kind == "certificate" and _KEY.search(content):
        return "it holds a key and no certificate: give the certificate"
    if kind == "private key" and _CERTIFICATE.search(content):
        return "it holds a certificate and no private key: give the key"
    line = f"-----BEGIN {kind.upper()}-----"
    return f"it holds no {kind} in PEM, a text with the line {line}: convert it by openssl"


@contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """Gives content the path of a file, which is all that Python's ssl takes: in memory, if it can."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("pem")
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{number}"
    else:
        import tempfile  # shutil and every codec come with it, and Linux needs none of them

        with tempfile.NamedTemporaryFile() as file:  # only its owner can read it
            file.write(content)
            file.flush()
            yield file.name
