"""The tables of a survey, and what is said below them."""

from __future__ import annotations

from rerank_grpc.recommend.figures import FEW_CALLS
from rerank_grpc.recommend.report import measured_table, notes
from rerank_grpc.recommend.survey import Basis, SurveyOptions, SurveyRow
from tests.recommend.rows import row

OPTIONS = SurveyOptions(candidates=(20, 50))
LEGEND = "? is the slowest of fewer than 20 calls"


def times(found: SurveyRow) -> list[str]:
    _, (line,) = measured_table([found], OPTIONS)
    return list(line[2:4])


def test_a_time_of_few_calls_is_marked_and_the_mark_is_explained() -> None:
    few, enough = row("few", (0.1, 2.0), calls=FEW_CALLS - 1), row("enough", (0.1, 2.0))
    assert (times(few), times(enough)) == (["100 ms?", "2.0 s?"], ["100 ms", "2.0 s"])
    assert any(each.startswith(LEGEND) for each in notes([few, enough], "a machine"))
    assert not any(each.startswith(LEGEND) for each in notes([enough], "a machine"))


def test_a_time_that_was_not_measured_is_an_estimate_and_not_of_few_calls() -> None:
    assert times(row("scaled", (0.1, 2.0), calls=0)) == ["~100 ms", "~2.0 s"]
    assert times(row("guessed", (0.1, 2.0), calls=0, basis=Basis.ESTIMATE)) == ["~100 ms", "~2.0 s"]
    assert times(row("twin", (0.1, 2.0), calls=1, basis=Basis.SAME_SHAPE)) == ["≈100 ms?", "≈2.0 s?"]
