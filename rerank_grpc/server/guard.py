"""The guard of the gRPC servers, and the one list of what each method needs or who may call it freely."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import grpc

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.tokens import split_bearer
from rerank_grpc.callers import ANYONE, NOBODY, Caller, Right
from rerank_grpc.errors import RerankError, Unauthenticated
from rerank_grpc.telemetry.records import Sink
from rerank_grpc.tls.names import name_in_context

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
# Tells the name of a connection's certificate, "" where it names nobody, None where there is none.
NameOf: TypeAlias = Callable[[], str | None]

MISSING = "send a token as metadata: authorization: Bearer TOKEN"
TWICE = "send one authorization, not several"
WRONG = "the token is wrong, or not of the form: Bearer TOKEN"

# What a caller needs for each method, by its name in records; None is public.
NEEDS: Mapping[str, Right | None] = {
    "Rerank": Right.RERANK,
    "StreamRerank": Right.RERANK,
    "ListModels": Right.LIST,
    "Health": Right.LIST,
    "LoadModel": Right.ADMIN,
    "UnloadModel": Right.ADMIN,
    "tei.Rerank": Right.RERANK,
    "tei.RerankStream": Right.RERANK,
    "tei.PredictPair": Right.RERANK,
    "tei.PredictPairStream": Right.RERANK,
    "tei.Info": Right.LIST,
    "kserve.ModelInfer": Right.RERANK,
    "kserve.ServerLive": Right.LIST,
    "kserve.ServerReady": Right.LIST,
    "kserve.ModelReady": Right.LIST,
    "kserve.ServerMetadata": Right.LIST,
    "kserve.ModelMetadata": Right.LIST,
    "kserve.ModelConfig": Right.LIST,
    "Check": None,
    "Watch": None,
    "ServerReflectionInfo": Right.LIST,
    "GetTopChannels": Right.ADMIN,
    "GetServers": Right.ADMIN,
    "GetServer": Right.ADMIN,
    "GetServerSockets": Right.ADMIN,
    "GetChannel": Right.ADMIN,
    "GetSubchannel": Right.ADMIN,
    "GetSocket": Right.ADMIN,
}
REFLECTION = "ServerReflectionInfo"
UNKNOWN_METHOD = "other"  # in records, of any path that no method has


class Guard:
    """Knows callers by their tokens, and what each method needs; any thread may call it, without a lock.

    A method that NEEDS does not name is an operator's. With `open_reflection` that is public too. A token
    that is sent has to be right; where none is, the certificate's name counts, if callers need
    certificates.
    """

    def __init__(self, accepted: AccessList, *, open_reflection: bool = False) -> None:
        self._accepted = accepted
        self._needs = {**NEEDS, REFLECTION: None} if open_reflection else NEEDS

    def is_public(self, method: str) -> bool:
        """Tells whether a method, by its name in records, is everybody's."""
        return method in self._needs and self._needs[method] is None

    def caller_by(self, metadata: Metadata | None, certificate: NameOf | None = None) -> Caller:
        """Finds who sent this metadata, over a connection with such a certificate; raises Unauthenticated."""
        values = [value for key, value in metadata or () if key == "authorization"]
        if not values and certificate is not None and self._accepted.by_certificate:
            return self._certified(certificate())
        if len(values) != 1:
            raise Unauthenticated(TWICE if values else MISSING)
        text = values[0].decode("utf-8", "replace") if isinstance(values[0], bytes) else values[0]
        before, scheme, token = split_bearer(text)
        caller = self._accepted.find(token) if scheme and not before else None
        if caller is None:
            raise Unauthenticated(WRONG)
        return caller

    def _certified(self, name: str | None) -> Caller:
        if name is None:
            raise Unauthenticated(MISSING)
        return self._accepted.certified(name)

    def admit(self, method: str, metadata: Metadata | None, certificate: NameOf | None = None) -> None:
        """Raises Unauthenticated or PermissionDenied where a call may not be answered.

        Without `certificate`, at a time when none can be seen, a call that may have one passes.
        """
        if self.is_public(method) or (certificate is None and self._may_be_certified(metadata)):
            return
        caller = self.caller_by(metadata, certificate)
        caller.require_current(time.time())
        if method != UNKNOWN_METHOD:
            caller.require(self._needs.get(method) or Right.ADMIN)

    def _may_be_certified(self, metadata: Metadata | None) -> bool:
        return self._accepted.by_certificate and all(key != "authorization" for key, _ in metadata or ())


@dataclass(frozen=True, slots=True)
class Edge:
    """The guard that all calls of a server pass, None where no callers are known, and the sinks."""

    sinks: Sequence[Sink] = ()
    guard: Guard | None = None

    def admit(self, method: str, context: grpc.ServicerContext) -> None:
        """Raises Unauthenticated or PermissionDenied where a call may not be answered."""
        if self.guard is not None:
            self.guard.admit(method, context.invocation_metadata(), partial(_name_of, context))

    def caller_of(self, context: grpc.ServicerContext) -> Caller:
        """Finds who calls: ANYONE where no callers are known, NOBODY where this one is not.

        A caller that is taken off the list while its request is awaited may do nothing, not everything.
        """
        if self.guard is None:
            return ANYONE
        try:
            return self.guard.caller_by(context.invocation_metadata(), partial(_name_of, context))
        except RerankError:
            return NOBODY


def _name_of(context: grpc.ServicerContext) -> str | None:
    """Finds the name in the certificate of a call's connection; None where there is no certificate."""
    shown = cast(Mapping[str, Iterable[bytes]], context.auth_context())  # of lists, which its stubs deny
    return name_in_context(shown) if "x509_pem_cert" in shown else None
