"""Why no TLS connection comes about: read from gRPC's words, or found by one connection of our own."""

from __future__ import annotations

import enum
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from rerank_grpc.tls.channel import ChannelTls
from rerank_grpc.tls.names import fits, names_of
from rerank_grpc.tls.pem import NO_CHECK_TIME, certificate_of

PROBE_SECONDS = 2.0
MOST_NAMES = 8  # of a certificate, in one line

# The client's preface of HTTP/2, and its SETTINGS, after which every server answers.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_ALERT = re.compile(r"ALERT_(UNKNOWN_CA|BAD_CERT|CERTIFICATE|UNSUPPORTED_CERT|ACCESS_DENIED|HANDSHAKE_FAIL)")
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|HTTP_REQUEST|HTTPS_PROXY_REQUEST|RECORD_LAYER_FAILURE")
_VERIFY = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([^:]*))?")
# What gRPC says of a connection that the other side has ended while it was being made, for whatever reason.
_ENDED = re.compile("socket closed|connection reset|broken pipe|http1|end of file|handshake", re.IGNORECASE)

Endpoint = tuple[str, int] | str  # a host and its port, or the path of a Unix socket


class TlsProblem(enum.StrEnum):
    """The reasons for which no TLS connection comes about."""

    UNKNOWN_CA = "unknown_ca"
    WRONG_NAME = "wrong_name"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    PLAINTEXT_PORT = "plaintext_port"
    TLS_PORT = "tls_port"
    CLIENT_CERTIFICATE_MISSING = "client_certificate_missing"
    CLIENT_CERTIFICATE_REFUSED = "client_certificate_refused"


class Peer(NamedTuple):
    """The finding of a connection: a problem, or none, and the server's certificate, if that was shown."""

    problem: TlsProblem | None = None
    certificate: Mapping[str, Any] = {}
    reason: str = ""  # in the words of the library


def read_status(text: str) -> Peer:
    """Reads the problem out of gRPC's own words about a connection; none where they do not tell one."""
    if verification := _VERIFY.search(text):
        reason = (verification[1] or "").strip()
        problem = TlsProblem.UNKNOWN_CA
        if "expired" in reason:
            problem = TlsProblem.EXPIRED
        elif "not yet valid" in reason:
            problem = TlsProblem.NOT_YET_VALID
        return Peer(problem, reason=reason)
    if "Hostname Verification" in text:
        return Peer(TlsProblem.WRONG_NAME)
    if _NO_TLS.search(text):
        return Peer(TlsProblem.PLAINTEXT_PORT)
    return Peer()


def is_worth_a_look(text: str) -> bool:
    """Tells whether a connection of our own may find out more than gRPC's words about one say."""
    problem = read_status(text).problem
    of_certificate = (TlsProblem.WRONG_NAME, TlsProblem.EXPIRED, TlsProblem.NOT_YET_VALID)
    return problem in of_certificate or (problem is None and _ENDED.search(text) is not None)


def probe(
    endpoint: Endpoint, tls: ChannelTls | None, timeout: float = PROBE_SECONDS, *, any_name: bool = False
) -> Peer:
    """Connects once, with the TLS of a channel or with None to one in plaintext, and tells what was found.

    With `any_name` the server's certificate may be for any name. Takes `timeout` seconds at the most, besides
    the time to resolve a name. Raises nothing: a server that is not there has no problem of this kind.
    """
    deadline = time.monotonic() + timeout
    try:
        with _connected(endpoint, timeout) as plain:
            if tls is None:
                return _secured(plain, deadline)
            return _examined(plain, tls, None if any_name else _name_of(endpoint, tls), deadline)
    except OSError:  # errors of TLS that tell nothing are some of them
        return Peer()


def certificate_served(endpoint: Endpoint, timeout: float = PROBE_SECONDS) -> bytes | None:
    """Fetches a server's certificate as PEM, believing it; None where none is shown."""
    context = _trusting_all()
    deadline = time.monotonic() + timeout
    with suppress(OSError), _connected(endpoint, timeout) as plain, _shaken(plain, context, deadline) as tls:
        if der := tls.getpeercert(binary_form=True):
            return ssl.DER_cert_to_PEM_cert(der).encode()
    return None


def told(peer: Peer, target: str, tls: ChannelTls | None) -> str:
    """Says in one line what keeps a target from being called, and what to do; `peer` has a problem."""
    tls = tls or ChannelTls()
    clock = f"this machine's clock says {_date(time.time())}"
    match peer.problem:
        case TlsProblem.UNKNOWN_CA:
            reason = f" ({peer.reason})" if peer.reason else ""
            text = (
                f"the server's certificate is signed by none of {tls.place}{reason}: name its CA by --ca, ca="
            )
        case TlsProblem.WRONG_NAME:
            text = _wrong_name(peer, target, tls)
        case TlsProblem.EXPIRED:
            date = _told_date(peer, "notAfter", " on ")
            text = f"the server's certificate has expired{date}: have it renewed ({clock})"
        case TlsProblem.NOT_YET_VALID:
            date = _told_date(peer, "notBefore", " before ") or " yet"
            text = f"the server's certificate is not valid{date}: set the clock that is wrong ({clock})"
        case TlsProblem.PLAINTEXT_PORT:
            text = "it speaks no TLS there: call it without --tls and --ca (tls=, ca=), or give it --tls-cert"
        case TlsProblem.TLS_PORT:
            text = (
                "it speaks TLS there: call it with --tls (tls=True), or --ca FILE (ca=) for a CA of your own"
            )
        case TlsProblem.CLIENT_CERTIFICATE_MISSING:
            text = "it wants a certificate from its callers: give yours by --cert and --key (cert=, key=)"
        case _:
            text = _refused(tls, clock)
    return f"{target}: {text}"


