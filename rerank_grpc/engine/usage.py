"""What a model's device has done: plain counts, of which whoever publishes them makes rates and shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts since the engine was started; the difference of two is what happened between them.

    Attributes:
        batches: that were scored.
        tokens: of those batches.
        room: tokens that those batches could have held.
        busy_seconds: in which the device had a batch; batches in flight together count once.
    """

    batches: int = 0
    tokens: int = 0
    room: int = 0
    busy_seconds: float = 0.0

    @property
    def fill(self) -> float:
        """The share of the batches' room that tokens took; 0 before the first."""
        return self.tokens / self.room if self.room else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the time in which the device was busy; 0 before the first batch."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def and_batch(self, tokens: int, room: int, seconds: float) -> Usage:
        """Counts a batch more; one longer than its room filled it."""
        return Usage(
            self.batches + 1,
            self.tokens + tokens,
            self.room + max(room, tokens),
            self.busy_seconds + seconds,
        )

    def since(self, earlier: Usage) -> Usage:
        """What happened after an earlier count of the same engine."""
        return Usage(
            self.batches - earlier.batches,
            self.tokens - earlier.tokens,
            self.room - earlier.room,
            self.busy_seconds - earlier.busy_seconds,
        )
