"""R12: every limit at its maximum, one past it, and at 0; nothing refused costs a forward pass."""

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.limits import LIMITS
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.server.test_errors import details_of, failure
from tests.support import (
    CountingRunner,
    own_deadline,
    request_of,
    serving,
    stub_of,
)

MANY = ["d"] * LIMITS.documents


def documents(*texts: str, **fields: object) -> pb.RerankRequest:
    return request_of("q", *texts, **fields)


ALLOWED = {
    "documents at the maximum": documents(*MANY),
    "characters of a document at the maximum": documents("x" * LIMITS.characters),
    "characters of a query at the maximum": request_of("x" * LIMITS.characters, "d"),
    "an id at the maximum": pb.RerankRequest(
        query="q", documents=[pb.Document(text="d", id="x" * LIMITS.id_characters)]
    ),
    "an empty document": documents(""),
    "top_n 0": documents("d", top_n=0),
    "top_n above the count": documents("d", top_n=2**32 - 1),
    "min_relevance_score 0": documents("d", min_relevance_score=0),
    "min_relevance_score 1": documents("d", min_relevance_score=1),
    "max_tokens_per_document 0": documents("d", max_tokens_per_document=0),
    "max_chunks_per_document at the maximum": documents("d", max_chunks_per_document=LIMITS.chunks),
    "max_chunks_per_document 0": documents("d", max_chunks_per_document=0),
}
REFUSED = {
    "documents": [documents(), documents(*MANY, "d")],
    "query": [request_of("", "d"), request_of("x" * (LIMITS.characters + 1), "d")],
    "documents[1].text": [documents("d", "x" * (LIMITS.characters + 1))],
    "documents[0].id": [
        pb.RerankRequest(query="q", documents=[pb.Document(text="d", id="x" * (LIMITS.id_characters + 1))])
    ],
    "min_relevance_score": [
        documents("d", min_relevance_score=value) for value in (-0.01, 1.01, float("nan"))
    ],
    "instruction": [documents("d", instruction="x" * (LIMITS.characters + 1))],
    "max_chunks_per_document": [documents("d", max_chunks_per_document=LIMITS.chunks + 1)],
    "truncation": [documents("d", truncation=99)],
    "priority": [documents("d", priority=99)],
}


def test_every_limit_at_its_maximum_is_served():
    with serving(runner=CountingRunner()) as server, stub_of(server.port) as stub:
        for name, request in ALLOWED.items():
            assert len(stub.Rerank(request, timeout=20).results) <= len(request.documents), name


@pytest.mark.parametrize("field", REFUSED)
def test_past_a_limit_the_field_is_named_and_nothing_is_computed(field: str):
    runner = CountingRunner()
    with serving(runner=runner) as server:
        for request in REFUSED[field]:
            error = failure(server.port, request)
            message, _ = details_of(error)
            violations = error_details_pb2.BadRequest.FromString(message.details[1].value).field_violations
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert [violation.field for violation in violations] == [field]
        assert runner.batches == []


def test_a_million_empty_documents_are_refused_fast():
    request = pb.RerankRequest(query="q", documents=[pb.Document()] * 1_000_000)
    with serving(runner=CountingRunner()) as server:
        assert failure(server.port, request).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_over_the_limit_is_refused_by_grpc_itself():
    text = "x" * LIMITS.characters
    with serving(runner=CountingRunner()) as server, stub_of(server.port) as stub:
        fitting = documents(*[text] * 83)
        assert fitting.ByteSize() <= LIMITS.message_bytes
        assert len(stub.Rerank(fitting, timeout=20).results) == 83
        error = failure(server.port, documents(*[text] * 84))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-status-details-bin" not in {item.key for item in error.trailing_metadata() or ()}


def test_an_instruction_for_a_model_that_takes_none_is_refused():
    with serving() as server:
        error = failure(server.port, documents("d", instruction="find pandas"))
    message, _ = details_of(error)
    info = error_details_pb2.ErrorInfo.FromString(message.details[0].value)
    assert (error.code(), info.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "ERROR_REASON_UNSUPPORTED_OPTION",
    )


def test_a_deadline_beyond_the_servers_is_cut_to_it(monkeypatch: pytest.MonkeyPatch):
    own_deadline(monkeypatch, 0.0)
    with serving(runner=CountingRunner()) as server:
        assert failure(server.port, documents("d")).code() is grpc.StatusCode.DEADLINE_EXCEEDED
