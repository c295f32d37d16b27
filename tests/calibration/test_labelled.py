"""Labels follow the rule, halves part queries and not pairs, and too few pairs are told."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_grpc.calibration.calibration import LabelRule
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.calibrating.labelled import ScoredPair, halves, labelled, scored_pairs
from tests.calibration.drawn import RULE, drawn

PAIRS = [
    ScoredPair("a", 2.0, 0.9, 2),
    ScoredPair("a", 1.0, 0.7, 1),
    ScoredPair("a", -1.0, 0.3, 0),
    ScoredPair("b", -2.0, 0.1, None),
    ScoredPair("b", -1e9, 0.0, 1),
]


def test_candidates_are_joined_with_their_scores_and_grades():
    candidates = {"a": ["x", "y"], "b": ["x"]}
    scores = {"a": [(1.0, 0.7), (2.0, 0.9)], "b": [(3.0, 0.95)]}
    assert list(scored_pairs(candidates, {"a": {"y": 1}}, scores)) == [
        ("a", 1.0, 0.7, None),
        ("a", 2.0, 0.9, 1),
        ("b", 3.0, 0.95, None),
    ]


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        (LabelRule(1, "irrelevant"), [True, True, False, False]),
        (LabelRule(2, "irrelevant"), [True, False, False, False]),
        (LabelRule(1, "left-out"), [True, True, False]),
        (LabelRule(0, "left-out"), [True, True, True]),
    ],
)
def test_a_pair_is_relevant_by_its_grade(rule, labels):
    found, unscored = labelled(PAIRS, rule)
    assert found.relevant.tolist() == labels
    assert unscored == 1  # the one of -1e9, which would bend any fit


def test_a_query_lies_in_one_half_and_a_seed_says_in_which():
    pairs = drawn(1_000, 1)
    fit, held_out = halves(pairs, RULE, 0)
    assert not set(fit.queries) & set(held_out.queries)
    assert len(set(fit.queries)) == len(set(held_out.queries)) == 50
    assert len(fit.logits) + len(held_out.logits) == 1_000
    assert halves(pairs, RULE, 0)[0].queries.tolist() == fit.queries.tolist()
    assert halves(pairs, RULE, 1)[0].queries.tolist() != fit.queries.tolist()


def test_pairs_of_which_none_is_left_are_refused():
    with pytest.raises(ConfigurationError, match="no pair is left to fit on"):
        labelled(PAIRS[3:], LabelRule(1, "left-out"))


@pytest.mark.parametrize(
    ("grades", "rule", "said"),
    [
        ((1, 1), LabelRule(1, "left-out"), "400 relevant .* 0 irrelevant .*--unjudged irrelevant"),
        ((0, None), RULE, "0 relevant .* 400 irrelevant .*check that the candidates hold judged"),
        ((1, 0), LabelRule(2, "irrelevant"), "0 relevant candidates \\(grade 2 or more\\).*--relevant-from"),
    ],
)
def test_one_label_alone_is_refused_with_a_remedy(grades, rule, said):
    pairs = [ScoredPair(str(each // 4), each / 7, 0.5, grades[each % 2]) for each in range(400)]
    with pytest.raises(ConfigurationError, match=said):
        halves(labelled(pairs, rule)[0], rule, 0)


def test_a_half_with_too_few_pairs_is_refused():
    pairs = drawn(400, 1)
    few = pairs.where(~pairs.relevant | (np.cumsum(pairs.relevant) <= 15))
    with pytest.raises(ConfigurationError, match=r"15 relevant .* where 10 of each are needed: judge more"):
        halves(few, RULE, 0)
