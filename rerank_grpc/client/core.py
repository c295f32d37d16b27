"""The common half of both clients: settings, calls, attempts, streams; the shells do the I/O."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from rerank_grpc import errors
from rerank_grpc.client import arguments
from rerank_grpc.client.arguments import CallOptions, DocumentLike, RerankOptions, check_type, text
from rerank_grpc.client.channel import ChannelOption, Replica, Replicas, pings, replicas_of
from rerank_grpc.client.errors import (
    JITTER,
    IncompleteStream,
    ServerUnavailable,
    asked_delay,
    exception_of,
)
from rerank_grpc.client.security import Security
from rerank_grpc.config.targets import DEFAULT_PORT
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.pem import Pem
from rerank_grpc.types import (
    Health,
    ModelInfo,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    State,
)
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages
from rerank_grpc.wire.status import Failure, read_failure

DEFAULT_TARGET = f"localhost:{DEFAULT_PORT}"
# gRPC cuts a policy of more than five attempts down to five.
MAX_RETRIES = 4
# The interval of wait_until_ready's questions, and the errors after which it asks again.
READY_POLL_SECONDS = 0.25
# It waits so long before it looks whether TLS is the reason, which gRPC tells no call that waits.
READY_LOOK_SECONDS = 1.0
NOT_YET = (ServerUnavailable, errors.ShuttingDown, errors.DeadlineExceeded)

# A request that every server of the contract refuses, whatever its model is doing.
NOTHING = pb.RerankRequest()
# How long an error may be looked into.
LOOK_SECONDS = 2.0

Metadata = tuple[tuple[str, str], ...]
Reply = TypeVar("Reply")
_Stream = TypeVar("_Stream")


class Rpc(NamedTuple, Generic[Reply]):
    """A call with one reply: the stub's method, the message to send, and the reader of the reply."""

    method: str
    message: Message | bytes
    read: Callable[[Any], Reply]


def rerank(request: RerankRequest) -> Rpc[RerankResponse]:
    """Makes the call of Rerank; raises InvalidRequest for a value that no message can hold."""
    return Rpc("Rerank", messages.request_to(pb.RerankRequest, request), messages.response_from)


def list_models() -> Rpc[tuple[ModelInfo, ...]]:
    """Makes the call of ListModels."""
    return Rpc("ListModels", pb.ListModelsRequest(), messages.models_from)


def health(model: str | None) -> Rpc[Health]:
    """Makes the call of Health; None and "" are the default model."""
    return Rpc("Health", messages.health_request(text("model", model or "")), messages.health_from)


def ask(method: Any, message: object, **options: object) -> Any:
    """Makes one attempt of a blocking call."""
    return method(message, **options)


def serving(service: str) -> Rpc[bool]:
    """Makes the call of grpc.health.v1.Health/Check; "" is the server as a whole."""
    return Rpc("Check", messages.check_request(text("service", service)), messages.is_serving)


def relay(method: str, message: bytes) -> Rpc[bytes]:
    """Makes a call of RerankService whose request is serialized already; its reply stays so."""
    return Rpc(f"{method}Bytes", message, bytes)


class BaseClient(Generic[_Stream]):
    """The settings of a client, checked when it is made, and the methods that the shells share."""

    def __init__(
        self,
        target: str | Iterable[str] = DEFAULT_TARGET,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        hang_timeout: float | None = None,
        tls: bool | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        server_name: str | None = None,
        credentials: object | None = None,
        options: Sequence[ChannelOption] = (),
    ) -> None:
        """Makes a client; raises TypeError or ValueError, naming the argument.

        A `target` without a port has the default one; this machine is called without a proxy. Of several
        targets each call goes to the one with the fewest calls of this client, and is tried again at
        another. `timeout` is the deadline of a call in seconds, all its attempts together. `retries` is the
        number of further attempts that a call may take, 0 to 4. With a `hang_timeout` of 2 seconds or more a
        server that hangs is left after twice that, and its calls are tried again. `options` are gRPC channel
        arguments and win over the client's own.

        `tls` trusts the CAs of this system, `ca` others; `cert` and `key` are what a server of mutual TLS
        wants. These three are paths, or PEM as bytes, and mean TLS by themselves. `server_name` is the name
        of the server's certificate, if not the target's. `credentials` are gRPC's own (a
        grpc.ChannelCredentials), in place of all these.
        """
        if not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
            raise ValueError(f"retries: 0 to {MAX_RETRIES}")
        self._timeout = seconds(timeout)
        self._retries = retries
        own = _metadata(token)
        # A function: the token must not show in a description of the client.
        self._merged: Callable[[Mapping[str, str]], Metadata] = lambda call: tuple({**own, **call}.items())
        security = Security.of(tls, TlsSources(ca, cert, key, server_name), credentials)
        settings = [*pings(hang_timeout), *security.options, *options]
        self._replicas = replicas_of(target, retries, security, settings)
        self._closed = False
        self._begin()

    def stream_rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        **options: Unpack[RerankOptions],
    ) -> _Stream:
        """Scores documents and yields each result as it is scored; takes the options of `rerank`.

        The deadline counts from here; the call is sent when the first result is asked for.
        """
        request, call = arguments.rerank_request(query, documents, model, top_n, **options)
        return self.stream(request, **call)

    def stream(self, request: RerankRequest, **call: Unpack[CallOptions]) -> _Stream:
        """Streams the results of a request: `stream_rerank` without its checks of types."""
        message = messages.request_to(pb.StreamRerankRequest, request)
        return self._results(message, self._attempts(**call))

    def _begin(self) -> None:
        """Opens the channel of a client that can do so before its first call."""

    def _results(self, message: pb.StreamRerankRequest, attempts: Attempts) -> _Stream:
        raise NotImplementedError

    def _attempts(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        patient: bool = False,
    ) -> Attempts:
        timeout = self._timeout if timeout is None else seconds(timeout)
        merged = self._merged(metadata or {})
        return Attempts(self._replicas, self._retries, time.monotonic() + timeout, merged, patient=patient)

    def _not_ready(self) -> errors.DeadlineExceeded:
        """Makes the error of a wait in vain, which a proxy may be the reason for."""
        proxy = self._replicas.first.proxy
        return errors.DeadlineExceeded(f"the model was not ready in time{f' ({proxy})' if proxy else ''}")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")


