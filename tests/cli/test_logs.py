"""Log lines are written by a thread of their own: complete, in order, warnings at once."""

import io
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rerank_grpc.cli.logs import BackgroundHandler
from tests.support import wait_for


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> Iterator[logging.Logger]:
    logger = logging.Logger("test", logging.INFO)
    handler = BackgroundHandler(stream)
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_a_line_is_written_soon_without_being_asked_for(log: logging.Logger, stream: io.StringIO):
    log.info("one %s", "line")
    wait_for(lambda: bool(stream.getvalue()), seconds=2)
    assert stream.getvalue() == "one line\n"


def test_a_warning_is_written_at_once_after_what_came_before_it(log: logging.Logger, stream: io.StringIO):
    log.info("first")
    log.warning("second")
    assert stream.getvalue() == "first\nsecond\n"


def test_closing_writes_the_rest(log: logging.Logger, stream: io.StringIO):
    log.info("last words")
    log.handlers[0].close()
    assert stream.getvalue() == "last words\n"


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


def test_a_record_that_cannot_be_formatted_stops_nothing(
    log: logging.Logger, stream: io.StringIO, capsys: pytest.CaptureFixture[str]
):
    log.warning("%d", "no number")
    log.warning("after")
    assert stream.getvalue() == "after\n"
    assert "TypeError" in capsys.readouterr().err


def test_a_reader_that_has_gone_stops_neither_the_thread_nor_who_logs():
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    logger = logging.Logger("test", logging.INFO)
    handler = BackgroundHandler(Gone())
    logger.addHandler(handler)
    for _ in range(3):
        logger.info("unheard")
        logger.warning("unheard")
        logger.info("unheard")
        wait_for(lambda: not handler._records, seconds=2)
    assert handler._thread.is_alive()
    handler.close()
