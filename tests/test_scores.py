"""Logits to relevance scores, in float32."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from rerank_grpc.scores import best_chunks, count_query_tokens, relevance_scores
from rerank_grpc.sequence import Chunk, TokenizedDocument
from rerank_grpc.types import Scoring, Span


@pytest.mark.parametrize("scoring", [Scoring.SIGMOID, Scoring.SOFTMAX])
def test_a_sigmoid_is_the_exact_one_rounded_to_float32(scoring: Scoring):
    logits = [-104.0, -20.0, -8.154394, -1e-7, 0.0, 0.3, 6.182112, 40.0]
    exact = [float(np.float32(1 / (1 + math.exp(-logit)))) for logit in logits]
    assert relevance_scores(logits, scoring) == exact


def test_a_sigmoid_of_any_finite_logit_is_finite_and_between_0_and_1():
    scores = relevance_scores([-3.4e38, -1000.0, 1000.0, 3.4e38], Scoring.SIGMOID)
    assert scores == [0.0, 0.0, 1.0, 1.0]


def test_a_cosine_is_mapped_linearly_and_never_leaves_0_to_1():
    assert relevance_scores([-1.0000002, -1, 0, 0.5, 1, 1.0000002], Scoring.COSINE) == [0, 0, 0.5, 0.75, 1, 1]


def test_scores_rise_with_logits():
    logits = sorted(np.random.default_rng(1).normal(0, 8, 1000).tolist())
    scores = relevance_scores(logits, Scoring.SIGMOID)
    assert scores == sorted(scores)


def test_a_documents_best_chunk_is_the_first_of_the_highest():
    chunks = tuple(Chunk(number, 1, Span(number, number + 1)) for number in range(4))
    documents = [TokenizedDocument(chunks, truncated=False), TokenizedDocument(chunks[3:], truncated=True)]
    assert best_chunks(documents, [0.5, 2.0, 2.0, -1.0], None) == [(1, 2.0), (0, -1.0)]


def test_outputs_of_other_documents_may_be_missing():
    document = TokenizedDocument((Chunk(1, 1),), truncated=False)
    assert best_chunks([document], [None, 0.5, None], None) == [(0, 0.5)]


def test_a_bi_encoders_logit_is_the_cosine_with_the_querys_vector():
    chunks = (Chunk(1, 1, Span(0, 1)), Chunk(2, 1, Span(1, 2)))
    vectors = [np.array(vector, dtype=np.float32) for vector in ([0.6, 0.8], [1, 0], [0, 1])]
    (best,) = best_chunks([TokenizedDocument(chunks, truncated=False)], vectors, 0)
    assert best.position == 1
    assert best.logit == pytest.approx(0.8)


def unit_rows(chance: np.random.Generator, rows: int, size: int = 32) -> npt.NDArray[np.float32]:
    matrix = chance.normal(size=(rows, size))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix.astype(np.float32)


def documents_of(count: int) -> list[TokenizedDocument]:
    """Makes documents of one chunk each, whose outputs stand behind the query's."""
    return [TokenizedDocument((Chunk(index, 1),), truncated=False) for index in range(1, count + 1)]


@pytest.mark.parametrize("query_rows", [1, 7, 32])
def test_a_late_interactions_logit_is_sentence_transformers_maxsim(query_rows: int):
    similarity = pytest.importorskip("sentence_transformers.util.similarity")
    chance = np.random.default_rng(query_rows)
    lengths = [
        3,
        1,
        0,
        200,
        5_000,
        0,
        0,
        17,
        4_000,
        90,
        0,
    ]  # blocks end between them, and one exceeds a block
    query, *documents = matrices = [unit_rows(chance, rows) for rows in [query_rows, *lengths]]
    logits = [best.logit for best in best_chunks(documents_of(len(documents)), matrices, 0)]
    expected = similarity.maxsim([query], documents)[0].tolist()
    assert logits == pytest.approx(expected, abs=1e-5)


def test_a_document_without_a_token_is_below_every_other_and_scores_0():
    query = np.eye(2, dtype=np.float32)
    outputs = [query, -query, query[:0]]
    opposite, empty = (best.logit for best in best_chunks(documents_of(2), outputs, 0))
    assert (opposite, empty) == (0.0, -1e9)
    assert relevance_scores([empty], Scoring.MAXSIM, query_tokens=2) == [0.0]


def test_all_documents_without_a_token_are_scored_too():
    rows = np.zeros((0, 2), dtype=np.float32)
    assert [best.logit for best in best_chunks(documents_of(2), [rows, rows, rows], 0)] == [-1e9, -1e9]


def test_the_best_chunk_in_late_interaction_is_the_one_with_the_highest_maxsim():
    query = np.eye(3, dtype=np.float32)
    chunks = tuple(Chunk(number, 1, Span(number, number + 1)) for number in (1, 2, 3))
    outputs = [query, query[:1], query[:2], query[1:]]
    (best,) = best_chunks([TokenizedDocument(chunks, truncated=False)], outputs, 0)
    assert best == (1, 2.0)


def test_a_maxsim_is_divided_by_the_querys_tokens_and_never_leaves_0_to_1():
    scores = relevance_scores([-4.1, -4, 0, 2, 4, 4.1], Scoring.MAXSIM, query_tokens=4)
    assert scores == [0, 0, 0.5, 0.75, 1, 1]


def test_only_late_interaction_sums_over_the_querys_tokens():
    assert count_query_tokens([0.5], None) == 1
    assert count_query_tokens([np.zeros(8, dtype=np.float32)], 0) == 1
    assert count_query_tokens([0.0, np.zeros((5, 8), dtype=np.float32)], 1) == 5


def test_a_tanh_is_mapped_linearly_and_loses_no_small_score():
    logits = [-1000.0, -3.0, -0.25, 0.0, 0.5, 2.0, 1000.0]
    scores = relevance_scores(logits, Scoring.TANH)
    assert scores == pytest.approx([(1 + math.tanh(logit)) / 2 for logit in logits], abs=1e-7)
    assert relevance_scores([-20.0], Scoring.TANH) > [0.0]


@pytest.mark.parametrize("scoring", list(Scoring))
def test_scale_and_offset_stand_before_every_activation(scoring: Scoring):
    logits = [-0.5, 0.1, 0.75]
    moved = [logit / 5 - 0.25 for logit in logits]
    scaled = relevance_scores(logits, scoring, scale=1 / 5, offset=-0.25, query_tokens=3)
    assert scaled == pytest.approx(relevance_scores(moved, scoring, query_tokens=3), abs=1e-7)
    assert scaled != relevance_scores(logits, scoring, query_tokens=3)
    assert scaled != relevance_scores(logits, scoring, scale=1 / 5, query_tokens=3)


@pytest.mark.parametrize("scoring", list(Scoring))
def test_every_score_is_a_float32_between_0_and_1(scoring: Scoring):
    scores = relevance_scores([-3.4e38, -7.7, 0.3, 0.9, 3.4e38], scoring, scale=1e300, query_tokens=3)
    assert all(0 <= score <= 1 for score in scores)
    assert scores == [float(np.float32(score)) for score in scores]
