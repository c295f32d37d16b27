"""A call too large for the server's limits is sent in parts, and gives the response of one call."""

from __future__ import annotations

import random
from dataclasses import replace

import grpc
import pytest

from rerank_grpc.client import (
    DeadlineExceeded,
    Document,
    InternalError,
    InvalidRequest,
    MessageTooLarge,
    QueueFull,
    Reason,
    RerankRequest,
    RevisionChanged,
    parts,
)
from rerank_grpc.limits import LIMITS, MIB
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages
from tests.client.scripted_server import fail, hang, results
from tests.support import serving, wait_for

WORDS = ["pandas", "bamboo", "Paris", "France", "eat", "live", "settings", "password", "office", "reset"]


@pytest.fixture(scope="module")
def service():
    with serving() as service:
        yield service


@pytest.fixture
def small(monkeypatch):
    """Lowers the limits that the client knows: the server's own stay, so that both ways can be compared."""
    monkeypatch.setattr(parts, "LIMITS", replace(LIMITS, documents=7))


def texts(count):
    chosen = random.Random(3)
    made = [" ".join(chosen.choices(WORDS, k=chosen.randint(1, 30))) for _ in range(count)]
    return [*made, *made[:3]]  # equal texts have equal scores


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_n": 5},
        {"top_n": 40, "return_documents": True},
        {"min_relevance_score": 0.4},
        {"max_chunks_per_document": 4, "max_tokens_per_document": 9},
    ],
    ids=str,
)
def test_parts_give_what_one_call_gives(connect, service, monkeypatch, options):
    """On the embedded model, to the last bit: a score depends on no other document of its call."""
    client = connect(f"127.0.0.1:{service.port}")
    documents = [Document(text, f"id-{place}") for place, text in enumerate(texts(30))]
    whole = client.rerank("What do pandas eat?", documents, **options)
    monkeypatch.setattr(parts, "LIMITS", replace(LIMITS, documents=7))
    split = client.rerank("What do pandas eat?", documents, **options)
    assert split.results == whole.results
    assert split.summary._replace(usage=None) == whole.summary._replace(usage=None)
    # A text that a call holds twice is counted once, and so is what its documents share.
    assert split.summary.usage.input_tokens >= whole.summary.usage.input_tokens > 0


def saturated(request, _context):
    """Scores as the service does: by logits, here the documents, whose high ones all give 1.0."""
    given = [(index, float(document.text)) for index, document in enumerate(request.documents)]
    made = [pb.RerankResult(index=index, logit=logit, relevance_score=1) for index, logit in given]
    made.sort(key=lambda result: -result.logit)
    return pb.RerankResponse(results=made[: request.top_n or None], model="embedded")


@pytest.mark.parametrize("top_n", [None, 3])
def test_equal_scores_of_two_parts_are_in_the_order_of_their_logits(connect, server, monkeypatch, top_n):
    server.otherwise = saturated
    client = connect(server.target)
    documents = ["18", "25", "20", "19", "22", "25", "18", "30", "25"]
    whole = client.rerank("q", documents, top_n=top_n)
    monkeypatch.setattr(parts, "LIMITS", replace(LIMITS, documents=2))
    assert client.rerank("q", documents, top_n=top_n).results == whole.results
    assert len(server.calls) == 1 + 5


def test_more_documents_than_a_call_may_have_are_all_scored(connect, service):
    client = connect(f"127.0.0.1:{service.port}")
    response = client.rerank("pandas", [f"text {number % 50}" for number in range(2_100)], timeout=100)
    assert sorted(result.index for result in response.results) == list(range(2_100))
    scores = [(-result.relevance_score, result.index) for result in response.results]
    assert scores == sorted(scores)


