"""Bounds the calls that are inside a process at once, of all its models, and their text."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from rerank_grpc.errors import QueueFull

# The bounds of the retry_after of a refused call, in seconds.
SOONEST_RETRY, LATEST_RETRY = 0.1, 30.0
# Of a full gate: the part beyond it that callers may take who have less than an equal part of it.
RESERVE = 1 / 8
# The weight of one more call in the average time that calls spend inside.
WEIGHT = 0.1


class Gate:
    """Admits calls before any work is done for them; any thread may call every method.

    A call larger than `max_characters` is admitted where no other is inside, else it could never be served.
    Times are those of `clock`, in seconds; a simulation brings its own.
    """

    def __init__(
        self, max_calls: int, max_characters: int, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._max_calls = max_calls
        self._max_characters = max_characters
        self._clock = clock
        self._calls = 0
        self._characters = 0
        self._by_caller: dict[str, _Inside] = {}  # of those with a call inside
        self._entered = 0.0  # the sum of the entry times of the calls inside
        self._stay = 0.0  # the average seconds that a call spends inside
        self._refused = 0  # the calls refused since the last admission
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """The number of calls inside."""
        return self._calls

    def enter(self, characters: int, caller: str = "") -> Permit:
        """Admits a caller's call of this size; raises QueueFull, with the time until it may be admitted.

        A full gate has a reserve for callers with less than an equal part of it: nobody who fills it keeps
        the others out.
        """
        now = self._clock()
        with self._lock:
            own = self._by_caller.get(caller) or _Inside()
            if self._calls >= self._max_calls and not self._has_room(
                own.calls + 1, self._calls + 1, self._max_calls, own
            ):
                metadata = {"calls": str(self._calls), "max_calls": str(self._max_calls)}
                raise self._refuse("too many calls", metadata, 1 / self._calls, now)
            text = self._characters + characters
            if (
                self._calls
                and text > self._max_characters
                and not self._has_room(own.characters + characters, text, self._max_characters, own)
            ):
                inside, most = str(self._characters), str(self._max_characters)
                metadata = {"characters": inside, "max_characters": most}
                raise self._refuse("too much text", metadata, characters / self._max_characters, now)
            self._calls += 1
            self._characters += characters
            self._entered += now
            self._refused = 0
            own.calls += 1
            own.characters += characters
            self._by_caller[caller] = own
        return Permit(self, characters, now, caller)

    def leave(self, characters: int, entered: float, caller: str = "") -> None:
        """Ends the stay of a caller's call that entered at that time."""
        now = self._clock()
        with self._lock:
            own = self._by_caller[caller]
            own.calls -= 1
            own.characters -= characters
            if not own.calls:
                del self._by_caller[caller]
            self._calls -= 1
            self._characters -= characters
            self._entered -= entered
            self._stay += WEIGHT * (now - entered - self._stay)

    def _has_room(self, own: int, inside: int, most: int, caller: _Inside) -> bool:
        """Tells whether the reserve is for a caller who would have `own` of all that is inside."""
        callers = len(self._by_caller) + (not caller.calls)
        return callers > 1 and own <= most / callers and inside <= most * (1 + RESERVE)

    def _refuse(self, excess: str, metadata: dict[str, str], share: float, now: float) -> QueueFull:
        """Makes an error with the time until a share of the calls inside has left, if all leave in one stay.

        A stay is at least as long as the calls inside have been there on average. Callers refused before come
        first: the delay grows with their number, else all would come back for the one permit that is free by
        then.
        """
        stay = max(self._stay, now - self._entered / self._calls)
        self._refused += 1
        delay = min(max(stay * share * self._refused, SOONEST_RETRY), LATEST_RETRY)
        reason = f"{excess} at once: retry later, or call another replica"
        return QueueFull(reason, metadata=metadata, retry_after=delay)


@dataclass(slots=True)
class _Inside:
    """The calls and the text of one caller inside."""

    calls: int = 0
    characters: int = 0


@dataclass(slots=True, eq=False)
class Permit:
    """One call's stay, ended once: when the `with` statement ends, or earlier by `leave`."""

    gate: Gate
    characters: int
    entered: float
    caller: str = ""
    # The first of two threads that leave at once takes it.
    _left: threading.Lock = field(default_factory=threading.Lock, init=False)

    def leave(self) -> None:
        """Gives the permit back; harmless a second time."""
        if self._left.acquire(blocking=False):
            self.gate.leave(self.characters, self.entered, self.caller)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()
