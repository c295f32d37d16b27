"""Progress tells the share, the pairs, the rate, the bad rows, and the time that is left."""

import io

import pytest

from rerank_grpc.batch.progress import RunCounts, RunProgress, line, rate, summary
from rerank_grpc.units import duration


def test_a_line_tells_how_far_it_is_and_how_long_it_takes_yet():
    counts = RunCounts(rows=3_000, pairs=30_000, bad=2, scored=10_000, position=0.5)
    assert line(counts, 0.25, 100.0) == (
        " 50.0%  30,000 pairs of 3,000 rows, 2 bad rows, 100 pairs/s, 3 min 20 s left"
    )
    assert line(RunCounts(rows=1, pairs=2, position=0.1), 0.1, 5.0) == " 10.0%  2 pairs of 1 rows"


def test_a_summary_tells_what_this_start_has_done():
    counts = RunCounts(rows=30, pairs=300, scored=100, position=1.0, tokens=90, room=100)
    assert summary(counts, 50.0) == (
        "300 pairs of 30 rows, 100 of them by this start, in 50.0 s, 2 pairs/s, batches 90% full"
    )


def test_rates_have_two_digits():
    assert [rate(*each) for each in ((12_345, 1.0), (7, 2.0), (0, 0.0))] == [
        "12,345 pairs/s",
        "3.5 pairs/s",
        "0 pairs/s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
        (86_399, "23 h 59 min"),
    ],
)
def test_a_time_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_terminals_line_is_cut_to_its_width_and_removed_before_another(monkeypatch):
    stream, counts = io.StringIO(), RunCounts(rows=1, pairs=1, position=0.5)
    progress = RunProgress(counts, 20, stream)
    monkeypatch.setattr("rerank_grpc.batch.progress.RENEWED_SECONDS", -1.0)
    progress.show()
    progress.say("done")
    drawn = stream.getvalue().split("\r")
    assert drawn[1] == " 50.0%  1 pairs of 1"[:19]
    assert drawn[-1] == "done\n"
