"""The figures are ir-measures' own, and those of sentence-transformers' evaluator."""

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, R, nDCG
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from rerank_grpc.evaluation import chart, report
from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.figures import ScoredModel, evaluate
from rerank_grpc.evaluation.journal import ScoredQuery
from rerank_grpc.evaluation.measures import (
    as_run,
    measured,
    measures_of,
    ranked,
    strictly_decreasing,
    title_of,
)
from rerank_grpc.evaluation.scorers import ModelIdentity, PairScore, loaded_scorer
from tests.evaluation.conftest import SETTINGS

MEASURES = [nDCG @ 10, RR @ 10, R @ 5, R @ 10, AP]


def pairs(*logits):
    return [PairScore(logit, 0.5) for logit in logits]


@pytest.fixture(scope="module")
def evaluation(collection, scored):
    identity, queries = scored
    return evaluate(collection, [ScoredModel(identity, queries, 1)], measures_of((5, 10)))


def test_figures_equal_those_of_ir_measures_on_the_written_files(tmp_path, evaluation):
    report.write(evaluation, tmp_path, {}, [])
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / report.QRELS)))
    (model,) = evaluation.models
    name = next(path for path in tmp_path.glob("*.trec") if path.name != report.BEFORE)
    for file, of in ((name, "after"), (tmp_path / report.BEFORE, "before")):
        direct = ir_measures.calc_aggregate(MEASURES, qrels, ir_measures.read_trec_run(str(file)))
        for measure in MEASURES:
            ours = getattr(model.of(title_of(measure)), of).mean
            assert ours == pytest.approx(direct[measure], abs=1e-9), (file.name, measure)
    assert model.of("nDCG@10").after.mean != pytest.approx(model.of("nDCG@10").before.mean, abs=1e-3)


def test_figures_equal_sentence_transformers_evaluator_of_the_same_checkpoint(collection, model, scored):
    """Its ideal ranking knows retrieved documents alone, so the queries whose answer is a candidate count."""
    names = [
        name
        for name, judged in collection.qrels.items()
        if set(judged) <= set(collection.candidates[name])
        # Its evaluator knows documents by their texts.
        and len({collection.corpus[each] for each in collection.candidates[name]})
        == len(collection.candidates[name])
    ]
    assert len(names) > 100
    names = names[:50]  # both score them: enough for any difference of the measures to show
    found = {name: collection.candidates[name] for name in names}
    part = Collection(
        {name: collection.queries[name] for name in names},
        collection.corpus,
        {name: collection.qrels[name] for name in names},
        found,
    )
    identity, queries = scored
    ours = evaluate(part, [ScoredModel(identity, queries, 1)], measures_of()).models[0]
    samples: list[dict[str, str | list[str]]] = [
        {
            "query": part.queries[name],
            "positive": [part.corpus[each] for each in part.qrels[name]],
            "documents": [part.corpus[each] for each in documents],
        }
        for name, documents in found.items()
    ]
    evaluator = CrossEncoderRerankingEvaluator(samples, always_rerank_positives=False, write_csv=False)
    theirs = evaluator(CrossEncoder(str(model), device="cpu", local_files_only=True))
    for mine, name in (("nDCG@10", "ndcg@10"), ("MRR@10", "mrr@10"), ("MAP", "map")):
        assert ours.of(mine).after.mean == pytest.approx(theirs[name], abs=1e-4)
        assert ours.of(mine).before.mean == pytest.approx(theirs[f"base_{name}"], abs=1e-4)


def test_scores_are_the_services_own(collection, model, scored):
    """A query's scores do not depend on how they were asked for, but for rounding."""
    name, documents = next(iter(collection.candidates.items()))
    with loaded_scorer(str(model), SETTINGS) as scorer:
        again = scorer.scores(collection.queries[name], [collection.corpus[each] for each in documents])
    np.testing.assert_allclose(again, scored[1][name].scores, atol=1e-5)


