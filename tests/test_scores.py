"""Logits to relevance scores, in float32."""

import math

import numpy as np
import pytest

from rerank_grpc.scores import best_chunks, relevance_scores
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
