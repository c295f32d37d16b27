"""The access tokens that a server accepts, for gRPC and REST."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable

# What an HTTP header and gRPC's metadata, of 8 KiB, can carry beside what else they hold.
TOKEN = re.compile(r"[!-~]{1,4096}")
_BEARER = re.compile("bearer ", re.IGNORECASE)


class AccessList:
    """A set of access tokens, kept as keyed digests: the time of a look-up tells nothing of a token."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._key = secrets.token_bytes(32)
        self._digests = frozenset(map(self._digest, tokens))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, token: str) -> bool:
        return self._digest(token) in self._digests

    def _digest(self, token: str) -> bytes:
        # Metadata may hold bytes that are no UTF-8; such a token is wrong, and no error.
        encoded = token.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(encoded, key=self._key, digest_size=32).digest()


def split_bearer(authorization: str) -> tuple[str, str, str]:
    """Parts a text at its first "Bearer ", in any case, as str.partition does; the token comes last."""
    found = _BEARER.search(authorization)
    if found is None:
        return authorization, "", ""
    return authorization[: found.start()], found[0], authorization[found.end() :]
