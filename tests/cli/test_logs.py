"""Log lines are written by a thread of their own: complete, in order, and at nobody's cost."""

import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from rerank_grpc.cli import logs
from rerank_grpc.cli.logs import (
    CLOSE_SECONDS,
    MAX_RECORDS,
    MAX_WAITING,
    BackgroundHandler,
    LineMaker,
    json_formatter,
    people_formatter,
)
from rerank_grpc.client import Client, RerankError
from tests.command import environment, run
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
    wait_for(lambda: bool(stream.getvalue()))
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
    handler.say("one", "", "two %d", event="for machines", count=2)
    handler.say(event="for machines alone")
    handler.write("progress")
    log.info("after")
    handler.close()
    assert stream.getvalue() == "before\none\n\ntwo %d\nprogress\r\x1b[2Kafter\n"


def test_a_signal_handler_may_log_in_the_middle_of_a_line(log: logging.Logger, stream: io.StringIO):
    # SIGALRM comes while the main thread formats, puts aside or wakes: at any of its instructions.
    handled = list[int]()

    def on_signal(number: int, _frame: object) -> None:
        handled.append(number)
        log.warning("signal %d", len(handled))

    before = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        lines = 0
        while len(handled) < 100:
            lines += 1
            log.warning("line")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    log.handlers[0].close()
    assert "signal 1\n" in stream.getvalue()
    assert stream.getvalue().count("line\n") >= min(lines, logs.MAX_LINES)


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


def test_an_odd_record_of_another_library_ends_no_thread(log: logging.Logger, stream: io.StringIO):
    class Odd:
        def __str__(self) -> str:
            raise ValueError("canary")

    log.warning("kind", extra={"kind": {"un": "hashable"}})
    log.warning(Odd())
    log.warning("after")
    log.handlers[0].close()
    first, second, last = stream.getvalue().splitlines()
    assert (first, last) == ("kind", "after")
    assert second.startswith("a line could not be made: ValueError at ")
    assert "canary" not in second


def test_a_flood_of_one_kind_is_a_few_lines_and_a_count(log: logging.Logger, stream: io.StringIO):
    for _ in range(3_000):
        log.warning("Invalid HTTP request received.")
    log.handlers[0].close()
    assert len(stream.getvalue()) < 2_000
    assert " more like this in " in stream.getvalue()


@pytest.mark.clock
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
    wait_for(handler.queue.empty)
    assert handler.dropped
    hung.let.set()
    wait_for(lambda: "lines were dropped" in hung.text)
    handler.close()
    lines = hung.text.splitlines()
    dropped = next(int(each.split()[0]) for each in lines if "lines were dropped" in each)
    assert lines.count(line) + dropped == 2 * MAX_WAITING // 1_000
    assert dropped == handler.dropped
    assert lines.count(line) * 1_000 <= MAX_WAITING


def test_records_that_come_faster_than_lines_are_made_are_bounded(monkeypatch: pytest.MonkeyPatch):
    made, take = threading.Event(), LineMaker.dequeue

    def wait(lines: LineMaker, block: bool) -> logging.LogRecord:
        assert made.wait(WAIT)
        return take(lines, block)

    monkeypatch.setattr(LineMaker, "dequeue", wait)
    handler = BackgroundHandler(str)
    log = logger_of(handler)
    for _ in range(MAX_RECORDS + 3):
        log.info("line")
    handler.say("a line that is said")
    assert (handler.queue.qsize(), handler.dropped) == (MAX_RECORDS, 4)
    made.set()
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
        wait_for(lambda: len(written) > turn)  # noqa: B023
    handler.close()
    assert written == ["line 0\n", "line 1\n", "line 2\n"]
    assert handler.dropped == 2


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


def test_a_log_may_be_closed_twice_and_what_comes_later_is_nobodys(log: logging.Logger, stream: io.StringIO):
    log.info("last words")
    for _ in range(2):
        log.handlers[0].close()
    log.warning("too late")
    assert stream.getvalue() == "last words\n"


# For machines


