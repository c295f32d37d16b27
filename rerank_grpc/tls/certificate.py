"""The names that a certificate is for, as the standard library decodes one."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rerank_grpc.tls.channel import NO_CHECK_TIME, load_pair

_ROUNDS = 4  # that two parties of a handshake take turns


def names_of(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists the hosts and addresses of a decoded certificate: the common name only where it has no others."""
    named = certificate.get("subjectAltName", ())
    names = tuple(name for kind, name in named if kind in ("DNS", "IP Address"))
    if names:
        return names
    subject = (pair for group in certificate.get("subject", ()) for pair in group)
    return tuple(value for field, value in subject if field == "commonName")


def fits(certificate: Mapping[str, Any], name: str) -> bool:
    """Tells whether a certificate is for a host or an address; * stands for the first part of a name."""
    wanted = name.strip("[]").rstrip(".").lower()
    with suppress(ValueError):
        address = ipaddress.ip_address(wanted)
        return any(_is_address(each, address) for each in names_of(certificate))
    rest = wanted.partition(".")[2]
    return any(each.lower() in (wanted, f"*.{rest}") for each in names_of(certificate))


def called_by(certificate: Mapping[str, Any]) -> str | None:
    """Chooses a name by which the server of a certificate can be called; None where it has none."""
    return next((name.replace("*", "any") for name in names_of(certificate)), None)


def certificate_of(cert: bytes, key: bytes) -> Mapping[str, Any]:
    """Decodes a certificate, in PEM, whose key is there: by a handshake with itself, within this process.

    The standard library decodes no certificate but another party's. Empty where that fails.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_pair(server, cert, key)
    client.check_hostname = False
    client.verify_flags = ssl.VerifyFlags(client.verify_flags | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN)
    client.verify_flags = ssl.VerifyFlags(client.verify_flags | NO_CHECK_TIME)
    client.load_verify_locations(cadata=cert.decode("ascii", "replace"))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    for _ in range(_ROUNDS):
        for side in (caller, answering):
            with suppress(ssl.SSLError):
                side.do_handshake()
    with suppress(ValueError):  # the handshake was not done
        return caller.getpeercert() or {}
    return {}


def _is_address(text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(text) == address
    return False
