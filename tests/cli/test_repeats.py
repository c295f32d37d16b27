"""Repeated lines of a kind are bounded by a clock that the test moves."""

import logging
import sys

import pytest

from rerank_grpc.cli.logs import MAX_KINDS, MAX_LINES, MAX_WINDOW_SECONDS, Repeats


def record(text: str, *values: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("test", level, "", 0, text, values, None)
    made.__dict__.update(extra)
    return made


def admitted(repeats: Repeats, records: list[logging.LogRecord], now: float) -> int:
    return sum(repeats.admits(each, now) for each in records)


def counts(repeats: Repeats, now: float, *, ending: bool = False) -> list[str]:
    return [each.getMessage() for each in repeats.counts(now, ending=ending)]


def test_ten_lines_of_a_kind_are_written_in_a_second_and_then_their_count():
    repeats = Repeats()
    assert admitted(repeats, [record("bad %d", number) for number in range(4_322)], 100.0) == MAX_LINES
    assert counts(repeats, 100.9) == []
    assert counts(repeats, 101.0) == ["... and 4,312 more like this in 1.0 s: bad 10"]
    assert repeats.admits(record("bad %d", 1), 101.0)


def test_a_few_lines_of_a_kind_leave_no_count_and_nothing_behind():
    repeats = Repeats()
    assert admitted(repeats, [record("bad")] * MAX_LINES, 0.0) == MAX_LINES
    assert counts(repeats, 1.0) == []
    assert admitted(repeats, [record("bad")] * MAX_LINES, 1.0) == MAX_LINES
    assert counts(repeats, 2.0) == []
    assert not repeats._windows


def test_a_flood_that_lasts_is_counted_over_longer_and_longer_windows():
    repeats, written, told = Repeats(), 0, []
    for tenth in range(600):
        written += admitted(repeats, [record("bad")] * 100, tenth / 10)
        told += counts(repeats, (tenth + 1) / 10)
    windows = [float(line.split(" in ")[1].split()[0]) for line in told]
    assert windows[:5] == [1, 2, 4, 8, MAX_WINDOW_SECONDS]
    assert written <= 100
    assert counts(repeats, 60 + MAX_WINDOW_SECONDS)
    assert counts(repeats, 80 + MAX_WINDOW_SECONDS) == []
    assert admitted(repeats, [record("bad")] * 100, 100.0) == MAX_LINES
    assert counts(repeats, 101.0) == ["... and 90 more like this in 1.0 s: bad"]


def test_a_kind_that_the_caller_gives_holds_for_any_level_and_text():
    repeats = Repeats()
    refused = [record(f"refused {n}", level=logging.INFO, kind=("Rerank", "QUEUE_FULL")) for n in range(30)]
    other = [record("refused", level=logging.INFO, kind=("Rerank", "UNAUTHENTICATED"))]
    assert admitted(repeats, refused, 0.0) == MAX_LINES
    assert admitted(repeats, other, 0.0) == 1


def test_the_count_of_calls_says_what_they_were_refused_for():
    repeats = Repeats()
    fields: dict[str, object] = {"kind": "rerank 429 queue_full", "reason": "queue_full"}
    refused = [record("rerank %d", 429, level=logging.INFO, **fields)] * 12
    admitted(repeats, refused, 0.0)
    (count,) = repeats.counts(1.0)
    assert count.getMessage() == "... and 2 more like this in 1.0 s: rerank 429 reason=queue_full"
    assert (vars(count)["example"], vars(count)["reason"]) == ("rerank 429", "queue_full")


def test_lines_below_a_warning_without_a_kind_are_unlimited():
    assert admitted(Repeats(), [record("Rerank OK", level=logging.INFO)] * 5_000, 0.0) == 5_000


def test_a_traceback_counts_as_all_the_lines_of_a_window():
    try:
        raise OSError
    except OSError:
        failed = [record(f"accept failed\nsocket: <{n}>", exc_info=sys.exc_info()) for n in range(20)]
    repeats = Repeats()
    assert admitted(repeats, failed, 0.0) == 1
    assert counts(repeats, 1.0) == ["... and 19 more like this in 1.0 s: accept failed"]


def test_texts_that_are_new_each_time_share_what_is_left():
    repeats = Repeats()
    assert admitted(repeats, [record(f"bad {number}") for number in range(MAX_KINDS)], 0.0) == MAX_KINDS
    assert admitted(repeats, [record(f"worse {number}") for number in range(5_000)], 0.0) == MAX_LINES
    assert len(repeats._windows) == MAX_KINDS + 1
    assert counts(repeats, 1.0) == ["... and 4,990 more like this in 1.0 s: worse 10"]


def test_the_end_of_the_log_tells_what_is_uncounted_yet():
    repeats = Repeats()
    admitted(repeats, [record("bad")] * 11, 0.0)
    assert counts(repeats, 0.5, ending=True) == ["... and 1 more like this in 0.5 s: bad"]


@pytest.mark.parametrize("values", [("no number",), (1, 2)])
def test_a_record_that_cannot_be_formatted_is_counted_too(values: tuple[object, ...]):
    repeats = Repeats()
    admitted(repeats, [record("%d", *values)] * 12, 0.0)
    assert counts(repeats, 1.0) == ["... and 2 more like this in 1.0 s: %d"]
