"""The measured rate of a device, in tokens per second."""

from __future__ import annotations

DECAY = 0.9


class Rate:
    """An average over the last batches, each weighted by the time it took.

    Weighted so, a small batch, whose fixed cost makes it slow, hardly moves
    the rate by which long queues are judged.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Takes one batch's tokens and seconds into the average."""
        self._tokens = self._tokens * DECAY + tokens
        self._seconds = self._seconds * DECAY + seconds

    @property
    def tokens_per_second(self) -> float:
        """The rate; 0 before the first batch."""
        return self._tokens / self._seconds if self._seconds else 0.0
