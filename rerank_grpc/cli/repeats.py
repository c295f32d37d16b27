"""Bounds repeated log lines: a stranger who can cause a line must not fill a disk with it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

# Of one kind in one window; a record with a traceback counts as so many lines.
MAX_LINES = 10
WINDOW_SECONDS = 1.0
# A window is twice as long as the last one while lines are dropped, up to this.
MAX_WINDOW_SECONDS = 10.0
# Kinds beyond these share one window.
MAX_KINDS = 256
# A count quotes this much of the first line that it stands for.
EXAMPLE_CHARACTERS = 200


@dataclass(slots=True)
class _Window:
    """What was written and dropped of one kind since `begin`."""

    begin: float
    seconds: float
    written: int = 0
    dropped: int = 0
    name: str = ""
    level: int = logging.WARNING
    example: str = ""


class Repeats:
    """Admits the first lines of each kind in a window, and counts the others.

    A record's kind is its attribute `kind`, which `extra={"kind": ...}` sets;
    without it a warning or worse is of the kind of its logger and text before
    formatting, and anything below has no kind and is always admitted.
    """

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}

    def admits(self, record: logging.LogRecord, now: float) -> bool:
        """Tells whether a record is written; `now` is in seconds of any monotonic clock."""
        kind = _kind_of(record)
        if kind is None:
            return True
        if kind not in self._windows and len(self._windows) >= MAX_KINDS:
            kind = None  # no record's own
        window = self._windows.setdefault(kind, _Window(now, WINDOW_SECONDS))
        if window.written < MAX_LINES:
            window.written += MAX_LINES if record.exc_info else 1
            return True
        if not window.dropped:
            window.name, window.level, window.example = record.name, record.levelno, _example_of(record)
        window.dropped += 1
        return False

    def counts(self, now: float, *, ending: bool = False) -> Iterator[logging.LogRecord]:
        """Makes a record of what each window that has ended dropped; of every window when `ending`."""
        for kind, window in list(self._windows.items()):
            seconds = now - window.begin
            if seconds < window.seconds and not ending:
                continue
            if window.dropped:
                text = "... and %s more like this in %.1f s: %s"
                values = (f"{window.dropped:,}", seconds, window.example)
                yield logging.LogRecord(window.name, window.level, "", 0, text, values, None)
                self._windows[kind] = _Window(now, min(2 * window.seconds, MAX_WINDOW_SECONDS))
            else:
                del self._windows[kind]


def _kind_of(record: logging.LogRecord) -> Hashable | None:
    kind: Hashable | None = getattr(record, "kind", None)
    if kind is None and record.levelno >= logging.WARNING:
        # asyncio formats its own: the objects that it names in further lines are new each time.
        kind = (record.name, str(record.msg).partition("\n")[0])
    return kind


def _example_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().partition("\n")[0][:EXAMPLE_CHARACTERS]
    except Exception:  # arguments that do not fit the text
        return str(record.msg).partition("\n")[0][:EXAMPLE_CHARACTERS]
