"""The log of a server: lines for people or JSON on stderr, for which no caller waits."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from structlog.typing import EventDict

from rerank_grpc.errors import describe

DELAY_SECONDS, CLOSE_SECONDS = 0.1, 1.0
MAX_RECORDS = 10_000  # a hundred milliseconds of the busiest server are some hundred records
MAX_WAITING = 1 << 20  # lines that wait for their reader, in characters
MAX_GATHERED = 1 << 16  # characters of lines after which those go to the writer, though more records wait

MAX_LINES = 10  # lines of one kind in one window; a record with a traceback counts as all of them
WINDOW_SECONDS, MAX_WINDOW_SECONDS = 1.0, 10.0  # doubled while lines are dropped, up to the maximum
MAX_KINDS = 256  # kinds beyond these share one window
EXAMPLE_CHARACTERS = 200  # a count quotes this much of the first line that it stands for

# The hub's clients, which tell the URL of each request at info; it may hold a signature or a password.
HTTP_CLIENTS = ("httpx", "httpx2")

# The attributes of a record that are no fields: logging's own, and the kind, by which repeats are bounded.
_NO_FIELDS = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "kind"))


class BackgroundHandler(QueueHandler):
    """Has records written by `write`, which may block for ever; nothing else here blocks.

    An ordinary handler writes under a lock on the thread that answers the call: all calls would wait for a
    reader that has stopped reading. Here a caller only puts a record aside; one thread makes lines of them,
    and only a second one waits for a full pipe, a slow disk or a stopped terminal. Records, lines and repeats
    are bounded; the dropped ones are counted.
    """

    queue: SimpleQueue[logging.LogRecord | None]

    def __init__(self, write: Callable[[str], object], *, for_people: bool = True) -> None:
        # A SimpleQueue may be put to by a signal handler or a finalizer that interrupts a put.
        super().__init__(SimpleQueue())
        self._for_people = for_people
        self._lines = LineMaker(self.queue, self.format, LineWriter(write))
        self._lines.start()

    @property
    def dropped(self) -> int:
        """The lines dropped so far: they came faster than they were read, or could not be written."""
        return self._lines.dropped + self._lines.lost

    def createLock(self) -> None:
        self.lock = None  # a SimpleQueue's put needs none

    def handle(self, record: logging.LogRecord) -> bool:
        """Puts a record aside unless a filter refuses it, without the lock that newer Pythons take here."""
        admitted = bool(self.filter(record))
        if admitted:
            self.emit(record)
        return admitted

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # formatted by the other thread

    def enqueue(self, record: logging.LogRecord) -> None:
        """Puts a record aside; a warning or worse is written at once."""
        if self.queue.qsize() < MAX_RECORDS:
            self.queue.put(record)
        else:
            self._lines.dropped += 1  # without a lock: among thousands, one may be missed
        if record.levelno >= logging.WARNING:
            self.flush()

    def write(self, text: str) -> None:
        """Shows people a text as it is; without a newline at its end, the next text replaces it."""
        if self._for_people and text:
            self.enqueue(_record(__name__, "", level=logging.INFO, shown=text))
            self.flush()

    def say(self, *lines: str, event: str = "", level: int = logging.INFO, **fields: object) -> None:
        """Shows people whole lines as they are; machines get the event, or without one each line as such."""
        if self._for_people:
            self.write("".join(f"{line}\n" for line in lines))
            return
        for told in (event,) if event else filter(str.strip, lines):
            self.enqueue(_record(__name__, told, level=level, **fields))
        self.flush()

    def flush(self) -> None:
        """Wakes the threads, and does not wait for them."""
        self._lines.wake()

    def close(self) -> None:
        """Ends the threads once all is written, or leaves them behind after a second."""
        self._lines.stop()
        super().close()


class LineMaker(QueueListener):
    """Makes lines of queued records on a thread of its own, without those beyond a bound."""

    def __init__(
        self,
        queue: SimpleQueue[logging.LogRecord | None],
        render: Callable[[logging.LogRecord], str],
        writer: LineWriter,
    ) -> None:
        super().__init__(queue)
        self.dropped = 0
        self._told = 0  # of the dropped lines
        self._records, self._render, self._writer = queue, render, writer
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._repeats = Repeats()
        self._gathered: list[str] = []
        self._characters = 0  # of these
        self._unfinished = False  # whether the last text ended without a newline, as progress does

    @property
    def lost(self) -> int:
        """The lines that could not be written."""
        return self._writer.lost

    def wake(self) -> None:
        """Has lines made of all that is queued now."""
        if self._wakeups.empty():
            self._wakeups.put(None)

    def stop(self) -> None:
        """Ends the thread, and the writer's, within a second; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        end = time.monotonic() + CLOSE_SECONDS
        self._records.put(None)
        self.wake()
        thread.join(CLOSE_SECONDS)
        if not thread.is_alive():
            self._pass_on(ending=True)
        self._writer.close(end - time.monotonic())

    def dequeue(self, block: bool) -> logging.LogRecord:
        """Takes a record; where there is none, hands the lines on and waits until a moment has passed."""
        while True:
            with suppress(Empty):
                return self._records.get_nowait()  # type: ignore[return-value]  # None ends the thread
            self._pass_on()
            with suppress(Empty):
                self._wakeups.get(timeout=DELAY_SECONDS)

    def handle(self, record: logging.LogRecord) -> None:
        try:
            if self._repeats.admits(record, time.monotonic()):
                self._gather(record)
        except Exception as error:  # an odd record of any library must not end the thread
            self._gather(_record(__name__, "a line could not be made: %s", describe(error)))
        if self._characters > MAX_GATHERED:
            self._pass_on()

    def _pass_on(self, *, ending: bool = False) -> None:
        """Hands the lines to the writer, with the counts of those that were left out."""
        for count in self._repeats.counts(time.monotonic(), ending=ending):
            self._gather(count)
        dropped = self.dropped - self._told
        if dropped and self._free > MAX_WAITING // 2:
            self._told += dropped
            text = "%s lines were dropped: they came faster than read"
            self._gather(_record(__name__, text, dropped, event="lines_dropped", count=dropped))
        if self._gathered:
            self._writer.take("".join(self._gathered))
            self._gathered.clear()
            self._characters = 0

    @property
    def _free(self) -> int:
        return MAX_WAITING - self._writer.waiting - self._characters

    def _gather(self, record: logging.LogRecord) -> None:
        text: str = vars(record).get("shown") or self._line(record)
        if self._unfinished:
            text = "\r\x1b[2K" + text  # the cursor to the start of its line, which is emptied
        if len(text) > self._free:
            self.dropped += 1
            return
        self._gathered.append(text)
        self._characters += len(text)
        self._unfinished = not text.endswith("\n")

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self._render(record) + "\n"
        except Exception as error:
            # The arguments are left out: only the template is sure to quote no caller.
            text = "a line could not be formatted (%s): %s"
            values = type(error).__name__, _template_of(record)
            return self._render(_record(record.name, text, *values)) + "\n"


