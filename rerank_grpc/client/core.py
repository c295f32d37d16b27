"""What both clients share: settings, channel options, attempts, streams; no I/O.

:mod:`sync` and :mod:`aio` only send, wait and sleep; every decision is made
here, in :mod:`messages` or in :mod:`failures`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from rerank_grpc import __version__, errors
from rerank_grpc.client import failures, messages
from rerank_grpc.client.exceptions import IncompleteStream
from rerank_grpc.client.failures import Failure
from rerank_grpc.limits import LIMITS, MIB
from rerank_grpc.types import Health, RerankSummary, ScoredDocument, State
from rerank_grpc.v1 import rerank_pb2

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_RETRIES = 3
# gRPC cuts a policy of more than five attempts down to five.
MAX_RETRIES = 4
# How often wait_until_ready asks.
READY_POLL_SECONDS = 0.25

Option = tuple[str, str | int]


@dataclass(frozen=True, slots=True)
class Connection:
    """Whom to call and how; checked once, when a client is made."""

    target: str
    timeout: float
    retries: int
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    options: tuple[Option, ...]

    @classmethod
    def of(
        cls,
        target: str,
        *,
        token: str | None,
        timeout: float,
        retries: int,
        root_certificates: bytes | None,
        credentials: grpc.ChannelCredentials | None,
        options: Sequence[Option],
    ) -> Connection:
        """Checks a client's arguments; raises TypeError or ValueError, naming the argument."""
        if not isinstance(target, str):
            raise TypeError(f"target: a str, not {type(target).__name__}")
        if not target or target.startswith(("http:", "https:", "grpc:", "grpcs:")):
            raise ValueError(f"target: host:port, as in {DEFAULT_TARGET}, without a scheme such as http://")
        if not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
            raise ValueError(f"retries: 0 to {MAX_RETRIES}")
        return cls(
            target=target,
            timeout=seconds(timeout),
            retries=retries,
            credentials=_credentials(root_certificates, credentials),
            metadata=_metadata(token),
            options=channel_options(retries, options),
        )

    def metadata_with(self, extra: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
        """Adds one call's own metadata, in lower case keys; it wins over the client's."""
        return tuple({**dict(self.metadata), **extra}.items()) if extra else self.metadata

    def attempts(self, timeout: float | None, now: float) -> Attempts:
        """Begins a call's attempts; `timeout` None is the client's own."""
        return Attempts(self.retries, self.timeout if timeout is None else seconds(timeout), now)


def seconds(timeout: float) -> float:
    """Checks a timeout: more than 0 seconds, finite."""
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise TypeError(f"timeout: seconds, not {type(timeout).__name__}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout: more than 0 seconds and finite, not {timeout}")
    return float(timeout)


def channel_options(retries: int, options: Sequence[Option] = ()) -> tuple[Option, ...]:
    """Makes the options of a channel; the caller's own win."""
    ours: dict[str, str | int] = {
        "grpc.service_config": service_config(retries),
        "grpc.primary_user_agent": f"rerank-grpc-python/{__version__}",
        "grpc.max_send_message_length": LIMITS.message_bytes,
        "grpc.max_receive_message_length": LIMITS.reply_bytes,
        # A request over this is never retried, silently; the default is 256 KiB.
        # The rest is for the call's own metadata, which is counted too.
        "grpc.per_rpc_retry_buffer_size": LIMITS.message_bytes + MIB,
        # A peer that stops acknowledging is noticed in 10 s: with a keepalive
        # gRPC sets TCP_USER_TIMEOUT. The ping itself stays above the 5 minutes
        # below which servers close the connection, and is never sent without
        # calls, which they allow every 2 hours only.
        "grpc.keepalive_time_ms": 330_000,
        "grpc.keepalive_timeout_ms": 10_000,
        # A server that comes back is found within 2 s, not 2 minutes.
        "grpc.initial_reconnect_backoff_ms": 200,
        "grpc.max_reconnect_backoff_ms": 2_000,
        # How long one attempt to connect may take; the default is 20 s.
        "grpc.min_reconnect_backoff_ms": 5_000,
        # Replicas that were replaced have new addresses; the default is 30 s.
        "grpc.dns_min_time_between_resolutions_ms": 5_000,
    }
    return tuple((ours | dict(options)).items())


def service_config(retries: int) -> str:
    """Makes gRPC's service config: which replica takes a call, and what gRPC retries itself.

    A failed attempt costs the throttle one token and a good one brings back
    half, so that in the long run at most half as many attempts fail as succeed:
    1.5 attempts per call. An outage is met with 50 retries, then none.

    A call shows the status of gRPC's last attempt alone. Where the deadline
    passes while gRPC waits, that is its own DEADLINE_EXCEEDED, and the reason of
    the attempts before is lost; so the server forbids a retry that has no time.
    Where no server listens, four attempts take about a second: with a shorter
    deadline that is DeadlineExceeded, not ServerUnavailable.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        policy = {
            "maxAttempts": retries + 1,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": [{"service": "rerank.v1.RerankService"}], "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.5}
    return json.dumps(config)


class Attempts:
    """One call's attempts, all within one deadline; times are of one monotonic clock."""

    def __init__(self, retries: int, timeout: float, now: float) -> None:
        self._deadline = now + timeout
        self._retries_left = retries
        self._refusal: Failure | None = None

    def remaining(self, now: float) -> float:
        """Tells the time left for the next attempt, never below zero."""
        return max(self._deadline - now, 0.0)

    def commit(self) -> None:
        """Rules out another attempt: a part of the answer has been handed out."""
        self._retries_left = 0
        self._refusal = None

    def delay_after(self, error: grpc.RpcError, now: float) -> float:
        """Tells how long to wait before the next attempt, or raises the failure's exception.

        Where an attempt only ran out of time, the refusal before it tells more,
        and is raised instead. grpc's error becomes the exception's cause.
        """
        trailers: Any = error.trailing_metadata()  # pairs, or None
        failure = failures.read_failure(error.code(), error.details(), trailers)
        if failure.is_grpcs_deadline and self._refusal is not None:
            raise failures.exception_of(self._refusal) from error
        delay = failures.retry_delay(
            failure,
            retries_left=self._retries_left,
            remaining=self.remaining(now),
            jitter=random.random(),
        )
        if delay is None:
            raise failures.exception_of(failure) from error
        self._retries_left -= 1
        self._refusal = failure
        return delay


class StreamReader:
    """Reads the messages of one StreamRerank call; the last one holds the summary."""

    def __init__(self) -> None:
        self._summary: RerankSummary | None = None

    def feed(self, message: rerank_pb2.StreamRerankResponse) -> Iterator[ScoredDocument]:
        """Yields the results of one message."""
        if message.HasField("summary"):
            self._summary = messages.summary(message.summary)
        return map(messages.scored_document, message.results)

    def finish(self) -> None:
        """Raises IncompleteStream where the stream has ended without a summary."""
        if self._summary is None:
            raise IncompleteStream("the stream ended without its summary")

    @property
    def summary(self) -> RerankSummary:
        """What is said once about the call; raises RuntimeError before the stream's end."""
        if self._summary is None:
            raise RuntimeError("the summary comes last: read the stream to its end first")
        return self._summary


def is_ready(health: Health) -> bool:
    """Tells whether a call would be answered; raises ModelFailed where waiting does not help."""
    if health.state is State.FAILED:
        raise errors.ModelFailed(f"model {health.model!r} has failed", metadata={"model": health.model})
    return health.serving


def _credentials(
    root_certificates: bytes | None, credentials: grpc.ChannelCredentials | None
) -> grpc.ChannelCredentials | None:
    if root_certificates is None:
        return credentials
    if credentials is not None:
        raise ValueError("root_certificates: not together with credentials, which hold their own")
    if not isinstance(root_certificates, bytes):
        raise TypeError(f"root_certificates: PEM in bytes, not {type(root_certificates).__name__}")
    return grpc.ssl_channel_credentials(root_certificates=root_certificates)


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    if token is None:
        return ()
    if not isinstance(token, str):
        raise TypeError(f"token: a str, not {type(token).__name__}")
    # A header holds nothing else; the text itself is never repeated in an error.
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError("token: not empty, printable ASCII without spaces")
    return (("authorization", f"Bearer {token}"),)
