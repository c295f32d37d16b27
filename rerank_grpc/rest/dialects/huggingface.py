"""Hugging Face's Inference API and endpoints: pairs to classify, passages, and sentences to compare."""

from __future__ import annotations

from functools import partial
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS, check_count
from rerank_grpc.rest.dialects import tei
from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import (
    LOGIT,
    RELEVANCE,
    Body,
    Decoded,
    Dialect,
    Json,
    Names,
    Pair,
    Posted,
    Reply,
    Score,
    decoded_pairs,
)
from rerank_grpc.types import LABEL, RerankRequest

# The fields that hold a query and its documents, which get bare scores in their order, and the field of the
# reply that holds these; "" is a bare list.
RANKINGS = (
    ("inputs.query", "inputs.passages", "scores"),
    ("inputs.source_sentence", "inputs.sentences", ""),
)
FUNCTIONS = ("default", "sigmoid", "none")


def has_objects(inputs: Any) -> bool:
    """Tells these forms from the pairs of TEI, which are lists."""
    # No more items than can be served are looked at.
    listed = inputs[: LIMITS.documents] if isinstance(inputs, list) else [inputs]
    return any(isinstance(item, dict) for item in listed)


def _decode(body: Body, posted: Posted) -> Decoded:
    """Reads `inputs`; the model is the path's."""
    body = fields.Nested(body)
    inputs, model = body.get("inputs"), posted.model or fields.text(body, "model")
    if inputs and not has_objects(inputs):
        return tei.decoded_predict(body, model)
    for query, listed, reply in RANKINGS if isinstance(inputs, dict) else ():
        if body.get(fields.first(body, query, listed)) is not None:
            given = documents.read(body, listed)
            request = RerankRequest(fields.query(body, query), given.scored, model)
            return Decoded((request,), partial(_encode_scores, reply), names=given.names(body, query))
    return _classification(body, model)


def _encode_scores(name: str, reply: Reply) -> Json:
    ordered = sorted(reply.results, key=lambda result: result.index)
    scores = [result.relevance_score for result in ordered]
    return {name: scores} if name else scores


def _classification(body: Body, model: str) -> Decoded:
    """Reads pairs, and what a pipeline of text classification takes beside them."""
    inputs = body.get("inputs")
    if inputs is None:
        raise InvalidRequest.of("inputs", "is missing")
    listed = inputs if isinstance(inputs, list) else [inputs]
    check_count("inputs", len(listed))
    place = "inputs[{}]" if isinstance(inputs, list) else "inputs"
    pairs = [_pair(place.format(index), item) for index, item in enumerate(listed)]
    nested = fields.count(body, "parameters.top_k") > 0
    names = Names(f"{place}.text".format, f"{place}.text_pair".format)
    return decoded_pairs(
        pairs, partial(_encode_labels, _score(body), nested), RerankRequest("", (), model), names
    )


def _pair(name: str, item: Any) -> Pair:
    if not isinstance(item, dict):
        raise fields.wrong(name, "an object with text and text_pair", item)
    for field in ("text", "text_pair"):
        if item.get(field) is None:
            raise InvalidRequest.of(f"{name}.{field}", "is missing")
        if not isinstance(item[field], str):
            raise fields.wrong(f"{name}.{field}", "a text", item[field])
    return item["text"], item["text_pair"]


def _score(body: Body) -> Score:
    """Reads what makes a score of a logit; the softmax of a single label would be 1 for every pair."""
    function = fields.choice(body, "parameters.function_to_apply", FUNCTIONS, FUNCTIONS[0])
    return LOGIT if function == "none" else RELEVANCE


def _encode_labels(score: Score, nested: bool, reply: Reply) -> Json:
    """Writes the one label of each pair; a caller that asks for the best labels gets a list of each's."""
    labels = [{"label": LABEL, "score": score(result)} for result in reply.results]
    return [[label] for label in labels] if nested else labels


def _error(problem: Problem) -> tuple[int, Json]:
    return problem.status, {"error": problem.message}


HUGGING_FACE = Dialect("huggingface", _decode, _error)
