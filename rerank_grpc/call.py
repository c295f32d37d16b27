"""One call on its way through the service: its deadline, and whether its caller still waits."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from rerank_grpc.errors import Cancelled, DeadlineExceeded


class Call:
    """A deadline and a cancellation, passed along with a request from its first step to its last.

    Any thread may cancel a call, a gRPC callback too: nothing here takes a lock.

    Attributes:
        deadline: in the seconds of time.monotonic; math.inf for none.
    """

    __slots__ = ("_callbacks", "_cancelled", "deadline")

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ends the call because its caller has left; harmless when the call is over."""
        self._cancelled = True
        while self._callbacks:
            self._callbacks.pop()()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has a function called when the call is cancelled, at once if it is; twice does no harm."""
        self._callbacks.append(callback)
        if self._cancelled:
            callback()

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded where further work would be wasted."""
        if self._cancelled:
            raise Cancelled("the caller cancelled")
        if self.deadline <= monotonic():
            raise DeadlineExceeded("the deadline passed before the call reached the queue")
