"""The addresses of a client: the options of each one's channel, and which of them a call goes to."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from rerank_grpc import __version__
from rerank_grpc.client.arguments import check_type, text
from rerank_grpc.client.errors import OUT_SECONDS
from rerank_grpc.client.security import Security
from rerank_grpc.client.unavailable import Inquiry
from rerank_grpc.config.environment import proxy_of
from rerank_grpc.config.targets import Proxy, is_local, read_target
from rerank_grpc.limits import LIMITS, MIB
from rerank_grpc.v1 import rerank_pb2_grpc
from rerank_grpc.wire import messages

# Servers take a ping every two seconds for an attack if they come more often.
LEAST_HANG_TIMEOUT = 2.0

_SERVICE = "rerank.v1.RerankService"
# The methods with one reply, which also take a request that is serialized already, as StreamRerank does.
RELAYED = ("Rerank", "ListModels", "Health")

ChannelOption = tuple[str, str | int]


class Replica:
    """One address of a client: how its channel is opened, how many calls it has, and whether it fails."""

    def __init__(
        self, target: str, retries: int, security: Security, options: Sequence[ChannelOption]
    ) -> None:
        self.target = target
        self.options = channel_options(target, retries, options)
        self.proxy = _proxy(target, dict(self.options))
        opaque = security.credentials is not None and security.tls is None
        self.inquiry = Inquiry(target, security.tls, self.proxy, opaque=opaque)
        self.channel: Any = None
        self.stub: Any = None
        self._credentials = security.credentials
        self.calls = 0
        self.turn = 0  # the number of its last call
        self.out_until = 0.0  # of time.monotonic; no call goes there before, if another address is well
        self.failing = False
        self.probed = False  # whether a call has been sent there since it failed

    def open(self, kind: Any) -> None:
        """Opens the channel, of one kind: of the module grpc or of grpc.aio."""
        if self._credentials is None:
            self.channel = kind.insecure_channel(self.target, self.options)
        else:
            self.channel = kind.secure_channel(self.target, self._credentials, self.options)
        self.stub = stub_of(self.channel)


class Replicas:
    """The addresses of one client; a call goes to the one with the fewest calls of this client.

    gRPC's resolvers take no list of names, and check the certificates of a list of addresses against one
    name, so each address has a channel of its own. One that fails or refuses is out of turn for a while.
    """

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self.all = tuple(replicas)
        self._lock = threading.Lock()
        self._turns = 0

    @property
    def first(self) -> Replica:
        """The only address, where there is one."""
        return self.all[0]

    @property
    def several(self) -> bool:
        """Whether a call that fails at one address may be tried at another."""
        return len(self.all) > 1

    @contextmanager
    def turn(self) -> Iterator[Replica]:
        """Chooses the address of one attempt, and counts it there while it lasts."""
        with self._lock:
            now = time.monotonic()
            chosen = min(self.all, key=lambda each: (max(each.out_until, now), each.calls, each.turn))
            self._turns += 1
            chosen.turn = self._turns
            chosen.calls += 1
            if chosen.failing:  # this call finds out whether it still does, and no other one with it
                chosen.out_until = max(chosen.out_until, now + OUT_SECONDS)
                chosen.probed = True
        try:
            yield chosen
        finally:
            with self._lock:
                chosen.calls -= 1

    def answered(self, replica: Replica) -> None:
        """Has an address in turn again, unless the call is one from before it failed."""
        if replica.failing:
            with self._lock:
                if replica.probed:
                    replica.failing, replica.out_until = False, 0.0

    def leave(self, replica: Replica, seconds: float) -> float:
        """Puts an address out of turn for so long; returns the seconds until one is in turn."""
        with self._lock:
            now = time.monotonic()
            replica.failing, replica.probed = True, False
            replica.out_until = now + seconds
            return max(min(each.out_until for each in self.all) - now, 0.0)


def replicas_of(
    target: str | Iterable[str], retries: int, security: Security, options: Sequence[ChannelOption]
) -> Replicas:
    """Reads the addresses; raises TypeError or ValueError, naming the argument.

    Between several addresses the client tries again itself: gRPC would go to the same one.
    """
    if isinstance(target, str):
        return Replicas([Replica(_target("target", target), retries, security, options)])
    check_type("target", target, Iterable, "a str or several")
    given = list(target)
    targets = list(dict.fromkeys(_target(f"target[{place}]", each) for place, each in enumerate(given)))
    if not targets:
        raise ValueError("target: at least one address")
    retries = retries if len(targets) == 1 else 0
    return Replicas(Replica(each, retries, security, options) for each in targets)


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
    stub.StreamRerankBytes = channel.unary_stream(f"/{_SERVICE}/StreamRerank")
    return stub


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


def _proxy(target: str, options: Mapping[str, str | int]) -> Proxy | None:
    """Finds the proxy of a channel with these options."""
    if not options.get("grpc.enable_http_proxy", 1):
        return None
    url = options.get("grpc.http_proxy")
    return proxy_of(target, None if url is None else str(url))


def _target(name: str, target: str) -> str:
    try:
        return read_target(text(name, target))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