class LineWriter:
    """Passes texts in their order to `write` on a thread of its own; only that one may block."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self.lost = 0  # lines that could not be written
        self._taken, self._written = 0, 0  # characters, each changed by one thread only
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The characters that are not written yet."""
        return self._taken - self._written

    def take(self, text: str) -> None:
        self._taken += len(text)
        self._texts.put(text)

    def close(self, seconds: float) -> None:
        """Waits at most so long until all is written, and ends the thread then or later."""
        self._texts.put(None)
        self._thread.join(max(seconds, 0.0))

    def _run(self) -> None:
        while (text := self._texts.get()) is not None:
            try:
                self._write(text)
            except OSError:  # the reader has left, or the disk is full; the service goes on
                self.lost += text.count("\n")
            self._written += len(text)


@dataclass(slots=True)
class _Window:
    """The written and dropped lines of one kind since `begin`."""

    begin: float
    seconds: float = WINDOW_SECONDS
    written: int = 0
    dropped: int = 0
    name: str = ""
    level: int = logging.WARNING
    example: str = ""
    reason: str | None = None  # of a call's record


class Repeats:
    """Admits the first lines of each kind in a window, and counts the others.

    A record's kind is set by `extra={"kind": ...}`; else a warning or worse is of the kind
    of its logger and unformatted text. Any other record has no kind and is always admitted.
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
        window = self._windows.setdefault(kind, _Window(now))
        if window.written < MAX_LINES:
            window.written += MAX_LINES if record.exc_info else 1
            return True
        if not window.dropped:
            window.name, window.level, window.example = record.name, record.levelno, _example_of(record)
            window.reason = getattr(record, "reason", None)
        window.dropped += 1
        return False

    def counts(self, now: float, *, ending: bool = False) -> Iterator[logging.LogRecord]:
        """Makes a record of the dropped lines of each window that has ended, or of all when `ending`."""
        for kind, window in list(self._windows.items()):
            seconds = now - window.begin
            if seconds < window.seconds and not ending:
                continue
            del self._windows[kind]
            if window.dropped:
                text = "... and %s more like this in %.1f s: %s"
                like = f"{window.example} reason={window.reason}" if window.reason else window.example
                values = (f"{window.dropped:,}", seconds, like)
                fields = {"count": window.dropped, "seconds": round(seconds, 1), "example": window.example}
                fields["reason"] = window.reason
                yield _record(window.name, text, *values, level=window.level, event="repeated", **fields)
                self._windows[kind] = _Window(now, min(2 * window.seconds, MAX_WINDOW_SECONDS))


def _kind_of(record: logging.LogRecord) -> Hashable | None:
    given: object = getattr(record, "kind", None)
    kind = given if isinstance(given, Hashable) else None  # any library may use the name
    if kind is None and record.levelno >= logging.WARNING:
        return record.name, _template_of(record)
    return kind


def _template_of(record: logging.LogRecord) -> str:
    # asyncio formats its own: the objects that it names in further lines are new each time.
    return str(record.msg).partition("\n")[0]


def _example_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().partition("\n")[0][:EXAMPLE_CHARACTERS]
    except Exception:  # arguments that do not fit the text
        return _template_of(record)[:EXAMPLE_CHARACTERS]


def _record(
    name: str, text: str, /, *values: object, level: int = logging.WARNING, **fields: object
) -> logging.LogRecord:
    record = logging.LogRecord(name, level, "", 0, text, values, None)
    vars(record).update(fields)
    return record


def log_to(stream: TextIO, level: str, *, for_people: bool, color: bool = False) -> BackgroundHandler:
    """Sends the log of this process, and Python's warnings, to a stream from a level ("info" …) up.

    Of other packages nothing below info is sent, and of those in HTTP_CLIENTS nothing below warning.
    Lines are for people, in colours or without, or JSON for machines. Raises ModuleNotFoundError where
    structlog is not installed.
    """
    formatter = people_formatter(color=color) if for_people else json_formatter()
    # The stream's own lock stays free, though a write to its descriptor hangs.
    handler = BackgroundHandler(partial(_write_to, stream.fileno(), stream.encoding), for_people=for_people)
    handler.setFormatter(formatter)
    own = logging.getLevelNamesMapping()[level.upper()]
    # What other packages tell of themselves while they are debugged is no help here, and a flood.
    logging.basicConfig(level=max(own, logging.INFO), handlers=[handler])
    logging.getLogger(__name__.partition(".")[0]).setLevel(own)
    for name in HTTP_CLIENTS:
        logging.getLogger(name).setLevel(max(own, logging.WARNING))
    logging.captureWarnings(True)
    return handler


def json_formatter() -> logging.Formatter:
    """Makes what renders a record as one JSON object, with its fields beside timestamp, level and event."""
    from structlog import processors, stdlib

    return stdlib.ProcessorFormatter(
        processors=[_for_machines, processors.format_exc_info, processors.JSONRenderer()]
    )


def people_formatter(*, color: bool = False) -> logging.Formatter:
    """Makes what renders a record as a line for people: time, level, sentence, and what that leaves out."""
    from structlog import dev, stdlib

    styles = dev.ConsoleRenderer.get_default_column_styles(color)
    levels = dev.ConsoleRenderer.get_default_level_styles(color)
    shown = partial(dev.KeyValueColumnFormatter, None, reset_style=styles.reset, value_repr=str)
    value = dev.KeyValueColumnFormatter(styles.kv_key, styles.kv_value, styles.reset, _readable)
    renderer = dev.ConsoleRenderer(
        columns=[
            dev.Column("timestamp", shown(styles.timestamp)),
            dev.Column("level", lambda _, level: f"{levels[str(level)]}{str(level).upper():7}{styles.reset}"),
            dev.Column("logger", shown(styles.logger_name, postfix=":")),
            dev.Column("event", shown(styles.bright)),
            dev.Column("", value),
        ],
        sort_keys=False,
        # By default rich would show the local variables of each frame, and with them what callers sent.
        exception_formatter=dev.plain_traceback,
    )
    return stdlib.ProcessorFormatter(processors=[_for_people, renderer])


def _for_machines(_logger: object, level: str, told: EventDict) -> EventDict:
    record, sentence = _taken_out(told)
    fields = _fields(record)
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = {"timestamp": when.replace("+00:00", "Z"), "level": level, "logger": record.name}
    return {**head, "event": fields.pop("event", sentence), **fields, **told}


def _for_people(_logger: object, level: str, told: EventDict) -> EventDict:
    record, sentence = _taken_out(told)
    fields = _fields(record)
    # The sentence of an event says all that people need; that of a call begins its line.
    match fields.pop("event", None):
        case "call":
            del fields["method"], fields["status" if "status" in fields else "code"]
        case str():
            fields.clear()
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
    head = {"timestamp": f"{when},{int(record.msecs):03d}", "level": level}
    if not record.name.startswith("rerank_grpc"):  # our own sentences say what they are about
        head["logger"] = record.name
    return {**head, "event": sentence, **fields, **told}


def _taken_out(told: EventDict) -> tuple[logging.LogRecord, str]:
    """Takes out the record and its sentence; the traceback stays, if there is one."""
    told.pop("_from_structlog")
    return told.pop("_record"), told.pop("event")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Returns the `extra` of a record, without what is not known."""
    extra = vars(record).items()
    # Libraries mark records by private names, as Ray does each one of a process that imports it.
    return {
        name: value
        for name, value in extra
        if value is not None and name not in _NO_FIELDS and not name.startswith("_")
    }


def _readable(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and not set(text) & set(" =\"'") else repr(text)


def _write_to(descriptor: int, encoding: str, text: str) -> None:
    left = memoryview(text.encode(encoding, "replace"))
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made the shared descriptor so
            select.select([], [descriptor], [])
