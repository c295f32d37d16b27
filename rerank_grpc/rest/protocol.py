"""HTTP/1.1 that bounds its connections, and the time of each phase of a request."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerank_grpc.rest.errors import HttpError, common_body, problem_of

HEAD_SECONDS = 10.0
# A body may take this long, and longer only as long as it comes this fast.
BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 65_536
NO_PROGRESS_SECONDS = 5.0  # without a further byte of a body
WRITE_SECONDS = 15.0  # of a caller who does not read the answer
# After a refusal, closing at once would reset the connection before the caller has read why. The rest
# of the body is thrown away for a while.
LINGER_SECONDS = 2.0
LINGER_BYTES = 16 << 20


class Turn(enum.Enum):
    """The side that a connection waits for."""

    IDLE = "no request is in progress"
    CALLER = "a request or an answer is on its way, at the caller's pace"
    SERVER = "a request is being answered"


class Connections:
    """The open connections, at most `bound`.

    A new one gets in while another waits for its caller: idle connections cost a caller
    nothing and must not lock others out. One whose request is being answered is never closed.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        # In the order in which their turns came.
        self._turns: dict[asyncio.Transport, Turn] = {}

    def make_room(self, connection: asyncio.Transport) -> None:
        """Closes the oldest idle connection, or else the new one, where there are too many."""
        if len(self._turns) >= self._bound:
            closed = self._oldest(Turn.IDLE) or self._oldest(Turn.CALLER) or connection
            # Not `close`, which waits until the peer has read the rest.
            closed.abort()
            self.forget(closed)

    def note(self, connection: asyncio.Transport, turn: Turn) -> None:
        """Notes a connection's turn; one that is being closed does not count any more."""
        if self._turns.get(connection) is not turn and not connection.is_closing():
            self._turns.pop(connection, None)
            self._turns[connection] = turn

    def forget(self, connection: asyncio.Transport) -> None:
        self._turns.pop(connection, None)

    def _oldest(self, turn: Turn) -> asyncio.Transport | None:
        return next((connection for connection, its in self._turns.items() if its is turn), None)


class _Phase(enum.Enum):
    HEAD = "head"
    BODY = "body"
    LINGER = "linger"


class PatientProtocol(H11Protocol):
    """uvicorn's h11 protocol, which bounds only how long a connection is idle between two requests."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._open = connections
        self._phase: _Phase | None = None
        self._since = 0.0
        self._progress = 0.0
        self._received = 0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open.make_room(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.forget(self.transport)
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._progress = self.loop.time()
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(WRITE_SECONDS, self._look_at_reader)
        self._open.note(self.transport, self._turn())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
        self._open.note(self.transport, self._turn())

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are no HTTP in JSON, where uvicorn does in plain text."""
        _, content = common_body(problem_of(HttpError(400, "this is no HTTP request that can be read")))
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=orjson.dumps(content)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _look_at_reader(self) -> None:
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if before - self._unread < BODY_BYTES_PER_SECOND * WRITE_SECONDS:
            self.transport.abort()
        else:
            self._writing = self.loop.call_later(WRITE_SECONDS, self._look_at_reader)

    def _look(self) -> None:
        """Starts the time of a new phase."""
        phase = None
        if not self.transport.is_closing():
            self._open.note(self.transport, self._turn())
            phase = self._present()
        if phase is self._phase:
            if phase is _Phase.LINGER and self._received > LINGER_BYTES:
                self.transport.abort()
            return
        self._phase, self._since, self._received = phase, self.loop.time(), 0
        if self._reading is not None:
            self._reading.cancel()
        if phase is not None:
            self._reading = self.loop.call_later(self._time_left(), self._late)

    def _present(self) -> _Phase | None:
        if self.conn.their_state is h11.IDLE:
            # Between two requests uvicorn's own timer runs until data comes.
            return None if self.timeout_keep_alive_task is not None else _Phase.HEAD
        if self.conn.their_state is h11.SEND_BODY:
            return _Phase.LINGER if self.cycle.response_complete else _Phase.BODY
        return None

    def _turn(self) -> Turn:
        if self.flow.write_paused:
            return Turn.CALLER
        if self.cycle is None or self.cycle.response_complete:
            return Turn.IDLE
        return Turn.CALLER if self.conn.their_state is h11.SEND_BODY else Turn.SERVER

    def _late(self) -> None:
        if (left := self._time_left()) > 0:  # a body has come fast enough so far
            self._reading = self.loop.call_later(left, self._late)
        else:
            self.transport.abort()

    def _time_left(self) -> float:
        now = self.loop.time()
        if self._phase is _Phase.BODY:
            allowed = BODY_SECONDS + self._received / BODY_BYTES_PER_SECOND
            return min(self._since + allowed, self._progress + NO_PROGRESS_SECONDS) - now
        allowed = HEAD_SECONDS if self._phase is _Phase.HEAD else LINGER_SECONDS
        return self._since + allowed - now