class Machine:
    """A log in JSON, and what it has written."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.handler = BackgroundHandler(self._stream.write, for_people=False)
        self.handler.setFormatter(json_formatter())
        self.log = logger_of(self.handler)

    def lines(self) -> list[dict[str, Any]]:
        """Closes the log, and reads its lines."""
        self.handler.close()
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.handler.close()


def test_a_record_is_one_object_with_its_fields_and_none_of_loggings_own(machine: Machine):
    machine.log.info(
        "%s of %d", "one", 2, extra={"model": "m\n\u00e9", "tokens": 7, "left": None, "kind": "k"}
    )
    (line,) = machine.lines()
    timestamp = line.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)
    assert abs((datetime.fromisoformat(timestamp) - datetime.now(UTC)).total_seconds()) < WAIT
    expected = {"level": "info", "logger": "test", "event": "one of 2", "model": "m\n\u00e9", "tokens": 7}
    assert line == expected


def test_an_event_that_has_a_name_is_told_by_it(machine: Machine):
    machine.log.info("model %s is ready", "m", extra={"event": "model_ready", "model": "m"})
    (line,) = machine.lines()
    assert (line["event"], line["model"]) == ("model_ready", "m")


def test_what_is_said_to_people_is_an_event_for_machines_and_progress_is_left_out(machine: Machine):
    machine.handler.say("\x1b[1mserves\x1b[0m", "", event="serving", level=logging.WARNING, grpc="[::1]:1")
    machine.handler.write("progress")
    machine.handler.say("", "one %d", "two")
    line, *others = machine.lines()
    assert (line["event"], line["level"], line["grpc"]) == ("serving", "warning", "[::1]:1")
    assert [other["event"] for other in others] == ["one %d", "two"]


def test_a_traceback_is_a_field(machine: Machine):
    try:
        raise OSError("broken")
    except OSError:
        machine.log.exception("it failed")
    (line,) = machine.lines()
    assert line["event"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("OSError: broken")
    assert "exc_info" not in line


def test_what_cannot_be_formatted_or_came_too_often_is_an_object_too(machine: Machine):
    machine.log.warning("%d", "canary")
    for _ in range(logs.MAX_LINES + 2):
        machine.log.warning("bad %d", 1)
    first, *_, last = machine.lines()
    assert first["event"] == "a line could not be formatted (TypeError): %d"
    assert (last["event"], last["count"], last["example"]) == ("repeated", 2, "bad 1")


# For people


def for_people(record: logging.LogRecord, *, color: bool = False) -> str:
    line = people_formatter(color=color).format(record)
    assert re.match(r"(\x1b\[2m)?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", line)
    return line[len("2026-01-01 00:00:00,000 ") :]


def record(sentence: str, *values: object, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("rerank_grpc.calls", logging.INFO, "", 0, sentence, values, None)
    vars(made).update(extra)
    return made


def test_people_read_a_sentence_and_then_the_fields():
    line = for_people(record("%s of 2", "one", model="a b", tokens=7, left=None, text="\x1b", kind="k"))
    assert line == "INFO    one of 2 model='a b' tokens=7 text='\\x1b'"


def test_the_sentence_of_an_event_is_enough_for_people():
    line = for_people(record("model m is ready", event="model_ready", model="m"))
    assert line == "INFO    model m is ready"


def test_a_call_begins_with_what_was_called_and_how_it_ended():
    call: dict[str, Any] = {"event": "call", "method": "Rerank", "code": "OK", "documents": 2}
    assert for_people(record("Rerank OK", **call)) == "INFO    Rerank OK documents=2"
    over_rest = for_people(record("rerank 200", **call, status=200))
    assert over_rest == "INFO    rerank 200 code=OK documents=2"


def test_lines_of_other_packages_say_whose_they_are():
    assert for_people(record("hello", name="uvicorn.error")) == "INFO    uvicorn.error: hello"


def test_a_traceback_shows_no_local_variable():
    def fails() -> None:
        query = "canary"
        raise OSError(f"broken {len(query)}")

    try:
        fails()
    except OSError:
        failed = record("it failed")
        failed.exc_info = sys.exc_info()
    for line in (people_formatter(), people_formatter(color=True), json_formatter()):
        assert "OSError: broken 6" in line.format(failed)
        assert "canary" not in line.format(failed)


def test_colours_are_for_terminals_that_take_them():
    assert "\x1b" in for_people(record("hello"), color=True)
    assert "\x1b" not in for_people(record("hello"))


# Of a real server


def serve(
    *arguments: str, stderr: int = subprocess.PIPE, command: str = "serve", **variables: str
) -> subprocess.Popen[str]:
    """Starts a server whose log has the format that it chooses itself."""
    ports = ["--rest-port", "0", "--metrics-port", "0"]
    if command == "serve":
        ports += ["--port", "0", "--admin-port", "off"]
    own = {"RERANK_LOG_FORMAT": ""} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "rerank_grpc", command, *ports, *arguments],
        stderr=stderr,
        encoding="utf-8",
        env=environment(**own),
    )


def until(process: subprocess.Popen[str], event: str = "serving") -> list[dict[str, Any]]:
    """Reads the lines of a server until one tells of an event: that it serves, where none is named."""
    assert process.stderr is not None
    told = list[dict[str, Any]]()
    while not told or told[-1]["event"] != event:
        told.append(json.loads(process.stderr.readline()))
    return told


def ended(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Has a server stop, and reads the rest of its lines."""
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    with process.stderr as lines:
        told = [json.loads(line) for line in lines]
    assert process.wait(60) == 0
    return told


