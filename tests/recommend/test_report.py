"""The tables of a survey, and what is said below them."""

from __future__ import annotations

from rerank_grpc.checkpoints.catalogue import KnownModel, PublishedQuality, builtin
from rerank_grpc.recommend.candidates import ModelCandidate
from rerank_grpc.recommend.figures import FEW_CALLS
from rerank_grpc.recommend.report import measured_table, notes, published_table, sources_of
from rerank_grpc.recommend.survey import Basis, SurveyOptions, SurveyRow
from tests.recommend.rows import row

OPTIONS = SurveyOptions(candidates=(20, 50))
LEGEND = "? is the slowest of fewer than 20 calls"


M = "MTEB(eng, v2) retrieval, nDCG@10"


def published(name: str, value: float, *notes: str) -> SurveyRow:
    figure = PublishedQuality("M", value, ("en",), "a page", notes)
    return SurveyRow(ModelCandidate(name, KnownModel(f"acme/{name}", quality=(figure,))), Basis.NONE)


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


def test_a_note_of_all_figures_stands_with_their_source_and_one_of_a_few_at_these() -> None:
    rows = [published("a", 50, "mean"), published("b", 60, "mean", "cut"), published("c", 61, "cut", "mean")]
    assert list(sources_of(rows, ["M"])) == ["[1] M, of 100: a page; mean", "* [1] b, c: cut"]
    assert [line[3] for line in published_table(rows, ["M"])[1]] == ["50.00", "60.00*", "61.00*"]
    assert list(sources_of(rows[1:], ["M"])) == ["[1] M, of 100: a page; mean; cut"]
    assert [line[3] for line in published_table(rows[1:], ["M"])[1]] == ["60.00", "61.00"]


def test_the_catalogue_tells_which_figures_of_its_source_were_capped() -> None:
    rows = [SurveyRow(ModelCandidate(known.short, known), Basis.NONE) for known in builtin() if known.quality]
    source, capped = sources_of(rows, [M])
    assert "mean over six embedders" in source
    assert capped.startswith("* [1] Qwen3-Reranker-4B, zerank-2: with at most 8,192 tokens; likely higher")