@pytest.mark.parametrize("count", [3, 20])
def test_the_caller_is_told_how_many_documents_are_scored(connect, service, small, count):
    client, told = connect(f"127.0.0.1:{service.port}"), []
    client.rerank("pandas", ["text"] * count, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (count, count)
    assert len(told) == -(-count // 7)
    assert told == sorted(told)


def test_a_refused_document_is_named_by_its_place_in_the_whole(connect, service, small):
    client = connect(f"127.0.0.1:{service.port}")
    documents = ["short"] * 9 + ["x" * (LIMITS.characters + 1)]
    with pytest.raises(InvalidRequest, match=r"^documents\[9\]\.text: has 100,001") as caught:
        client.rerank("q", documents)
    assert caught.value.violations[0].field == "documents[9].text"
    with pytest.raises(InvalidRequest, match="query"):
        client.rerank("", documents)


def test_parts_stay_within_the_limit_of_bytes(client, server):
    letters = "é" * (MIB // 2)  # of two bytes each
    response = client.rerank("q", [letters] * 17, top_n=1)
    assert len(server.calls) == 3
    assert all(call.request.ByteSize() <= LIMITS.message_bytes for call in server.calls)
    assert [result.index for result in response.results] == [0]


@pytest.mark.parametrize("size", range(LIMITS.message_bytes - 200, LIMITS.message_bytes + 3, 13))
def test_no_part_is_larger_than_a_message_may_be(size):
    request = RerankRequest("q", [Document("x" * (size // 2), "i" * 200)] * 2, instruction="é" * 50)
    for part in parts.parts_of(request):
        assert messages.request_to(pb.RerankRequest, part.request).ByteSize() <= LIMITS.message_bytes


def test_a_document_that_fits_no_message_is_refused(client):
    with pytest.raises(MessageTooLarge, match="send shorter documents, or fewer in a call"):
        client.rerank("q", ["x" * (9 * MIB)])


def test_the_parts_share_one_deadline(client, server, small):
    server.otherwise = hang
    for seconds in (0.5, 3.0, 10.0):  # on a busy machine a call may take its time to come
        with pytest.raises(DeadlineExceeded):
            client.rerank("q", ["a"] * 20, timeout=seconds)
        if server.calls:
            break
    assert max(call.time_remaining for call in server.calls) <= seconds + 0.1


def test_the_first_error_ends_the_other_parts(client, server, small):
    begun, ended = [], []

    def hanging(request, context):
        begun.append(request)

        def end():
            ended.append(context.time_remaining())

        if not context.add_callback(end):
            end()  # before it came here
        return hang(request, context)

    def breaking(request, context):
        wait_for(lambda: len(begun) == 3)
        return fail(grpc.StatusCode.INTERNAL, "broken", reason=Reason.INTERNAL)(request, context)

    server.script.append(breaking)
    server.otherwise = hanging
    with pytest.raises(InternalError, match="broken"):
        client.rerank("q", ["a"] * 60, timeout=25)
    wait_for(lambda: len(ended) == len(begun))
    assert min(ended) > 5, "they are not ended by their deadline"
    assert len(begun) in (3, 4), "the place of the failed part may go to one more, which ends too"


def test_a_part_waits_as_often_as_the_server_is_full(client, server, small):
    full = fail(grpc.StatusCode.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=0.01)
    server.script.extend([full] * 9)
    assert len(client.rerank("q", ["a"] * 8).results) == 8
    assert len(server.calls) == 11


def test_a_server_that_stays_full_is_told_in_time(client, server, small):
    server.otherwise = fail(grpc.StatusCode.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=0.2)
    with pytest.raises(QueueFull):
        client.rerank("q", ["a"] * 8, timeout=5)


def revisions(*names):
    """Answers with one revision after the other."""
    left = list(names)

    def step(request, _context):
        return pb.RerankResponse(results=results(request), model="embedded", model_revision=left.pop(0))

    return step


def test_scores_of_two_revisions_are_never_mixed(client, server, small):
    server.otherwise = revisions("r1", "r2", "r2", "r2")
    response = client.rerank("q", ["a"] * 8)
    assert response.summary.model_revision == "r2"
    assert len(server.calls) == 4, "both parts were asked again"


def test_revisions_that_differ_again_are_an_error(client, server, small):
    server.otherwise = revisions("r1", "r2", "r3", "r4")
    with pytest.raises(RevisionChanged, match=r"different models \(embedded r[34], embedded r[34]\)"):
        client.rerank("q", ["a"] * 8)


@pytest.mark.parametrize("method", ["send", "stream"])
def test_what_is_one_call_stays_one(connect, service, method):
    """The server refuses it, with the limit."""
    client = connect(f"127.0.0.1:{service.port}")
    request = RerankRequest("q", [Document("a")] * 1_001)
    with pytest.raises(InvalidRequest, match=r"^documents: holds .*1,000"):
        client.send(request) if method == "send" else next(client.stream(request))
