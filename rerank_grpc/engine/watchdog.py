"""Tells a device that hangs from a process that was paused."""

from __future__ import annotations

# The looks in the time after which a batch counts as hung, and the longest time between two of them.
LOOKS, LONGEST_INTERVAL = 8, 1.0
# The most intervals that count between two looks: a longer time means that the process was stopped.
MOST_INTERVALS = 2


class Watchdog:
    """Adds up for how long a batch has been in progress, by its own looks.

    A clock goes on while the process is stopped, by SIGSTOP, by `docker pause` or
    with its virtual machine. Looks, `interval` seconds apart, do not, so a pause
    counts as hardly more than one of them.
    """

    def __init__(self, hang_seconds: float) -> None:
        self.interval = min(hang_seconds / LOOKS, LONGEST_INTERVAL)
        self._hang_seconds = hang_seconds
        self._batch: float | None = None
        self._waited = 0.0
        self._looked = 0.0

    def look(self, started: float | None, now: float) -> bool:
        """Whether the batch that started then, None for none, hangs."""
        if started != self._batch:
            self._batch, self._waited = started, 0.0
        if started is not None:
            since = now - max(started, self._looked)
            self._waited += min(since, MOST_INTERVALS * self.interval)
        self._looked = now
        return self._waited > self._hang_seconds