def seconds(timeout: float) -> float:
    """Checks a timeout: more than 0 seconds, finite."""
    check_type("timeout", timeout, int | float, "seconds")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout: more than 0 seconds and finite, not {timeout}")
    return float(timeout)


class Attempts:
    """One call's attempts, all within one deadline of time.monotonic and with the same metadata.

    A `patient` call waits as often as it is refused with a time to come back, as far as the deadline allows.
    """

    def __init__(
        self, replicas: Replicas, retries: int, deadline: float, metadata: Metadata, *, patient: bool = False
    ) -> None:
        self.metadata = metadata
        self._replicas = replicas
        self._deadline = deadline
        self._retries = self._retries_left = retries
        self._patient = patient
        self._refusal: Failure | None = None
        self.committed = False

    @property
    def remaining(self) -> float:
        """The seconds left for the next attempt, never below zero."""
        return max(self._deadline - time.monotonic(), 0.0)

    @property
    def looking(self) -> float:
        """The seconds for which an error may be looked into."""
        return min(self.remaining, LOOK_SECONDS)

    def of_a_part(self) -> Attempts:
        """Makes the attempts of one part of a call: of the same deadline, and patient."""
        return Attempts(self._replicas, self._retries, self._deadline, self.metadata, patient=True)

    def commit(self) -> None:
        """Rules out another attempt, because a part of the answer has been handed out."""
        self._retries_left = 0
        self._refusal = None
        self.committed = True

    def delay_after(self, error: grpc.RpcError, replica: Replica) -> float:
        """Tells how many seconds to wait before the next attempt, or raises the failure's exception."""
        trailers: Any = error.trailing_metadata()  # pairs, or None
        failure = read_failure(error.code(), error.details(), trailers)
        timed_out = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and not failure.described
        if timed_out and self._refusal is not None:
            # The attempt only ran out of time: the refusal before it tells more.
            raise exception_of(self._refusal) from error
        delay = None if self.committed else self._next(failure, replica)
        if delay is None or delay >= self.remaining:
            raise exception_of(failure, replica.proxy) from error
        self._refusal = failure
        return delay

    def _next(self, failure: Failure, replica: Replica) -> float | None:
        """Tells when there may be another attempt, at the same address or another; None means never."""
        patient = self._patient and failure.retry_after is not None
        asked = asked_delay(failure, elsewhere=self._replicas.several, patient=patient)
        if asked is None:
            return None
        # Later than asked, never earlier: before that moment there is no room.
        delay = self._replicas.leave(replica, asked) * (1 + JITTER * random.random())
        if not patient:
            if self._retries_left <= 0:
                return None
            self._retries_left -= 1
        return delay


class Stream:
    """The messages of one StreamRerank call, of which the last holds the summary."""

    def __init__(self) -> None:
        self._summary: RerankSummary | None = None

    @property
    def summary(self) -> RerankSummary:
        """The summary of the call; raises RuntimeError before the last result has been read."""
        if self._summary is None:
            raise RuntimeError("the summary comes last: read the stream to its end first")
        return self._summary

    def _read(self, message: pb.StreamRerankResponse) -> Iterator[ScoredDocument]:
        if message.HasField("summary"):
            self._summary = messages.summary_from(message.summary)
        return map(messages.result_from, message.results)

    def _finish(self) -> None:
        """Raises IncompleteStream where the stream has ended without a summary."""
        if self._summary is None:
            raise IncompleteStream("the stream ended without its summary")


def is_ready(health: Health) -> bool:
    """Tells whether a call would be answered; raises ModelFailed where waiting does not help."""
    if health.state is State.FAILED:
        raise errors.ModelFailed(f"model {health.model!r} has failed", metadata={"model": health.model})
    return health.serving


def _metadata(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    # A header holds nothing else; the text itself is never repeated in an error.
    if not text("token", token) or not all("!" <= character <= "~" for character in token):
        raise ValueError("token: not empty, printable ASCII without spaces")
    return {"authorization": f"Bearer {token}"}
