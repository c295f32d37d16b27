"""Access tokens: their form, the file that holds them, and the one that this process sends."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
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


class OfFile:
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


class SentToken(OfFile):
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