def test_equal_logits_keep_the_candidates_order_for_every_reader():
    documents = ["a", "c", "b", "e", "d"]
    found = ranked(documents, pairs(1.0, 2.0, 2.0, 2.0, 1.0))
    assert [name for name, _ in found] == ["c", "b", "e", "a", "d"]
    for relevant, rank in (("c", 1), ("b", 2), ("e", 3), ("a", 4), ("d", 5)):
        run, qrels = {"q": dict(found)}, {"q": {relevant: 1}}
        values = ir_measures.calc_aggregate([RR @ 10, AP, nDCG @ 10], qrels, run)
        assert values[AP] == pytest.approx(1 / rank)
        assert values[RR @ 10] == pytest.approx(1 / rank)
        assert values[nDCG @ 10] == pytest.approx(1 / np.log2(rank + 1))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1e-38, -1e9, 88.5, 3e38])
def test_written_scores_of_many_ties_differ_in_float32_and_stay_near(value):
    found = strictly_decreasing([value] * 1_000)
    written = np.array([float(f"{each:.9g}") for each in found], np.float32)
    assert (np.diff(written) < 0).all()
    np.testing.assert_allclose(written, np.float32(value), rtol=1e-3, atol=1e-12)


def test_scores_that_differ_enough_are_written_as_they_are():
    logits = [3.25, 1.5, 0.1, -7.0]
    assert strictly_decreasing(logits) == pytest.approx(logits, rel=1e-7)


def test_what_was_not_found_or_not_judged_counts_as_trec_eval_has_it():
    collection = Collection(
        queries={"found": "q", "missed": "q", "barren": "q", "none": "q"},
        corpus={"a": "a", "b": "b", "c": "c"},
        qrels={"found": {"a": 1, "c": 1}, "missed": {"c": 1}, "barren": {"a": 0}, "none": {"a": 1}},
        candidates={"found": ["b", "a"], "missed": ["a", "b"], "barren": ["a"], "none": []},
    )
    run = {name: as_run(found) for name, found in collection.candidates.items()}
    values = measured(collection, run, measures_of())
    assert values[RR @ 10].tolist() == [0.5, 0, 0, 0]
    assert values[R @ 10].tolist() == [0.5, 0, 0, 0]
    assert values[AP].tolist() == [0.25, 0, 0, 0]
    ideal = 1 + 1 / np.log2(3)
    assert values[nDCG @ 10].tolist() == pytest.approx([(1 / np.log2(3)) / ideal, 0, 0, 0])
    scores = {name: ScoredQuery(name, pairs(*range(len(found))), 1, 1, 1) for name, found in run.items()}
    found = evaluate(collection, [ScoredModel(ModelIdentity("m", "1"), scores, 1)], measures_of())
    assert found.ceiling == pytest.approx(0.5 / 4)
    assert found.models[0].of("MRR@10").after.mean == pytest.approx(1 / 4)


