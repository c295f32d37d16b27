"""HTTP/1.1 that bounds its connections, and the time of each phase of a request."""

from __future__ import annotations

import asyncio
import enum
import http
from contextlib import suppress
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerank_grpc.config.allowance import scaled
from rerank_grpc.http.chunks import CoarseConnection
from rerank_grpc.http.errors import HttpError, Writer
from rerank_grpc.limits import UNREAD_BYTES
from rerank_grpc.tls.names import CERTIFICATE

HEAD_SECONDS, HEAD_BYTES = 10.0, 32_768
# A body may take this long, and longer only as long as it comes this fast.
BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 65_536
NO_PROGRESS_SECONDS = 5.0  # without a further byte of a body
WRITE_SECONDS = 15.0  # of a caller who does not read the answer
# Beyond UNREAD_BYTES of answers that wait for their readers the oldest are given up, but none that has waited
# for less than these seconds.
UNREAD_SECONDS = 1.0
# After a refusal, closing at once would reset the connection before the caller has read why. The rest
# of the body is thrown away for a while.
LINGER_SECONDS = 2.0
LINGER_BYTES = 16 << 20
# A connection stays open for longer than its callers are told: one that they use at the last moment is there.
SPARE_SECONDS = 1
# A certificate is looked at when its connection begins: one that has been there for longer is to come again.
CERTIFIED_SECONDS = 600.0
CLOSE = (b"connection", b"close")
# Browsers take an answer for what its type says, whatever a caller's text in it looks like.
NOSNIFF = (b"x-content-type-options", b"nosniff")


class Turn(enum.Enum):
    """The side that a connection waits for."""

    IDLE = "no request is in progress"
    CALLER = "a request or an answer is on its way, at the caller's pace"
    SERVER = "a request is being answered"


class Connections:
    """The open connections, at most `bound`.

    A new one gets in while another waits for its caller: idle connections cost a caller
    nothing and must not lock others out. One whose request is being answered is closed only without
    `spares_answers`, where no other makes room.
    """

    def __init__(self, bound: int, *, spares_answers: bool = True) -> None:
        self._bound = bound
        self._closable = (Turn.IDLE, Turn.CALLER) if spares_answers else (Turn.IDLE, Turn.CALLER, Turn.SERVER)
        # In the order in which their turns came.
        self._turns: dict[asyncio.Transport, Turn] = {}
        # Those whose caller has not read the answer yet, and since when, the oldest first.
        self._unread: dict[asyncio.Transport, float] = {}

    def make_room(self, connection: asyncio.Transport) -> None:
        """Closes the oldest idle connection, or else the new one, where there are too many."""
        if len(self._turns) >= self._bound:
            self._close(next(filter(None, map(self._oldest, self._closable)), connection))

    def note(self, connection: asyncio.Transport, turn: Turn) -> None:
        """Notes a connection's turn; one that is being closed does not count any more."""
        if self._turns.get(connection) is not turn and not connection.is_closing():
            self._turns.pop(connection, None)
            self._turns[connection] = turn

    def wait_for_reader(self, connection: asyncio.Transport, now: float) -> None:
        """Notes an answer that is not read at once; closes the oldest such where their bytes are too many."""
        self._unread[connection] = now
        most = scaled(UNREAD_BYTES)
        kept = sum([each.get_write_buffer_size() for each in self._unread])
        for oldest, since in list(self._unread.items()):
            if kept <= most or oldest is connection or now - since < UNREAD_SECONDS:
                return
            kept -= oldest.get_write_buffer_size()
            self._close(oldest)

    def has_read(self, connection: asyncio.Transport) -> None:
        self._unread.pop(connection, None)

    def forget(self, connection: asyncio.Transport) -> None:
        self._turns.pop(connection, None)
        self._unread.pop(connection, None)

    def close_all(self) -> None:
        """Closes the connections that are left at the end."""
        for connection in list(self._turns):
            self._close(connection)

    def _close(self, connection: asyncio.Transport) -> None:
        # Not `close`, which waits until the peer has read the rest.
        connection.abort()
        self.forget(connection)

    def _oldest(self, turn: Turn) -> asyncio.Transport | None:
        return next((connection for connection, its in self._turns.items() if its is turn), None)


class _Phase(enum.Enum):
    HEAD = "head"
    BODY = "body"
    LINGER = "linger"


