"""The bound on connections, and which one is closed for a new one."""

from __future__ import annotations

import asyncio
import enum


class Turn(enum.Enum):
    """Whose turn it is on a connection."""

    IDLE = "no request is in progress"
    CALLER = "a request or an answer is on its way, at the caller's pace"
    SERVER = "a request is being answered"


class Connections:
    """The open connections, at most `bound`.

    A new one always gets in while another waits for its caller: idle
    connections cost a caller nothing, so they must not lock others out. One on
    which a request is being answered is never closed.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        # In the order in which their turns came.
        self._turns: dict[asyncio.Transport, Turn] = {}

    def open(self, connection: asyncio.Transport) -> None:
        """Takes a connection in; closes the oldest idle one, or else itself, where there are too many."""
        if len(self._turns) >= self._bound:
            closed = self._oldest(Turn.IDLE) or self._oldest(Turn.CALLER) or connection
            # Not `close`: that waits until the peer has read what is left.
            closed.abort()
            self.forget(closed)
        self.note(connection, Turn.IDLE)

    def note(self, connection: asyncio.Transport, turn: Turn) -> None:
        """Notes whose turn it is; one that is being closed does not count any more."""
        if self._turns.get(connection) is not turn and not connection.is_closing():
            self.forget(connection)
            self._turns[connection] = turn

    def forget(self, connection: asyncio.Transport) -> None:
        """Notes that a connection is closed."""
        self._turns.pop(connection, None)

    def _oldest(self, turn: Turn) -> asyncio.Transport | None:
        return next((connection for connection, its in self._turns.items() if its is turn), None)