def test_two_models_are_compared_and_drawn(tmp_path, collection, scored):
    identity, queries = scored
    flat = {name: each._replace(scores=pairs(*[0.0] * len(each.scores))) for name, each in queries.items()}
    models = [
        ScoredModel(identity._replace(name="random"), queries, 1),
        ScoredModel(ModelIdentity("flat", ""), flat, 4),
    ]
    found = evaluate(collection, models, measures_of())
    assert found.models[1].of("nDCG@10").difference == (0, 0, 0)  # ties are the candidates' own order
    assert found.models[1].of("nDCG@10").outcome == (0, 169, 0)
    contrast = next(each for each in found.contrasts if each.measure == "nDCG@10")
    of_first = found.models[0].of("nDCG@10").difference
    assert of_first.low is not None
    assert of_first.high is not None
    assert contrast.difference == pytest.approx((-of_first.mean, -of_first.high, -of_first.low))
    text = "\n".join(report.table(found))
    assert "flat - random  nDCG@10" in text
    assert "4 calls at once" in text
    value = report.as_json(found, {}, ["left out x"])
    assert value["models"][1]["measures"]["MRR@10"]["queries"] == {"better": 0, "same": 169, "worse": 0}
    chart.draw(found, tmp_path / "chart.png")
    content = (tmp_path / "chart.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000


def test_figures_at_a_depth_are_those_of_a_run_that_was_cut_there_and_reranked(tmp_path, collection, scored):
    """The others stay behind in their old order; ir-measures reads it all from a file."""
    identity, queries = scored
    found = evaluate(collection, [ScoredModel(identity, queries, 1)], measures_of((1, 5, 10)))
    (model,) = found.models
    assert [each.depth for each in model.depths] == [5, 10]
    lines = []
    for name, documents in collection.candidates.items():
        scores = [each.logit for each in queries[name].scores[:5]] if documents else []
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        whole = [documents[place] for place in order] + documents[5:]
        lines += [f"{name} Q0 {document} {rank} {-rank} x\n" for rank, document in enumerate(whole, 1)]
    (tmp_path / "five.trec").write_text("".join(lines))
    report.write(found, tmp_path, {}, [])
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / report.QRELS)))
    run = ir_measures.read_trec_run(str(tmp_path / "five.trec"))
    direct = ir_measures.calc_aggregate([*MEASURES, R @ 1], qrels, run)
    five, ten = model.depths
    for measure, value in direct.items():
        assert five.means[title_of(measure)] == pytest.approx(value, abs=1e-9)
    assert five.held == pytest.approx(five.means["Recall@5"])  # what is among the first 5 stays there
    assert ten.held == found.ceiling
    assert ten.means == pytest.approx({each.measure: each.after.mean for each in model.figures})
    text = list(report.table(found))
    assert f"{'':{len(identity.name)}}     10  {ten.held:.4f}     {ten.means['nDCG@10']:.4f}" in "\n".join(
        text
    )
    depths = report.as_json(found, {}, [])["models"][0]["depths"]
    assert [each["depth"] for each in depths] == [5, 10]
    assert depths[0]["measures"] == five.means


@pytest.mark.parametrize(
    ("queries", "said"), [(1, "1 query has no interval"), (19, "19 queries are few"), (20, "")]
)
def test_few_queries_are_told_and_one_has_no_interval(tmp_path, queries, said):
    names = [f"q{number}" for number in range(queries)]
    collection = Collection(
        dict.fromkeys(names, "q"),
        {"a": "a", "b": "b"},
        {name: {"b": 1} for name in names},
        {name: ["a", "b"] for name in names},
    )
    scores = {name: ScoredQuery(name, pairs(0, 1), 1, 1, 1) for name in names}
    found = evaluate(collection, [ScoredModel(ModelIdentity("m", "1"), scores, 1)], measures_of())
    text = "\n".join(report.table(found))
    assert said in text
    assert bool(said) == (" few: " in text or "no interval" in text)
    assert ("+0.5000 [" in text) == (queries > 1)
    value = report.as_json(found, {}, [])
    assert value["intervals"]["caution"].startswith(said)
    chart.draw(found, tmp_path / "chart.png")


def test_the_share_that_candidates_hold_is_said_to_be_a_mean_over_queries():
    collection = Collection(
        {"many": "q", "one": "q"},
        {each: each for each in "abcdx"},
        {"many": dict.fromkeys("abcd", 1), "one": {"x": 1}},
        {"many": ["a"], "one": ["x"]},
    )
    scores = {name: ScoredQuery(name, pairs(1), 1, 1, 1) for name in ("many", "one")}
    found = evaluate(collection, [ScoredModel(ModelIdentity("m", "1"), scores, 1)], measures_of())
    assert "hold on average 62.5 % of a query's relevant documents" in next(iter(report.table(found)))