def _wrong_name(peer: Peer, target: str, tls: ChannelTls) -> str:
    names = names_of(peer.certificate)
    listed = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
    served = f"is for {listed}, not for" if names else "is for another name than"
    called = tls.server_name or target.rpartition(":")[0]
    remedy = "call it by its name, or give that by --server-name (server_name=)"
    return f"the server's certificate {served} {called}: {remedy}"


def _refused(tls: ChannelTls, clock: str) -> str:
    own: Mapping[str, Any] = {}
    if tls.cert is not None and tls.key is not None:
        own = certificate_of(tls.cert, tls.key)
    if _seconds(own, "notAfter", time.time()) < time.time():
        date = _told_date(Peer(None, own), "notAfter", " on ")
        return f"the certificate of --cert (cert=) has expired{date}: have it renewed ({clock})"
    named = f", for {', '.join(names_of(own))}," if own else ""
    remedy = "give one by --cert (cert=) whose CA is among its --tls-client-ca"
    return f"it refuses the caller's certificate{named} as of a CA that it does not know: {remedy}"


def _examined(plain: socket.socket, tls: ChannelTls, name: str | None, deadline: float) -> Peer:
    """Shakes hands as the channel does, and looks whether the server goes on after that."""
    context = tls.context()
    context.verify_flags |= NO_CHECK_TIME
    certificate: Mapping[str, Any] = {}
    try:
        with _shaken(plain, context, deadline, name) as secure:
            certificate = secure.getpeercert() or {}
            if problem := _objection(certificate, name):
                return Peer(problem, certificate)
            secure.sendall(_PREFACE)
            if secure.recv(1):
                return Peer(None, certificate)
    except ssl.SSLCertVerificationError as error:
        return Peer(TlsProblem.UNKNOWN_CA, reason=error.verify_message)
    except ssl.SSLError as error:
        if _NO_TLS.search(error.reason or ""):
            return Peer(TlsProblem.PLAINTEXT_PORT)
        if not certificate and not _ALERT.search(error.reason or ""):
            return Peer()
    except ConnectionError:
        if not certificate:
            return Peer()
    # In TLS 1.3 a server looks at the caller's certificate last, and ends the connection for a bad one.
    missing = tls.cert is None
    problem = TlsProblem.CLIENT_CERTIFICATE_MISSING if missing else TlsProblem.CLIENT_CERTIFICATE_REFUSED
    return Peer(problem, certificate)


def _secured(plain: socket.socket, deadline: float) -> Peer:
    """Looks whether the other side answers in TLS, by its certificate or by refusing ours."""
    try:
        with _shaken(plain, _trusting_all(), deadline):
            return Peer(TlsProblem.TLS_PORT)
    except ssl.SSLError as error:
        return Peer(TlsProblem.TLS_PORT if "ALERT" in (error.reason or "") else None)


def _objection(certificate: Mapping[str, Any], name: str | None) -> TlsProblem | None:
    now = time.time()
    if _seconds(certificate, "notAfter", now) < now:
        return TlsProblem.EXPIRED
    if _seconds(certificate, "notBefore", now) > now:
        return TlsProblem.NOT_YET_VALID
    if name is not None and not fits(certificate, name):
        return TlsProblem.WRONG_NAME
    return None


def _connected(endpoint: Endpoint, timeout: float) -> socket.socket:
    if not isinstance(endpoint, str):
        return socket.create_connection(endpoint, timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect("\0" + endpoint[1:] if endpoint.startswith("@") else endpoint)
    except OSError:
        connection.close()
        raise
    return connection


def _shaken(
    plain: socket.socket, context: ssl.SSLContext, deadline: float, name: str | None = None
) -> ssl.SSLSocket:
    plain.settimeout(max(deadline - time.monotonic(), 0.001))
    return context.wrap_socket(plain, server_hostname=name or "localhost")


def _trusting_all() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _name_of(endpoint: Endpoint, tls: ChannelTls) -> str:
    """Names the server as gRPC does, which calls that of a Unix socket localhost."""
    return tls.server_name or ("localhost" if isinstance(endpoint, str) else endpoint[0])


def _seconds(certificate: Mapping[str, Any], field: str, otherwise: float) -> float:
    text: str | None = certificate.get(field)
    return otherwise if text is None else ssl.cert_time_to_seconds(text)


def _told_date(peer: Peer, field: str, before: str) -> str:
    return f"{before}{_date(ssl.cert_time_to_seconds(peer.certificate[field]))}" if peer.certificate else ""


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
