"""Hugging Face's Inference API and endpoints: pairs to classify, passages, and sentences to compare."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import check_count
from rerank_grpc.rest.dialects import tei
from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.forms import fields
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
from rerank_grpc.types import Document, RerankRequest

# The fields within `inputs` that hold a query and its documents, which get bare scores in their order,
# and the field of the reply that holds these; "" is a bare list.
RANKINGS = (("query", "passages", "scores"), ("source_sentence", "sentences", ""))
PAIR_NAMES = Names("inputs[{}].text", "inputs[{}].text_pair")


def has_objects(inputs: Any) -> bool:
    """Tells these forms from the pairs of TEI, which are lists."""
    return isinstance(inputs, dict) or (isinstance(inputs, list) and any(isinstance(i, dict) for i in inputs))


def _decode(body: Body, posted: Posted) -> Decoded:
    """Reads `inputs`; the model is the path's."""
    inputs, model = body.get("inputs"), posted.model or fields.text(body, "model")
    if isinstance(inputs, dict) and "text_pair" not in inputs:
        for query, documents, reply in RANKINGS:
            if inputs.get(documents) is not None:
                return _ranking(inputs, (query, documents, reply), model)
    if inputs and not has_objects(inputs):
        return tei.decoded_predict(body, model)
    return _classification(body, model)


def _ranking(inputs: Body, names: tuple[str, str, str], model: str) -> Decoded:
    """Reads a query and its documents; errors name them as they stand in the body."""
    named = {f"inputs.{name}": value for name, value in inputs.items()}
    query, documents, reply = f"inputs.{names[0]}", f"inputs.{names[1]}", names[2]
    if named.get(query) is None:
        raise InvalidRequest.of(query, "is missing")
    texts = fields.texts(named, documents)
    request = RerankRequest(fields.text(named, query), tuple(map(Document, texts)), model)
    return Decoded((request,), partial(_encode_scores, reply), names=Names(query, f"{documents}[{{}}]"))


def _encode_scores(name: str, reply: Reply) -> Json:
    ordered = sorted(reply.results, key=lambda result: result.index)
    scores = [result.relevance_score for result in ordered]
    return {name: scores} if name else scores


def _classification(body: Body, model: str) -> Decoded:
    """Reads pairs, and what a pipeline of text classification takes beside them."""
    inputs, parameters = body.get("inputs"), fields.nested(body, "parameters")
    if inputs is None:
        raise InvalidRequest.of("inputs", "is missing")
    listed = inputs if isinstance(inputs, list) else [inputs]
    check_count("inputs", len(listed))
    pairs = [_pair(f"inputs[{index}]", item) for index, item in enumerate(listed)]
    encode = partial(_encode_labels, _function(parameters), fields.count(parameters, "top_k") > 0)
    return replace(decoded_pairs(pairs, encode, RerankRequest("", (), model)), names=PAIR_NAMES)


def _pair(name: str, item: Any) -> Pair:
    if not isinstance(item, dict):
        raise InvalidRequest.of(name, "must be an object with text and text_pair")
    texts = item.get("text"), item.get("text_pair")
    for field, text in zip(("text", "text_pair"), texts, strict=True):
        if not isinstance(text, str):
            raise InvalidRequest.of(f"{name}.{field}", "is missing" if text is None else "must be a text")
    return str(texts[0]), str(texts[1])


def _function(parameters: Body) -> Score:
    """Reads what makes a score of a logit; the softmax of a single label would be 1 for every pair."""
    choices = ("default", "sigmoid", "none")
    function = fields.choice(parameters, "function_to_apply", choices, "default")
    return LOGIT if function == "none" else RELEVANCE


def _encode_labels(score: Score, nested: bool, reply: Reply) -> Json:
    """Writes the one label of each pair; a caller that asks for the best labels gets a list of each's."""
    labels = [{"label": tei.LABEL, "score": score(result)} for result in reply.results]
    return [[label] for label in labels] if nested else labels


def _error(problem: Problem) -> tuple[int, Json]:
    return problem.status, {"error": problem.message}


HUGGING_FACE = Dialect("huggingface", _decode, _error)
