"""How long a call may wait for its caller: for the request to come, and for the answer to be read.

grpcio waits for both without a limit, and holds a thread meanwhile. Here a call
that has waited too long is cancelled. Where too many wait at once, those that
have waited longest are cancelled, as a SYN flood is met: a message on an
ordinary network comes within milliseconds of its headers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic
from typing import TypeVar

import grpc

log = logging.getLogger(__name__)

# How often it is looked for calls that have waited too long, and how soon after a crowd has come.
LOOK_SECONDS = 0.1
CROWD_SECONDS = 0.005

_Message = TypeVar("_Message")


class Waiting:
    """The calls that wait for their callers in one way; every method may be called by any thread.

    No lock is needed: each change is one operation on a dict, which keeps the
    order in which calls began to wait.

    Attributes:
        what: what they wait for, a noun for the log.
        seconds: how long a call may wait.
    """

    def __init__(
        self,
        what: str,
        seconds: float,
        *,
        most: int | None = None,
        spared: float = 0.0,
        on_crowd: Callable[[], None] = lambda: None,
    ) -> None:
        """Bounds a wait.

        `most` calls may wait at once; where more do, those that have waited
        longest are cancelled, but none that has waited less than `spared` seconds.
        `on_crowd` is called when one more has come than may wait.
        """
        self.what = what
        self.seconds = seconds
        self._most = most
        self._spared = spared
        self._on_crowd = on_crowd
        self._since: dict[grpc.ServicerContext, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def begin(self, context: grpc.ServicerContext) -> None:
        """Starts a call's wait."""
        self._since[context] = monotonic()
        if self._most is not None and len(self._since) > self._most:
            self._on_crowd()

    def end(self, context: grpc.ServicerContext) -> bool:
        """Ends a call's wait; False if it does not wait, for example because it was cancelled."""
        return self._since.pop(context, None) is not None

    def cancel_late(self, now: float) -> None:
        """Cancels the calls that have waited too long, and in a crowd those that have waited longest."""
        waiting = self._since.copy()
        excess = 0 if self._most is None else len(waiting) - self._most
        cancelled = 0
        for place, (context, since) in enumerate(waiting.items()):
            if now - since >= (self._spared if place < excess else self.seconds) and self.end(context):
                context.cancel()
                cancelled += 1
        if cancelled:
            kind = {"kind": f"cancelled: {self.what}"}
            log.info("cancelled calls that waited for %s: %d", self.what, cancelled, extra=kind)

    def receive(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """Takes the next message off a call; None if the caller has sent its last.

        Ends the call if it was cancelled because the message did not come.
        """
        self.begin(context)
        try:
            message = next(requests, None)
        finally:
            waited = self.end(context)
        if message is None and not waited:
            context.abort(grpc.StatusCode.CANCELLED, f"waited too long for {self.what}")
        return message

    def send(self, messages: Iterable[_Message], context: grpc.ServicerContext) -> Iterator[_Message]:
        """Passes messages on; from each until the next is asked for, the call waits for its reader."""
        try:
            for message in messages:
                self.begin(context)
                yield message
                self.end(context)
        finally:
            self.end(context)

    def answer(self, context: grpc.ServicerContext) -> None:
        """Starts the wait for the reading of a call's last message; the call's end ends it."""
        self.begin(context)
        if not context.add_callback(partial(self._forget, context)):
            self._forget(context)

    def _forget(self, context: grpc.ServicerContext) -> None:
        self._since.pop(context, None)


class Patience:
    """Looks after several kinds of waiting calls, on a thread of its own."""

    def __init__(self) -> None:
        self.kinds: list[Waiting] = []
        self._ended = threading.Event()
        self._crowd = threading.Event()
        self._thread = threading.Thread(target=self._run, name="patience", daemon=True)

    def start(self) -> None:
        """Starts to look."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._crowd.set()

    def bound(self, what: str, seconds: float, *, most: int | None = None, spared: float = 0.0) -> Waiting:
        """Makes a kind of waiting, and looks after it; see Waiting."""
        kind = Waiting(what, seconds, most=most, spared=spared, on_crowd=self._crowd.set)
        self.kinds.append(kind)
        return kind

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._crowd.wait(LOOK_SECONDS):
                self._crowd.clear()
                self._ended.wait(CROWD_SECONDS)
            now = monotonic()
            for kind in self.kinds:
                kind.cancel_late(now)
