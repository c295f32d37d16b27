"""A call's deadline and its caller's disconnect, as the reranker wants them."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import grpc


def deadline_of(context: grpc.ServicerContext, longest: float) -> float:
    """Returns a call's deadline in the seconds of time.monotonic, at most `longest` seconds away.

    A call without a deadline reports 9.2e18 seconds or None, by version.
    """
    remaining = context.time_remaining()
    return monotonic() + (longest if remaining is None else min(remaining, longest))


def on_cancel_of(context: grpc.ServicerContext) -> Callable[[Callable[[], None]], None]:
    """Returns what registers a callback for the caller's disconnect; it runs at once if that is past.

    The callback runs on grpcio's one serving thread: no I/O and no lock in it.
    """

    def register(callback: Callable[[], None]) -> None:
        if not context.add_callback(callback):
            callback()

    return register
