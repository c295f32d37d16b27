"""The file of tokens, and the token that this process sends."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rerank_grpc.access.entries import NOTHING, CallerEntry, Known, read_entries
from rerank_grpc.files.watched import WatchedFile

log = logging.getLogger(__name__)

_BEARER = re.compile("bearer ", re.IGNORECASE)
NOT_IN_CLEAR = "it holds no token that could be sent, but digests: write one as token = or in a line"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of callers' tokens, the entries that it held when it was read first, and what those may name."""

    path: Path
    entries: tuple[CallerEntry, ...]
    known: Known = NOTHING

    @classmethod
    def of(cls, path: Path, content: bytes, known: Known = NOTHING) -> TokenFile:
        """Reads a content; raises ValueError with an objection, which repeats no token."""
        return cls(path, read_entries(content, known), known)

    @property
    def sent(self) -> str | None:
        """The token that a client sends; None where the file has digests alone."""
        return first_in_clear(self.entries)


def first_in_clear(entries: tuple[CallerEntry, ...]) -> str | None:
    """Finds the first token in clear that has not expired, else the first of all; None without any."""
    now = time.time()
    held = [entry for entry in entries if entry.tokens]
    current = [entry for entry in held if entry.caller.expires is None or now < entry.caller.expires]
    return next((entry.tokens[0] for entry in [*current, *held]), None)


class OfFile:
    """Entries of a file, if there is one, which `take` gets when it changes, from `watch` to `close`."""

    def __init__(self, file: TokenFile | None, take: Callable[[tuple[CallerEntry, ...]], None]) -> None:
        self._watched: WatchedFile | None = None
        if file is not None:
            known = file.known
            self._watched = WatchedFile(file.path, lambda content: take(read_entries(content, known)))

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
        self.value = file.sent if file else token

    def _take(self, entries: tuple[CallerEntry, ...]) -> None:
        before, found = self.value, first_in_clear(entries)
        if found is None:
            raise ValueError(NOT_IN_CLEAR)
        self.value = found
        if self.value != before:
            log.info("the token for the servers was read again", extra={"event": "upstream_token_read"})


def split_bearer(authorization: str) -> tuple[str, str, str]:
    """Parts a text at its first "Bearer ", in any case, as str.partition does; the token comes last."""
    found = _BEARER.search(authorization)
    if found is None:
        return authorization, "", ""
    return authorization[: found.start()], found[0], authorization[found.end() :]
