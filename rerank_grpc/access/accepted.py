"""The callers that a server accepts, by their tokens and by their certificates' names, for gRPC and REST."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote, unquote

from rerank_grpc.access.entries import LONGEST_TOKEN, RESERVED, CallerEntry, digest_of
from rerank_grpc.access.tokens import OfFile, TokenFile
from rerank_grpc.callers import Caller, Right
from rerank_grpc.errors import Unauthenticated

log = logging.getLogger(__name__)

# An expiry that is nearer than this is told when the file is read.
SOON_SECONDS = 7 * 86_400

# Of a caller that a certificate names, and the file of tokens does not.
CERTIFIED_RIGHTS = frozenset((Right.RERANK, Right.LIST))
BY_TOKEN = (
    "the caller of the certificate's name is known by its token alone: send that, "
    "or have the server's operator set certificate = true for the caller"
)
ALIKE = (
    "the certificate's name is that of a caller whose limits are set, but for capital letters or a last dot: "
    "have a certificate made with the very name"
)
NAMELESS = "the certificate names nobody: have one made with a name of URI, DNS or e-mail, or a common name"


class AccessList(OfFile):
    """Callers by their access tokens, kept as keyed digests: the time of a look-up tells nothing of a token.

    A token without a name is named by its place: token-1 for the first of `tokens`, line-1 for that in the
    file's first line. `own` is accepted too: a token that this process makes, to ask its server about models.

    With `by_certificate` a caller without a token is known by its certificate's name, which TLS has proved.
    """

    def __init__(
        self, tokens: Iterable[str], file: TokenFile | None = None, *, by_certificate: bool = False
    ) -> None:
        super().__init__(file, self._take)
        self.by_certificate = by_certificate
        # Makes the token by which REST passes on a call of a certificate's name; alone it has another one.
        self.passing: Callable[[str], str | None] = self.token_of
        self._key = secrets.token_bytes(32)
        self.own = secrets.token_urlsafe(32)
        self._own = self._by_digest([CallerEntry.of(Caller("rest", frozenset({Right.LIST})), [self.own])])
        numbered = enumerate(tokens, 1)
        self._fixed = self._by_digest(
            [CallerEntry.of(Caller(f"token-{n}"), [token]) for n, token in numbered]
        )
        entries = file.entries if file else ()
        # Each is replaced as a whole, so that no reader needs a lock.
        self._callers = self._by_digest(entries) | self._fixed
        self._names = _Names.of(entries)
        self.restricts = _restricts(entries)  # whether some caller may not call every model
        _tell_expiry(entries)

    def __len__(self) -> int:
        """Counts the tokens, and the file's callers that a certificate names."""
        return len(self._callers) + len(self._names.certified)

    def __bool__(self) -> bool:
        """Whether callers are known at all: by tokens or by certificates."""
        return self.by_certificate or bool(self._callers or self._names.certified)

    def __contains__(self, token: str) -> bool:
        return self.find(token) is not None

    def find(self, token: str) -> Caller | None:
        """Finds whose token this is, expired ones too; None where nobody has it."""
        if len(token) > LONGEST_TOKEN:
            return None
        digest = self._keyed(digest_of(token))
        return self._callers.get(digest) or self._own.get(digest) or self._passed_on(token)

    def certified(self, name: str) -> Caller:
        """Finds the caller of a certificate by its name; raises Unauthenticated where it names nobody.

        It does so too for the name of a caller that has a token alone, and for one that differs from a
        caller's in its capitals only, as names of hosts may: the limits would not hold.
        """
        names = self._names  # read once: the file may be read again meanwhile
        if not name:
            raise Unauthenticated(NAMELESS)
        if (caller := names.certified.get(name)) is not None:
            return caller
        if name in names.by_token or RESERVED.fullmatch(name):
            raise Unauthenticated(BY_TOKEN)
        if _folded(name) in names.folded:
            raise Unauthenticated(ALIKE)
        return Caller(name, CERTIFIED_RIGHTS)

    def token_of(self, name: str) -> str:
        """Makes the token by which REST passes on a call of a certificate's name to its own process's server.

        Nobody else can make one: it begins with `own`.
        """
        return f"{self.own}.{quote(name, safe='')}"

    def _passed_on(self, token: str) -> Caller | None:
        own, dot, name = token.partition(".")  # of `own`'s characters none is a dot
        if not self.by_certificate or not dot or self._keyed(digest_of(own)) not in self._own:
            return None
        return self.certified(unquote(name))

    def named(self, name: str) -> Caller | None:
        """Finds a caller of the file by the name that its certificate has; None where nobody has it."""
        return self._names.certified.get(name)

    def _by_digest(self, entries: Iterable[CallerEntry]) -> dict[bytes, Caller]:
        return {self._keyed(digest): entry.caller for entry in entries for digest in entry.digests}

    def _take(self, entries: tuple[CallerEntry, ...]) -> None:
        before = self._all()
        self._names = _Names.of(entries)
        self._callers = {**self._by_digest(entries), **self._fixed}
        self.restricts, after = _restricts(entries), self._all()
        new, gone = len(after.keys() - before), len(before.keys() - after)
        changed = sum(_told(before[key]) != _told(after[key]) for key in after.keys() & before)
        if new or gone or changed:
            counts = {"event": "tokens_read", "tokens": len(self), "new": new, "gone": gone}
            text = f"{new} new, {gone} gone" + (f", {changed} changed" if changed else "")
            log.info("tokens read again: %d (%s)", len(self), text, extra={**counts, "changed": changed})
            _tell_expiry(entries)

    def _all(self) -> dict[object, Caller]:
        return dict[object, Caller](chain(self._callers.items(), self._names.certified.items()))

    def _keyed(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._key, digest_size=32).digest()


class _Names(NamedTuple):
    """The callers of a file by name: those with a certificate, those whose token alone counts, and all."""

    certified: Mapping[str, Caller]
    by_token: frozenset[str]
    folded: frozenset[str]

    @classmethod
    def of(cls, entries: Iterable[CallerEntry]) -> _Names:
        """Collects them; a certificate must not give the rights of those by token, nor more."""
        found = {entry.caller.name: entry for entry in entries}
        certified = {name: entry.caller for name, entry in found.items() if entry.certified}
        return cls(certified, frozenset(found.keys() - certified), frozenset(map(_folded, found)))


def _folded(name: str) -> str:
    return name.casefold().rstrip(".")


def _restricts(entries: Iterable[CallerEntry]) -> bool:
    return any(entry.caller.models is not None for entry in entries)


def _told(caller: Caller) -> Caller:
    """Leaves out a name that only tells the place of a token."""
    return replace(caller, name="") if RESERVED.fullmatch(caller.name) else caller


def _tell_expiry(entries: Iterable[CallerEntry]) -> None:
    """Logs which callers' time is over, or soon will be."""
    now = time.time()
    for caller in (entry.caller for entry in entries):
        if caller.expires is None or caller.expires - now > SOON_SECONDS:
            continue
        over, date = caller.expires <= now, datetime.fromtimestamp(caller.expires, UTC).isoformat()
        text = "has expired on %s, and is refused" if over else "expires on %s"
        fields = {"event": "token_expires", "caller": caller.name, "expires": date}
        log.warning(f"the token of %s {text}", caller.name, date, extra=fields)