def test_without_a_terminal_all_that_a_server_writes_is_json_from_its_start_to_its_end():
    process = serve("--host", "0.0.0.0", "--rest-host", "127.0.0.1")
    told = until(process)
    target = told[-1]["grpc"].replace("0.0.0.0", "127.0.0.1")
    assert run("rerank", "--target", target, "canary", "-", stdin="canary\n").returncode == 0
    told += until(process, "call")  # which is told behind the answer
    told += ended(process)
    assert "canary" not in str(told)
    events = [line["event"] for line in told]
    wanted = ["starting", "model_loading", "model_ready", "serving", "call"]
    wanted += ["stopping", "draining", "drained"]
    assert [event for event in events if event in wanted] == wanted
    assert events[-1] == "ended"
    (warning,) = [line for line in told if line["event"] == "open_to_all"]
    assert warning["level"] == "warning"
    assert re.match(r"0\.0\.0\.0:\d+ can be reached .* served\. Set RERANK_TOKENS ", warning["text"])
    by_event = {line["event"]: line for line in told}
    assert by_event["serving"]["models"] == {"embedded": "ready"}
    assert by_event["model_ready"]["memory_bytes"] > 0
    call = by_event["call"]
    assert (call["method"], call["code"], call["documents"], call["protocol"]) == ("Rerank", "OK", 1, "grpc")
    stages = sum(call[f"{stage}_ms"] for stage in ("admission", "tokenize", "queue", "inference", "answer"))
    assert stages == pytest.approx(call["ms"], abs=2)


def test_a_server_says_when_it_begins_to_refuse_and_at_its_end_how_many_it_has():
    process = serve("--lazy-model", "x=no/such/dir", HF_HUB_OFFLINE="1")
    start, *_, serving = until(process)
    assert start["event"] == "starting"
    assert start["models"] == list(serving["models"]) == ["embedded", "x"]
    target = serving["grpc"]
    with Client(target) as client:  # by one process: ten seconds between two refusals would end the first
        for _ in range(2):
            with pytest.raises(RerankError):
                client.rerank("canary", ["canary"], model="x")
    told = ended(process)
    (begin,) = [line for line in told if line["event"] == "refusing"]
    (end,) = [line for line in told if line["event"] == "refusing_ended"]
    assert (begin["reason"], begin["model"], begin["level"]) == ("model_failed", "x", "warning")
    assert end["reason"] == "model_failed"
    calls = [line for line in told if line["event"] == "call" and line.get("reason") == "model_failed"]
    assert end["calls"] == len(calls) >= 2
    assert "canary" not in str(told)


