"""Log lines are written by a thread of their own: complete, in order, and at nobody's cost."""

import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rerank_grpc.cli import logs
from rerank_grpc.cli.logs import CLOSE_SECONDS, MAX_RECORDS, MAX_WAITING, BackgroundHandler
from tests.support import WAIT, wait_for


def logger_of(handler: BackgroundHandler) -> logging.Logger:
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(handler)
    return logger


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def handler(stream: io.StringIO) -> Iterator[BackgroundHandler]:
    handler = BackgroundHandler(stream.write)
    yield handler
    handler.close()


@pytest.fixture
def log(handler: BackgroundHandler) -> logging.Logger:
    return logger_of(handler)


class Hung:
    """A stream that takes nothing until the test lets it: `entered` tells that a write hangs."""

    def __init__(self) -> None:
        self.entered, self.let, self.text = threading.Event(), threading.Event(), ""

    def write(self, text: str) -> None:
        self.entered.set()
        assert self.let.wait(WAIT)
        self.text += text


@pytest.fixture
def hung() -> Iterator[Hung]:
    hung = Hung()
    yield hung
    hung.let.set()


def test_a_line_is_written_soon_without_being_asked_for(log: logging.Logger, stream: io.StringIO):
    log.info("one %s", "line")
    wait_for(lambda: bool(stream.getvalue()), seconds=2)
    assert stream.getvalue() == "one line\n"


def test_a_warning_is_written_at_once_after_what_came_before_it(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
):
    monkeypatch.setattr(logs, "DELAY_SECONDS", 3_600)
    handler = BackgroundHandler(stream.write)
    log = logger_of(handler)
    log.info("first")
    log.warning("second")
    wait_for(lambda: stream.getvalue() == "first\nsecond\n")
    handler.close()


def test_closing_writes_the_rest(log: logging.Logger, stream: io.StringIO):
    log.info("last words")
    log.handlers[0].close()
    assert stream.getvalue() == "last words\n"


def test_what_is_said_keeps_its_place_among_the_records(
    handler: BackgroundHandler, log: logging.Logger, stream: io.StringIO
):
    log.info("before")
    handler.say("one", "", "two %d")
    handler.write("progress")
    log.info("after")
    handler.close()
    assert stream.getvalue() == "before\none\n\ntwo %d\nprogress\r\x1b[2Kafter\n"


def test_no_line_of_many_threads_is_lost_or_torn(log: logging.Logger, stream: io.StringIO):
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        for turn in range(500):
            log.info("%d %d", number, turn)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    log.handlers[0].close()
    lines = stream.getvalue().splitlines()
    assert sorted(lines) == sorted(f"{number} {turn}" for number in range(8) for turn in range(500))
    for number in range(8):
        mine = [line for line in lines if line.startswith(f"{number} ")]
        assert mine == [f"{number} {turn}" for turn in range(500)]


def test_a_record_that_cannot_be_formatted_stops_nothing_and_quotes_no_argument(
    log: logging.Logger, stream: io.StringIO
):
    log.warning("%d", "canary")
    log.warning("after")
    log.handlers[0].close()
    assert stream.getvalue() == "a line could not be formatted (TypeError): %d\nafter\n"


def test_a_flood_of_one_kind_is_a_few_lines_and_a_count(log: logging.Logger, stream: io.StringIO):
    for _ in range(3_000):
        log.warning("Invalid HTTP request received.")
    log.handlers[0].close()
    assert len(stream.getvalue()) < 2_000
    assert " more like this in " in stream.getvalue()


def test_nobody_who_logs_or_closes_waits_for_a_reader_that_hangs(hung: Hung):
    handler = BackgroundHandler(hung.write)
    log = logger_of(handler)
    begin = time.monotonic()
    log.warning("hangs")
    assert hung.entered.wait(WAIT)
    for _ in range(1_000):
        log.info("behind it")
        log.warning("behind it")
        handler.say("behind it")
        handler.flush()
    assert time.monotonic() - begin < CLOSE_SECONDS
    handler.close()
    assert time.monotonic() - begin < 3 * CLOSE_SECONDS


def test_what_waits_for_a_reader_is_bounded_and_what_is_dropped_is_counted(hung: Hung):
    handler = BackgroundHandler(hung.write)
    log = logger_of(handler)
    log.warning("hangs")
    assert hung.entered.wait(WAIT)
    line = "x" * 999
    for _ in range(2 * MAX_WAITING // 1_000):
        log.info(line)
    wait_for(lambda: not handler._arrived)
    hung.let.set()
    wait_for(lambda: "lines were dropped" in hung.text)
    handler.close()
    lines = hung.text.splitlines()
    dropped = next(int(each.split()[0]) for each in lines if "lines were dropped" in each)
    assert lines.count(line) + dropped == 2 * MAX_WAITING // 1_000
    assert lines.count(line) * 1_000 <= MAX_WAITING


def test_records_that_come_faster_than_lines_are_made_are_bounded(monkeypatch: pytest.MonkeyPatch):
    made = threading.Event()
    monkeypatch.setattr(BackgroundHandler, "_pass_on", lambda _: made.wait(WAIT))
    handler = BackgroundHandler(str)
    log = logger_of(handler)
    for _ in range(MAX_RECORDS + 3):
        log.info("line")
    handler.say("a line that is said")
    assert (len(handler._arrived), handler._dropped) == (MAX_RECORDS, 4)
    made.set()
    handler._texts.put(None)
    handler.close()


@pytest.mark.parametrize("error", [BrokenPipeError, OSError(28, "No space left on device")])
def test_a_reader_that_has_gone_or_a_full_disk_ends_no_thread(error: OSError):
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) < 3:
            raise error

    handler = BackgroundHandler(write)
    log = logger_of(handler)
    for turn in range(3):
        log.warning("line %d", turn)
        wait_for(lambda: len(written) > turn, seconds=2)  # noqa: B023
    handler.close()
    assert written == ["line 0\n", "line 1\n", "line 2\n"]


def test_a_descriptor_that_takes_only_some_gets_the_rest_later():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "é" * 100_000  # more than a pipe holds
    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(logs._write_to, writing, "utf-8", text)
        got = b""
        while len(got) < 200_000:
            got += os.read(reading, 65_536)
        written.result(WAIT)
    os.close(reading)
    os.close(writing)
    assert got.decode() == text
