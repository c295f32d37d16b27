"""The callers that a server accepts, by their tokens, for gRPC and REST."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable
from urllib.parse import quote, unquote

from rerank_grpc.access.tokens import OfFile, TokenFile
from rerank_grpc.callers import Caller, Right
from rerank_grpc.errors import Unauthenticated

log = logging.getLogger(__name__)

# Of a caller that a certificate names, and the file of tokens does not.
CERTIFIED_RIGHTS = frozenset((Right.RERANK, Right.LIST))
NAMELESS = "the certificate names nobody: have one made with a name of URI, DNS or e-mail, or a common name"


class AccessList(OfFile):
    """Callers by their access tokens, kept as keyed digests: the time of a look-up tells nothing of a token.

    A token without a name is named by its place: token-1 for the first of `tokens`, line-1 for that of the
    file. `own` is accepted too: a token that this process makes, for itself to call its server.

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
        self._own = {self._digest(self.own): Caller("rest")}
        self._fixed = self._by_digest(tokens, "token")
        of_file = self._by_digest(file.tokens, "line") if file else {}
        self._callers = of_file | self._fixed  # replaced as a whole, so that no reader needs a lock

    def __len__(self) -> int:
        return len(self._callers)

    def __bool__(self) -> bool:
        """Whether callers are known at all: by tokens or by certificates."""
        return self.by_certificate or len(self) > 0

    def __contains__(self, token: str) -> bool:
        return self.find(token) is not None

    def find(self, token: str) -> Caller | None:
        """Finds whose token this is; None where nobody has it."""
        digest = self._digest(token)
        return self._callers.get(digest) or self._own.get(digest) or self._passed_on(token)

    def certified(self, name: str) -> Caller:
        """Finds the caller of a certificate by its name; raises Unauthenticated where it names nobody."""
        if not name:
            raise Unauthenticated(NAMELESS)
        return self.named(name) or Caller(name, CERTIFIED_RIGHTS)

    def named(self, name: str) -> Caller | None:
        """Finds the entry of a name in the file of tokens; None without one."""
        return None

    def token_of(self, name: str) -> str:
        """Makes the token by which REST passes on a call of a certificate's name to its own process's server.

        Nobody else can make one: it begins with `own`.
        """
        return f"{self.own}.{quote(name, safe='')}"

    def _passed_on(self, token: str) -> Caller | None:
        own, dot, name = token.partition(".")  # of `own`'s characters none is a dot
        if not self.by_certificate or not dot or self._digest(own) not in self._own:
            return None
        return self.certified(unquote(name))

    def _by_digest(self, tokens: Iterable[str], prefix: str) -> dict[bytes, Caller]:
        numbered = enumerate(tokens, 1)
        return {self._digest(token): Caller(f"{prefix}-{number}") for number, token in numbered}

    def _take(self, tokens: tuple[str, ...]) -> None:
        before, self._callers = self._callers, {**self._by_digest(tokens, "line"), **self._fixed}
        new, gone = len(self._callers.keys() - before), len(before.keys() - self._callers)
        if new or gone:
            counts = {"event": "tokens_read", "tokens": len(self._callers), "new": new, "gone": gone}
            log.info("tokens read again: %d (%d new, %d gone)", len(self), new, gone, extra=counts)

    def _digest(self, token: str) -> bytes:
        # Metadata may hold bytes that are no UTF-8; such a token is wrong, and no error.
        encoded = token.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(encoded, key=self._key, digest_size=32).digest()