def test_a_server_that_cannot_start_says_so_in_json():
    arguments = ("--port", "0", "--admin-port", "off", "--metrics-port", "0", "--model", "x=no/such/dir")
    done = run("serve", *arguments, HF_HUB_OFFLINE="1", RERANK_LOG_FORMAT="")
    told = [json.loads(line) for line in done.stderr.splitlines()]
    (failed,) = [line for line in told if line["event"] == "model_failed"]
    assert (failed["model"], failed["attempt"], failed["level"]) == ("x", 1, "error")
    assert "no/such/dir" in failed["error"]
    (why,) = [line for line in told if line["level"] == "critical"]
    assert why["event"] == "cannot_start"
    assert "no/such/dir" in why["error"]
    assert not why["error"].startswith("rerank-grpc")
    assert told[-1]["status"] == done.returncode == 1


@pytest.mark.parametrize(
    ("variables", "json_lines", "colours"),
    [({}, False, True), ({"NO_COLOR": "1"}, False, False), ({"RERANK_LOG_FORMAT": "json"}, True, False)],
    ids=["auto", "no colour", "json"],
)
def test_a_terminal_gets_lines_for_people_unless_it_asks_for_json(
    variables: dict[str, str], json_lines: bool, colours: bool
):
    ours, theirs = pty.openpty()
    process = serve(stderr=theirs, TERM="xterm", **variables)
    os.close(theirs)
    said, last = b"", b'"serving"' if json_lines else b"Ctrl-C stops it."
    while last not in said:
        said += os.read(ours, 65_536)
    process.kill()
    process.wait()
    os.close(ours)
    assert (b"\x1b[1m" in said) == colours
    if json_lines:
        *lines, _ = said.decode().split("\r\n")
        assert {"starting", "model_ready"} <= {json.loads(line)["event"] for line in lines}
        assert b"\x1b" not in said


def test_rest_alone_tells_its_start_and_its_notes_by_names():
    hosts = ("--rest-host", "0.0.0.0", "--metrics-host", "0.0.0.0")
    process = serve("--target", "127.0.0.1:1", *hosts, command="rest")
    start, *_, serving = until(process)
    told = ended(process)
    assert start["event"] == "starting"
    assert start["targets"] == serving["targets"] == ["127.0.0.1:1"]
    notes = {line["event"]: line["text"] for line in told if "text" in line}
    assert notes.keys() == {"open_to_all", "open_metrics"}
    assert notes["open_metrics"].startswith("the metrics at 0.0.0.0 can be read from other machines")


def test_debugging_is_of_this_service_alone():
    code = """
import logging, sys
from rerank_grpc.cli.logs import log_to

handler = log_to(sys.stdout, "%s", for_people=False)
for name in ("rerank_grpc.calls", "asyncio", "grpc._cython"):
    logging.getLogger(name).debug("debug of %%s", name)
    logging.getLogger(name).info("info of %%s", name)
    logging.getLogger(name).error("error of %%s", name)
handler.close()
"""

    def events(level: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code % level], capture_output=True, text=True, timeout=60, check=True
        )
        return [json.loads(line)["event"] for line in done.stdout.splitlines()]

    names = ("rerank_grpc.calls", "asyncio", "grpc._cython")
    lines = [f"{level} of {name}" for name in names for level in ("debug", "info", "error")]
    assert events("debug") == [line for line in lines if line not in (lines[3], lines[6])]
    assert events("info") == [line for line in lines if not line.startswith("debug")]
    assert events("error") == [line for line in lines if line.startswith("error")]


@pytest.mark.parametrize("level", ["debug", "info"])
def test_no_url_of_a_hub_is_told(level: str):
    code = f"""
import logging, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from huggingface_hub import get_session
from rerank_grpc.cli.logs import log_to

class Empty(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Empty)
Thread(target=server.serve_forever, daemon=True).start()
handler = log_to(sys.stdout, "{level}", for_people=False)
assert get_session().get(f"http://127.0.0.1:{{server.server_port}}/?signature=canary").status_code == 204
handler.close()
"""
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_thread_that_fails_is_one_line_without_its_errors_text(form: str):
    code = """
import threading
from rerank_grpc.cli.process import Process

def fails():
    raise ValueError("canary")

process = Process("info", "%s", 1)
thread = threading.Thread(target=fails, name="worker")
thread.start()
thread.join()
process.log.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code % form], capture_output=True, text=True, timeout=60, env=environment()
    )
    (line,) = done.stderr.splitlines()
    assert "the thread worker has failed: ValueError at " in line
    assert "canary" not in line
