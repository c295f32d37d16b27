"""Which token a caller has sent, in all the forms that callers send it in."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from rerank_grpc.errors import Unauthenticated

HEADERS = ("authorization", "api-key", "x-api-key")
SCHEME = re.compile(r"bearer +", re.IGNORECASE)
TOKEN = re.compile(r"[!-~]+")


def token_of(headers: Headers) -> str | None:
    """Reads the token: `Authorization: Bearer T` in any case, T alone, Api-Key or x-api-key.

    None where there is none, or what is there can be no token. Raises
    Unauthenticated where one header comes twice.
    """
    for name in HEADERS:
        values = headers.getlist(name)
        if len(values) > 1:
            raise Unauthenticated(f"send one {name}, not several")
        if values:
            token = SCHEME.sub("", values[0].strip(), count=1)
            return token if TOKEN.fullmatch(token) else None
    return None


class TokenCheck:
    """Lets callers with one of several tokens in; without any, everybody.

    Tokens are kept and compared as digests, each against every one, so that
    the time tells nothing.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, token: str | None) -> None:
        """Raises Unauthenticated unless the token is one of those."""
        if not self._digests:
            return
        if token is None:
            raise Unauthenticated("send a token in a header: Authorization: Bearer TOKEN")
        digest = _digest(token)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated("the token is wrong")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
