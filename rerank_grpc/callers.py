"""A caller: its name, and what it may do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rerank_grpc.errors import PermissionDenied, Unauthenticated


class Right(enum.Enum):
    """A caller may rerank, ask about models, or load and unload them."""

    RERANK = "rerank"
    LIST = "list"
    ADMIN = "admin"


EVERY_RIGHT = frozenset(Right)


class Counted(enum.Enum):
    """A caller's rate counts documents or tokens."""

    DOCUMENTS = "documents"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Rate:
    """How much a caller may send on average, and at once after a pause."""

    counted: Counted
    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller, by the name that logs and metrics have for it; equal names share a rate and a turn.

    `models` are the configured names that it may call, None for all. `queue_share` is the part of each
    model's queue that its calls may fill. `expires` is a time of time.time.
    """

    name: str = ""
    rights: frozenset[Right] = EVERY_RIGHT
    models: frozenset[str] | None = None
    rate: Rate | None = None
    queue_share: float = 1.0
    expires: float | None = None

    def require_current(self, now: float) -> None:
        """Raises Unauthenticated from `expires` on; `now` is of time.time."""
        if self.expires is not None and now >= self.expires:
            raise Unauthenticated(
                f"the token of {self.name} has expired: the server's operator makes another"
            )

    def require(self, right: Right) -> None:
        """Raises PermissionDenied without the right."""
        if right not in self.rights:
            raise PermissionDenied(
                f"{self._shown} lacks the right {right.value!r}: the server's operator gives it",
                metadata={"caller": self.name, "right": right.value},
            )

    def may_call(self, model: str) -> bool:
        """Tells whether a model, by its configured name, is this caller's."""
        return self.models is None or model in self.models

    def require_model(self, name: str) -> None:
        """Raises PermissionDenied where a model, by its configured name, is not this caller's.

        A caller of some models learns nothing of others: "", for a name that no model has, is refused alike.
        """
        if not self.may_call(name):
            raise PermissionDenied(
                f"{self._shown} may not call this model: ListModels tells those that it may",
                metadata={"caller": self.name},
            )

    @property
    def _shown(self) -> str:
        return self.name or "this caller"


ANYONE = Caller()  # whoever calls a server that knows no callers
NOBODY = Caller(rights=frozenset(), models=frozenset())  # whoever is not known to a server that knows callers
