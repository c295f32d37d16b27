"""The common half of both clients: settings, calls, attempts, streams; the shells do the I/O."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from rerank_grpc import __version__, errors
from rerank_grpc.client import arguments
from rerank_grpc.client.arguments import CallOptions, DocumentLike, RerankOptions, check_type, text
from rerank_grpc.client.errors import IncompleteStream, ServerUnavailable, exception_of, retry_delay
from rerank_grpc.client.security import Security
from rerank_grpc.client.unavailable import Inquiry
from rerank_grpc.config.environment import proxy_of
from rerank_grpc.config.targets import DEFAULT_PORT, Proxy, is_local, read_target
from rerank_grpc.limits import LIMITS, MIB
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
from rerank_grpc.v1 import rerank_pb2_grpc
from rerank_grpc.wire import messages
from rerank_grpc.wire.status import Failure, read_failure

DEFAULT_TARGET = f"localhost:{DEFAULT_PORT}"
# gRPC cuts a policy of more than five attempts down to five.
MAX_RETRIES = 4
# Servers take a ping every two seconds for an attack if they come more often.
LEAST_HANG_TIMEOUT = 2.0
# The interval of wait_until_ready's questions, and the errors after which it asks again.
READY_POLL_SECONDS = 0.25
# It waits so long before it looks whether TLS is the reason, which gRPC tells no call that waits.
READY_LOOK_SECONDS = 1.0
NOT_YET = (ServerUnavailable, errors.ShuttingDown, errors.DeadlineExceeded)

_SERVICE = "rerank.v1.RerankService"
# The methods with one reply, which also take a request that is serialized already.
RELAYED = ("Rerank", "ListModels", "Health")

ChannelOption = tuple[str, str | int]
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


def serving(service: str) -> Rpc[bool]:
    """Makes the call of grpc.health.v1.Health/Check; "" is the server as a whole."""
    return Rpc("Check", messages.check_request(text("service", service)), messages.is_serving)


def relay(method: str, message: bytes) -> Rpc[bytes]:
    """Makes a call of RerankService whose request is serialized already; its reply stays so."""
    return Rpc(f"{method}Bytes", message, bytes)


def stub_of(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """Makes the stub of a channel, with a method for each Rpc."""
    stub: Any = rerank_pb2_grpc.RerankServiceStub(channel)
    stub.Check = channel.unary_unary(
        messages.CHECK_METHOD,
        request_serializer=messages.CheckRequest.SerializeToString,
        response_deserializer=messages.CheckResponse.FromString,
    )
    for method in RELAYED:
        setattr(stub, f"{method}Bytes", channel.unary_unary(f"/{_SERVICE}/{method}"))
    return stub


class BaseClient(Generic[_Stream]):
    """The settings of a client, checked when it is made, and the methods that the shells share."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
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
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[ChannelOption] = (),
    ) -> None:
        """Makes a client; raises TypeError or ValueError, naming the argument.

        A `target` without a port has the default one; this machine is called without a proxy. `timeout` is
        the deadline of a call in seconds, all its attempts together. `retries` is the number of further
        attempts that a call may take, 0 to 4. With a `hang_timeout` of 2 seconds or more a server that
        hangs is left after twice that, and its calls are tried again. `options` are gRPC channel arguments
        and win over the client's own.

        `tls` trusts the CAs of this system, `ca` others; `cert` and `key` are what a server of mutual TLS
        wants. These three are paths, or PEM as bytes, and mean TLS by themselves. `server_name` is the name
        of the server's certificate, if not the target's. `credentials` are gRPC's own, in place of all these.
        """
        if not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
            raise ValueError(f"retries: 0 to {MAX_RETRIES}")
        self._target = _target(target)
        self._timeout = seconds(timeout)
        self._retries = retries
        own = _metadata(token)
        # A function: the token must not show in a description of the client.
        self._merged: Callable[[Mapping[str, str]], Metadata] = lambda call: tuple({**own, **call}.items())
        security = Security.of(tls, TlsSources(ca, cert, key, server_name), credentials)
        self._prepare(security, [*pings(hang_timeout), *security.options, *options])
        self._closed = False
        self._begin()

    def _prepare(self, security: Security, options: Sequence[ChannelOption]) -> None:
        """Settles how the channel will be opened, and who finds out why it leads nowhere."""
        self._credentials = security.credentials
        self._options = channel_options(self._target, self._retries, options)
        self._proxy = _proxy(self._target, dict(self._options))
        opaque = security.credentials is not None and security.tls is None
        self._inquiry = Inquiry(self._target, security.tls, self._proxy, opaque=opaque)

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

    def _connect(self, kind: Any) -> Any:
        """Opens a channel of one kind: of the module grpc or of grpc.aio."""
        if self._credentials is None:
            return kind.insecure_channel(self._target, self._options)
        return kind.secure_channel(self._target, self._credentials, self._options)

    def _attempts(
        self, *, timeout: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> Attempts:
        timeout = self._timeout if timeout is None else seconds(timeout)
        return Attempts(self._retries, timeout, self._merged(metadata or {}), self._proxy)

    def _not_ready(self) -> errors.DeadlineExceeded:
        """Makes the error of a wait in vain, which a proxy may be the reason for."""
        way = f" ({self._proxy})" if self._proxy else ""
        return errors.DeadlineExceeded(f"the model was not ready in time{way}")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")


def seconds(timeout: float) -> float:
    """Checks a timeout: more than 0 seconds, finite."""
    check_type("timeout", timeout, int | float, "seconds")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout: more than 0 seconds and finite, not {timeout}")
    return float(timeout)


def channel_options(
    target: str, retries: int, options: Sequence[ChannelOption] = ()
) -> tuple[ChannelOption, ...]:
    """Makes the options of a target's channel; the caller's own win."""
    ours: dict[str, str | int] = {
        "grpc.service_config": service_config(retries),
        "grpc.primary_user_agent": f"rerank-grpc-python/{__version__}",
        "grpc.max_send_message_length": LIMITS.message_bytes,
        "grpc.max_receive_message_length": LIMITS.reply_bytes,
        # A request over this is never retried, silently; the MiB is for metadata, which counts too.
        "grpc.per_rpc_retry_buffer_size": LIMITS.message_bytes + MIB,
        # A peer that stops acknowledging is noticed in 10 s: with a keepalive gRPC sets
        # TCP_USER_TIMEOUT. The ping itself stays above the 5 minutes below which servers close the
        # connection, and is never sent without calls, which they allow every 2 hours only.
        "grpc.keepalive_time_ms": 330_000,
        "grpc.keepalive_timeout_ms": 10_000,
        # The same for pings by which gRPC measures the connection. A keepalive waits for the answer to one of
        # these, by default for a minute.
        "grpc.http2.ping_timeout_ms": 10_000,
        # A server that comes back is found within 2 s, not 2 minutes.
        "grpc.initial_reconnect_backoff_ms": 200,
        "grpc.max_reconnect_backoff_ms": 2_000,
        # How long one attempt to connect may take; the default is 20 s.
        "grpc.min_reconnect_backoff_ms": 5_000,
        # Replicas that were replaced have new addresses; the default is 30 s.
        "grpc.dns_min_time_between_resolutions_ms": 5_000,
    }
    if is_local(target):
        ours["grpc.enable_http_proxy"] = 0
    return tuple((ours | dict(options)).items())


def pings(hang_timeout: float | None) -> tuple[ChannelOption, ...]:
    """Makes the options that find a server whose process hangs while its kernel acknowledges all it gets.

    gRPC pings while a call waits and nothing comes: after `hang_timeout` seconds, and gives the connection up
    after as many without an answer. None leaves the options as they are.
    """
    if hang_timeout is None:
        return ()
    check_type("hang_timeout", hang_timeout, int | float, "seconds")
    if not LEAST_HANG_TIMEOUT <= hang_timeout < math.inf:
        raise ValueError(
            f"hang_timeout: {LEAST_HANG_TIMEOUT:g} seconds or more and finite, not {hang_timeout}"
        )
    milliseconds = round(hang_timeout * 1000)
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    # The default is two pings in a row: a call that takes longer would be watched no further.
    return *((name, milliseconds) for name in names), ("grpc.http2.max_pings_without_data", 0)


def service_config(retries: int) -> str:
    """Makes gRPC's service config: its choice of a replica, and its own retries.

    The throttle allows 1.5 attempts per call in the long run, and 50 retries in an outage. A call shows the
    status of gRPC's last attempt alone: a deadline that passes while gRPC waits hides the reason of the
    attempts before, so the server forbids a retry that has no time. Where no server listens, four attempts
    take about a second: a shorter deadline is DeadlineExceeded, not ServerUnavailable. A server that
    stops says CANCELLED to calls that were on their way; a call that its caller cancels is not retried.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        policy = {
            "maxAttempts": retries + 1,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        }
        config["methodConfig"] = [{"name": [{"service": _SERVICE}], "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.5}
    return json.dumps(config)


class Attempts:
    """One call's attempts, all within one deadline and with the same metadata."""

    def __init__(self, retries: int, timeout: float, metadata: Metadata, proxy: Proxy | None = None) -> None:
        self.metadata = metadata
        self._proxy = proxy
        self._deadline = time.monotonic() + timeout
        self._retries_left = retries
        self._refusal: Failure | None = None
        self.committed = False

    @property
    def remaining(self) -> float:
        """The seconds left for the next attempt, never below zero."""
        return max(self._deadline - time.monotonic(), 0.0)

    def commit(self) -> None:
        """Rules out another attempt, because a part of the answer has been handed out."""
        self._retries_left = 0
        self._refusal = None
        self.committed = True

    def delay_after(self, error: grpc.RpcError) -> float:
        """Tells how many seconds to wait before the next attempt, or raises the failure's exception."""
        trailers: Any = error.trailing_metadata()  # pairs, or None
        failure = read_failure(error.code(), error.details(), trailers)
        timed_out = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and not failure.described
        if timed_out and self._refusal is not None:
            # The attempt only ran out of time: the refusal before it tells more.
            raise exception_of(self._refusal) from error
        delay = retry_delay(
            failure, retries_left=self._retries_left, remaining=self.remaining, jitter=random.random()
        )
        if delay is None:
            raise exception_of(failure, self._proxy) from error
        self._retries_left -= 1
        self._refusal = failure
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


def _target(target: str) -> str:
    try:
        return read_target(text("target", target))
    except ValueError as error:
        raise ValueError(f"target: {error}") from None


def _proxy(target: str, options: Mapping[str, str | int]) -> Proxy | None:
    """Finds the proxy of a channel with these options."""
    if not options.get("grpc.enable_http_proxy", 1):
        return None
    url = options.get("grpc.http_proxy")
    return proxy_of(target, None if url is None else str(url))


def _metadata(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    # A header holds nothing else; the text itself is never repeated in an error.
    if not text("token", token) or not all("!" <= character <= "~" for character in token):
        raise ValueError("token: not empty, printable ASCII without spaces")
    return {"authorization": f"Bearer {token}"}
