"""The two directions of every message are inverses; values that no message can hold are refused."""

import random
from typing import Any

import pytest

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.types import (
    CalibrationInfo,
    Document,
    Health,
    ModelInfo,
    Priority,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Scoring,
    Span,
    State,
    Truncation,
    Usage,
)
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages

TEXTS = ["", "a", "two words", "é中🙂", "\0", "x" * 300]
# Numbers that float32 holds exactly.
FLOATS = [0.0, 0.25, 1.0, -2.5]
COUNTS = [0, 1, 7, 2**32 - 1]
CASES = range(50)


def a_request(pick) -> RerankRequest:
    return RerankRequest(
        query=pick(TEXTS),
        documents=[Document(pick(TEXTS), pick(TEXTS)) for _ in range(pick([0, 1, 5]))],
        model=pick(TEXTS),
        top_n=pick(COUNTS),
        return_documents=pick([True, False]),
        min_relevance_score=pick([None, *FLOATS]),
        instruction=pick(TEXTS),
        max_tokens_per_document=pick(COUNTS),
        truncation=pick(list(Truncation)),
        max_chunks_per_document=pick([1, 2, 64]),
        priority=pick(list(Priority)),
        ignore_unsupported_options=pick([True, False]),
        min_calibrated_score=pick([None, *FLOATS]),
    )


def a_result(pick) -> ScoredDocument:
    return ScoredDocument(
        index=pick(COUNTS),
        relevance_score=pick(FLOATS),
        logit=pick(FLOATS),
        id=pick(TEXTS),
        document=pick([None, Document("a", "b"), Document("")]),
        tokens=pick(COUNTS),
        truncated=pick([True, False]),
        best_chunk=pick([None, Span(0, 4)]),
        calibrated_score=pick([None, *FLOATS]),
    )


def a_summary(pick) -> RerankSummary:
    usage = Usage(pick(COUNTS), pick(COUNTS), pick([0.0, 1.5]), pick([0.0, 1e-9]), pick([0.25, 3600.0]))
    return RerankSummary(pick(TEXTS), pick(TEXTS), usage, pick([True, False]))


def a_calibration(pick) -> CalibrationInfo:
    counts = pick(COUNTS), pick(COUNTS), pick(COUNTS)
    options = pick(TEXTS), pick(COUNTS), pick(list(Truncation)), pick([1, 64])
    return CalibrationInfo(pick(TEXTS), pick(TEXTS), *counts, *options)


def a_model(pick) -> ModelInfo:
    state = pick(list(State))
    return ModelInfo(
        name=pick(TEXTS),
        state=state,
        aliases=tuple(pick(TEXTS) for _ in range(pick([0, 2]))),
        state_message=pick(TEXTS),
        is_default=pick([True, False]),
        revision=pick(TEXTS),
        family=pick(TEXTS),
        device=pick(TEXTS),
        precision=pick(TEXTS),
        attention=pick(TEXTS),
        max_tokens=pick(COUNTS),
        max_batch_tokens=pick(COUNTS),
        scoring=pick([None, *Scoring]),
        accepts_instruction=pick([True, False]),
        local_available=pick([True, False]),
        memory_bytes=pick([0, 2**40]),
        pinned=pick([True, False]),
        serving=state is State.READY or pick([True, False]),
        activation=pick(TEXTS),
        pooling=pick(TEXTS),
        prompt_source=pick(TEXTS),
        calibration=pick([None, a_calibration(pick)]),
    )


def a_health(pick) -> Health:
    state = pick(list(State))
    serving = state is State.READY or pick([True, False])
    return Health(pick(TEXTS), state, pick(TEXTS), pick([0.0, 1.5]), pick(COUNTS), pick(COUNTS), 0.5, serving)


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("kind", [pb.RerankRequest, pb.StreamRerankRequest])
def test_a_request_that_was_written_is_read_as_it_was(kind, seed):
    request = a_request(random.Random(seed).choice)
    message = kind.FromString(messages.request_to(kind, request).SerializeToString())
    assert messages.request_from(message) == request


@pytest.mark.parametrize("seed", CASES)
def test_a_reply_that_was_written_is_read_as_it_was(seed):
    pick = random.Random(seed).choice
    response = RerankResponse(tuple(a_result(pick) for _ in range(3)), a_summary(pick))
    message = pb.RerankResponse.FromString(messages.response_to(response).SerializeToString())
    assert messages.response_from(message) == response


@pytest.mark.parametrize("seed", CASES)
def test_a_part_of_a_stream_that_was_written_is_read_as_it_was(seed):
    pick = random.Random(seed).choice
    results, summary = [a_result(pick)], a_summary(pick)
    first, last = messages.part_to(results), messages.part_to(summary)
    assert [messages.result_from(result) for result in first.results] == results
    assert (first.HasField("summary"), list(last.results)) == (False, [])
    assert messages.summary_from(last.summary) == summary


@pytest.mark.parametrize("seed", CASES)
def test_a_model_and_its_health_that_were_written_are_read_as_they_were(seed):
    pick = random.Random(seed).choice
    info, health = a_model(pick), a_health(pick)
    assert messages.model_from(messages.model_to(info)) == info
    assert messages.health_from(messages.health_to(health)) == health


def test_a_request_fills_every_field_of_its_message():
    request = RerankRequest(
        "q", [Document("d")], "m", 1, True, 0.5, "i", 2, Truncation.NONE, 3, Priority.BATCH, True, 0.5
    )
    written = {field.name for field, _ in messages.request_to(pb.RerankRequest, request).ListFields()}
    assert written == set(pb.RerankRequest.DESCRIPTOR.fields_by_name) == set(RerankRequest._fields)


def test_an_option_at_its_default_takes_no_byte():
    message = messages.request_to(pb.RerankRequest, RerankRequest("q", [Document("d")]))
    assert message == pb.RerankRequest(query="q", documents=[pb.Document(text="d")])


@pytest.mark.parametrize("serving", [True, False])
def test_a_model_says_apart_from_its_state_whether_a_call_would_be_answered(serving: bool):
    model = messages.model_to(ModelInfo("m", State.UNLOADED, serving=serving))
    health = messages.health_to(Health("m", State.UNLOADED, "1.2.3", serving=serving))
    assert (model.serving, health.serving) == (serving, serving)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": "secret\ud800"}, "query: a lone surrogate at character 6"),
        ({"model": "\ud800"}, "model: a lone surrogate"),
        ({"instruction": "\udfff"}, "instruction: a lone surrogate"),
        ({"documents": [Document("a"), Document("b", "\ud800")]}, r"documents\[1\].id: a lone surrogate"),
        ({"top_n": -1}, "top_n: 0 to 4294967295, not -1"),
        ({"max_tokens_per_document": 2**32}, "max_tokens_per_document: 0 to 4294967295"),
        ({"max_chunks_per_document": -1}, "max_chunks_per_document: 0 to 4294967295"),
    ],
)
def test_what_no_message_can_hold_is_refused_by_its_field(change, says):
    with pytest.raises(InvalidRequest, match=says) as refused:
        messages.request_to(pb.RerankRequest, RerankRequest("q", [Document("d")])._replace(**change))
    assert "secret" not in str(refused.value)
    # The codec's error holds the whole text.
    assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize("field", ["truncation", "priority"])
def test_a_number_that_is_no_choice_is_refused(field):
    with pytest.raises(InvalidRequest, match=f"{field}: 77 is not a {field.capitalize()}"):
        messages.request_from(pb.RerankRequest(**dict[str, Any]({field: 77})))
