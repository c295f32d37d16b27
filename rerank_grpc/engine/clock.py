"""The clock of a device that several engines share."""

from __future__ import annotations

import threading


class DeviceClock:
    """Tells device seconds: while n engines have a batch on the device, one passes in n seconds.

    This is the virtual time of processor sharing. A batch measured by it costs
    the same whether or not another model runs beside it. Times are arguments, in
    the seconds of time.monotonic.
    """

    def __init__(self) -> None:
        self._users: set[object] = set()
        self._now = self._seconds = 0.0
        self._lock = threading.Lock()

    def enter(self, user: object, now: float) -> float:
        """Counts an engine that has a batch from now on, and returns the time."""
        with self._lock:
            self._advance(now)
            self._users.add(user)
            return self._seconds

    def leave(self, user: object, now: float) -> None:
        """Counts an engine no more, if it was counted."""
        with self._lock:
            self._advance(now)
            self._users.discard(user)

    def read(self, now: float) -> float:
        """Returns the time."""
        with self._lock:
            self._advance(now)
            return self._seconds

    def sharers(self, user: object) -> int:
        """How many engines share the device as soon as this one has a batch there."""
        return len(self._users | {user})

    def _advance(self, now: float) -> None:
        # The engines' threads may come out of order by a few microseconds.
        if now > self._now:
            self._seconds += (now - self._now) / max(1, len(self._users))
            self._now = now
