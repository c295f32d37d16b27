"""The name that a caller's certificate gives it, over gRPC and over HTTP alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# In the scope of a request: the name in the caller's certificate, "" where it names nobody, else absent.
CERTIFICATE = "tls.name"
NAME_CHARACTERS = 256  # of a name that is one; a longer one, or one that cannot be printed, is none
# The kinds of a certificate's names as Python's ssl and gRPC's auth context call them, the first one wins.
_KINDS = (("URI", "peer_uri"), ("DNS", "peer_dns"), ("email", "peer_email"))
_COMMON_NAME = "x509_common_name"


def name_in_context(context: Mapping[str, Iterable[bytes]]) -> str:
    """Finds the name in gRPC's auth context; "" without a certificate, or where it names nobody."""
    for _, key in _KINDS:
        if name := _first(context.get(key, ())):
            return name
    return _first(context.get(_COMMON_NAME, ()))


def name_in_certificate(shown: Mapping[str, Any] | None) -> str:
    """Finds the name in what SSLObject.getpeercert returns; "" as `name_in_context`."""
    alternative: Sequence[tuple[str, str]] = (shown or {}).get("subjectAltName", ())
    for kind, _ in _KINDS:
        if name := _first(value.encode() for its, value in alternative if its == kind):
            return name
    subject = [part for parts in (shown or {}).get("subject", ()) for part in parts]
    return _first(value.encode() for key, value in subject if key == "commonName")


def _first(values: Iterable[bytes]) -> str:
    """Reads the first of some names; "" where that is of a form that no name has."""
    text = next(iter(values), b"").decode("utf-8", "replace")
    ok = len(text) <= NAME_CHARACTERS and text.isprintable() and "\ufffd" not in text
    return text if ok and text == text.strip() else ""
