"""The names in a certificate: those that a server is called by, and the one that it gives a caller."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

# In the scope of a request: the name in the caller's certificate, "" where it names nobody, else absent.
CERTIFICATE = "tls.name"
NAME_CHARACTERS = 256  # of a name that is one; a longer one, or one that cannot be printed, is none
# The kinds of a certificate's names as Python's ssl and gRPC's auth context call them, the first one wins.
_KINDS = (("URI", "peer_uri"), ("DNS", "peer_dns"), ("email", "peer_email"))
KEPT_NAMES = 1_024  # that were looked at: a look takes 15 µs, and each call asks
_COMMON_NAME, _PEM = "x509_common_name", "x509_pem_cert"


def name_in_context(context: Mapping[str, Iterable[bytes]]) -> str:
    """Finds the name in gRPC's auth context; "" without a certificate, or where it names nobody."""
    found = (_first(context.get(key, ())) for key in (*(key for _, key in _KINDS), _COMMON_NAME))
    name = next(filter(None, found), "")
    return "" if name and _was_cut(name, tuple(context.get(_PEM, ()))) else name


@lru_cache(KEPT_NAMES)
def _was_cut(name: str, certificates: tuple[bytes, ...]) -> bool:
    """Tells whether a name goes on behind a NUL in its certificate, where gRPC ends it.

    In DER nothing else follows a text as a NUL: no element begins with one.
    """
    ders = [ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")) for certificate in certificates]
    encodings = ("utf-8", "latin-1", "utf-16-be", "utf-32-be")  # of the types of text that names have
    cut = [f"{name}\0".encode(encoding, "replace") for encoding in encodings]
    return any(each in der for der in ders for each in cut)


def name_in_certificate(shown: Mapping[str, Any] | None) -> str:
    """Finds the name in what SSLObject.getpeercert returns; "" as `name_in_context`."""
    alternative: Sequence[tuple[str, str]] = (shown or {}).get("subjectAltName", ())
    for kind, _ in _KINDS:
        if name := _first(value.encode() for its, value in alternative if its == kind):
            return name
    subject = [part for parts in (shown or {}).get("subject", ()) for part in parts]
    return _first(value.encode() for key, value in subject if key == "commonName")


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


def _first(values: Iterable[bytes]) -> str:
    """Reads the first of some names; "" where that is of a form that no name has."""
    text = next(iter(values), b"").decode("utf-8", "replace")
    ok = len(text) <= NAME_CHARACTERS and text.isprintable() and "\ufffd" not in text
    return text if ok and text == text.strip() else ""


def _is_address(text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(text) == address
    return False