class PatientProtocol(H11Protocol):
    """uvicorn's h11 protocol, which bounds only how long a connection is idle between two requests.

    An answer tells how long its connection stays. One that comes before the end of its body is finished only
    when the rest has come and is thrown away: the caller then reads it, where a connection that is closed
    amid a body is reset. `write_error` writes the answer to bytes that never became a request.
    """

    conn: CoarseConnection

    def __init__(self, connections: Connections, write_error: Writer, **options: Any) -> None:
        super().__init__(**options)
        self.conn = CoarseConnection(HEAD_BYTES)
        self._open, self._write_error = connections, write_error
        self._stays = (b"keep-alive", b"timeout=%d" % self.timeout_keep_alive)
        self.timeout_keep_alive += SPARE_SECONDS
        self._app, self.app = self.app, self._answer
        self._phase: _Phase | None = None
        self._since = 0.0
        self._progress = 0.0
        self._received = 0
        self._refused = False  # nothing that comes is read any more
        self._refusal: HttpError | None = None  # of a body that came too slowly
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.Handle | None = None
        self._unread = 0
        self._certificate: str | None = None
        self._began = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._certificate = transport.get_extra_info(CERTIFICATE)
        self._began = self.loop.time()
        self._open.make_room(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.forget(self.transport)
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # uvicorn's timer stays where the peer has reset the connection, and a method of its own is a cycle:
        # either would keep all this for long.
        self._unset_keepalive_if_required()
        self.app = self._app

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._progress = self.loop.time()
        if not self._refused:
            super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._open.note(self.transport, self._turn())
        # The write goes on: TLS takes it in pieces.
        self._writing = self.loop.call_soon(self._await_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._open.has_read(self.transport)
        if self._writing is not None:
            self._writing.cancel()
        self._open.note(self.transport, self._turn())

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are no HTTP as the app's other errors, where uvicorn has words of its own."""
        fine = "the body comes in too many small chunks: write it in larger pieces, or with its length"
        text = fine if self.conn.too_fine else "this is no HTTP request that can be read"
        self._refuse(HttpError(400, text))

    def _should_upgrade(self) -> bool:
        """Declines every offer of another protocol, as HTTP allows; uvicorn would log a warning for each."""
        return False

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app, whose body ends in an HttpError where it came too slowly."""

        async def receive_in_time() -> Message:
            message = await receive()
            if self._refusal is not None and message["type"] == "http.request":
                raise self._refusal
            return message

        async def send_to_the_end(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], NOSNIFF, *self._persistence(scope, message)]
            elif not message.get("more_body") and self._is_early():
                await send({**message, "more_body": True})
                self._look()
                message = {"type": "http.response.body"}
                with suppress(asyncio.CancelledError):  # the grace is over
                    while (await receive()).get("more_body"):
                        pass
            await send(message)

        if self._certificate is not None:
            scope[CERTIFICATE] = self._certificate
        await self._app(scope, receive_in_time, send_to_the_end)

    def _persistence(self, scope: Scope, answer: Message) -> list[tuple[bytes, bytes]]:
        """Makes the header that tells how long the connection stays, where it does."""
        if not self.cycle.keep_alive:  # the server is stopping
            return [CLOSE]
        if self._certificate is not None and self.loop.time() - self._began > CERTIFIED_SECONDS:
            return [CLOSE]
        asked = [value.lower() for name, value in scope["headers"] if name == b"connection"]
        closes = scope["http_version"] != "1.1" or CLOSE in answer["headers"] or b"close" in b",".join(asked)
        return [] if closes or self._is_early() else [self._stays]

    def _is_early(self) -> bool:
        """Tells whether the body is still on its way, and may go on."""
        return self.conn.their_state is h11.SEND_BODY and self.cycle.keep_alive

    def _refuse(self, error: HttpError) -> None:
        """Answers bytes that never became a request; what still comes is thrown away, for a while."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        content_type, body = self._write_error(error)
        reason = http.HTTPStatus(error.status).phrase.encode()
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), NOSNIFF, CLOSE]
        head = h11.Response(status_code=error.status, headers=headers, reason=reason)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self._refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _await_reader(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(WRITE_SECONDS, self._look_at_reader)
        self._open.wait_for_reader(self.transport, self.loop.time())

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
        if self._refused:
            return _Phase.LINGER
        if self.conn.their_state is h11.IDLE:
            self._forget_request()
            # Between two requests uvicorn's own timer runs until data comes.
            return None if self.timeout_keep_alive_task is not None else _Phase.HEAD
        if self.conn.their_state is h11.SEND_BODY:
            answered = self.cycle.response_started or self._refusal is not None
            return _Phase.LINGER if answered else _Phase.BODY
        return None

    def _forget_request(self) -> None:
        """Lets the last request go: a head of 32 KiB takes 1 MiB, which an idle connection must not cost."""
        self.cycle = self.scope = None  # type: ignore[assignment]
        self.headers = []

    def _turn(self) -> Turn:
        if self.flow.write_paused:
            return Turn.CALLER
        if self.cycle is None or self.cycle.response_complete:
            return Turn.IDLE
        return Turn.CALLER if self.conn.their_state is h11.SEND_BODY else Turn.SERVER

    def _late(self) -> None:
        if (left := self._time_left()) > 0:  # a body has come fast enough so far
            self._reading = self.loop.call_later(left, self._late)
        elif self._phase is _Phase.BODY:
            self._refusal = self._slow_body()
            self.cycle.message_event.set()
            self._look()
        elif self._phase is _Phase.HEAD and self.conn.trailing_data[0]:
            self._refuse(HttpError(408, f"the head of the request took longer than {HEAD_SECONDS:g} s"))
            self._look()
        else:
            self.transport.abort()

    def _slow_body(self) -> HttpError:
        """Makes the answer to a body that came too slowly."""
        if self.loop.time() - self._progress >= NO_PROGRESS_SECONDS:
            slow = f"nothing came of the body for {NO_PROGRESS_SECONDS:g} s"
        else:
            rate = BODY_BYTES_PER_SECOND // 1_024
            slow = f"the body took longer than {BODY_SECONDS:g} s, at less than {rate} KiB/s"
        return HttpError(408, f"{slow}: send it faster, or fewer documents at once", {"connection": "close"})

    def _time_left(self) -> float:
        now = self.loop.time()
        if self._phase is _Phase.BODY:
            allowed = BODY_SECONDS + self._received / BODY_BYTES_PER_SECOND
            return min(self._since + allowed, self._progress + NO_PROGRESS_SECONDS) - now
        allowed = HEAD_SECONDS if self._phase is _Phase.HEAD else LINGER_SECONDS
        return self._since + allowed - now
