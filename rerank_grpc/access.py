"""The access tokens that a server accepts, for gRPC and REST."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rerank_grpc.files.watched import WatchedFile

log = logging.getLogger(__name__)

# What an HTTP header and gRPC's metadata, of 8 KiB, can carry beside what else they hold.
TOKEN = re.compile(r"[!-~]{1,4096}")
BAD_TOKEN = "a token is empty, too long, or has characters beyond visible ASCII"
_BEARER = re.compile("bearer ", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of tokens, one a line, and those that it held when it was read first."""

    path: Path
    tokens: tuple[str, ...] = field(repr=False)


def tokens_of(content: bytes) -> tuple[str, ...]:
    """Reads the tokens of a file, one a line; raises ValueError with an objection, which repeats none."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    tokens = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, token in tokens:
        if not TOKEN.fullmatch(token):
            raise ValueError(f"line {number}: {BAD_TOKEN}")
    if not tokens:
        raise ValueError("it holds no token")
    return tuple(token for _, token in tokens)


class _OfFile:
    """Tokens of a file, if there is one, which `take` gets when it changes, from `watch` to `close`."""

    def __init__(self, file: TokenFile | None, take: Callable[[tuple[str, ...]], None]) -> None:
        self._watched = WatchedFile(file.path, lambda content: take(tokens_of(content))) if file else None

    def watch(self) -> None:
        """Begins to read the file again when it changes."""
        if self._watched is not None:
            self._watched.start()

    def close(self) -> None:
        """Reads the file no more."""
        if self._watched is not None:
            self._watched.stop()


class AccessList(_OfFile):
    """A set of access tokens, kept as keyed digests: the time of a look-up tells nothing of a token.

    `own` is accepted too: a token that this process makes, for itself to call its server.
    """

    def __init__(self, tokens: Iterable[str], file: TokenFile | None = None) -> None:
        super().__init__(file, self._take)
        self._key = secrets.token_bytes(32)
        self.own = secrets.token_urlsafe(32)
        self._fixed = frozenset(map(self._digest, tokens))
        self._own = self._digest(self.own)
        of_file = map(self._digest, file.tokens) if file else ()
        self._digests = self._fixed | frozenset(
            of_file
        )  # replaced as a whole, so that no reader needs a lock

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, token: str) -> bool:
        digest = self._digest(token)
        return digest in self._digests or digest == self._own

    def _take(self, tokens: tuple[str, ...]) -> None:
        before, self._digests = self._digests, self._fixed | frozenset(map(self._digest, tokens))
        if self._digests != before:
            count, new, gone = len(self._digests), len(self._digests - before), len(before - self._digests)
            counts = {"event": "tokens_read", "tokens": count, "new": new, "gone": gone}
            log.info("tokens read again: %d (%d new, %d gone)", count, new, gone, extra=counts)

    def _digest(self, token: str) -> bytes:
        # Metadata may hold bytes that are no UTF-8; such a token is wrong, and no error.
        encoded = token.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(encoded, key=self._key, digest_size=32).digest()


class SentToken(_OfFile):
    """The token that this process sends: the first of a file, read again when it changes, or a fixed one."""

    def __init__(self, token: str | None, file: TokenFile | None = None) -> None:
        super().__init__(file, self._take)
        self.value = file.tokens[0] if file else token

    def _take(self, tokens: tuple[str, ...]) -> None:
        before, self.value = self.value, tokens[0]
        if self.value != before:
            log.info("the token for the servers was read again", extra={"event": "upstream_token_read"})


def split_bearer(authorization: str) -> tuple[str, str, str]:
    """Parts a text at its first "Bearer ", in any case, as str.partition does; the token comes last."""
    found = _BEARER.search(authorization)
    if found is None:
        return authorization, "", ""
    return authorization[: found.start()], found[0], authorization[found.end() :]
