"""The order of surveyed models, and what is advised."""

from __future__ import annotations

from rerank_grpc.recommend.choice import Demands, advise, benchmark_for, fitting, ordered, time_of
from rerank_grpc.recommend.figures import FEW_CALLS
from rerank_grpc.recommend.survey import Basis, SurveyRow
from tests.recommend.rows import row

ROWS = [
    row("failed", None, M=99),
    row("slow", (0.9, 2.0), M=70, O=9),
    row("fast", (0.1, 0.2), 9, M=50),
    row("faster", (0.05, 0.1), 20, M=40),
    row("unknown", (0.01, 0.02), 99),
    row("chinese", (0.25, 0.5), languages=("zh",), Z=60),
]
DEMANDS = Demands(0.3)


def names(rows: list[SurveyRow]) -> list[str]:
    return [each.candidate.name for each in rows]


def test_a_model_fits_the_numbers_of_candidates_that_are_fast_enough() -> None:
    assert [fitting(each, 0.3) for each in ROWS] == [(), (), (20, 50), (20, 50), (20, 50), (20,)]


def test_what_fits_more_comes_first_and_of_these_what_is_better() -> None:
    assert names(ordered(ROWS, DEMANDS)) == ["fast", "faster", "unknown", "chinese", "slow", "failed"]
    assert names(ordered(ROWS, Demands(9.0)))[:2] == ["slow", "fast"]


def test_figures_of_the_benchmark_that_most_models_have_are_compared() -> None:
    assert (benchmark_for("en", ROWS), benchmark_for("zh", ROWS), benchmark_for("ko", ROWS)) == ("M", "Z", "")


def test_the_advice_names_the_best_that_fits_and_the_fastest_where_none_does() -> None:
    twenty, fifty, chinese = advise(ROWS, DEMANDS)
    assert twenty == "For 20 candidates in 300 ms: fast (100 ms at p95; M 50)."
    assert "fast (200 ms" in fifty
    assert "chinese (250 ms at p95; Z 60)" in chinese
    none, *_ = advise(ROWS, Demands(0.001))
    assert none == "For 20 candidates in 1 ms: none; the fastest, unknown, takes 10 ms at p95."
    (nothing,) = advise([ROWS[0]], DEMANDS)
    assert "nothing can be recommended" in nothing


def test_an_estimate_and_a_missing_figure_are_told_as_such() -> None:
    (told, *_) = advise([row("guessed", (0.1, 0.2), basis=Basis.ESTIMATE, calls=0)], DEMANDS)
    assert "guessed (about 100 ms at p95; no figure of it on the benchmark is known)" in told


def test_the_advice_says_by_how_few_calls_it_was_decided() -> None:
    twenty, fifty = advise([row("new", (0.1, 0.4), calls=FEW_CALLS - 1, M=50)], DEMANDS)
    assert twenty == "For 20 candidates in 300 ms: new (100 ms by the slowest of 19 calls; M 50)."
    assert fifty.endswith("none; the fastest, new, takes 400 ms by the slowest of 19 calls.")
    (once, *_) = advise([row("new", (0.1, 0.4), calls=1)], DEMANDS)
    assert "new (100 ms by its only call; " in once


def test_the_first_language_that_is_asked_for_decides() -> None:
    (told, *_) = advise(ROWS, Demands(0.3, ("zh",)))
    assert "chinese" in told


def test_times_are_written_for_people() -> None:
    assert [time_of(each) for each in (0.0123, 0.3, 7.08, 1331.3)] == ["12 ms", "300 ms", "7.1 s", "1,331 s"]
