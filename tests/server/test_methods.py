import contextlib
import random

import pytest
from google.protobuf.message import DecodeError

from rerank_grpc.server.methods import has_more_than
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.support import processor_time

DOCUMENTS = pb.RerankRequest.DOCUMENTS_FIELD_NUMBER


def message_of(count: int, text: str = "") -> bytes:
    return pb.RerankRequest(
        model="m",
        query="q" * 300,
        documents=[pb.Document(text=text)] * count,
        top_n=300,
        min_relevance_score=0.5,
    ).SerializeToString()


@pytest.mark.parametrize("text", ["", "short", "\x1a" * 50, "long " * 1_000])
def test_documents_are_counted_as_the_parser_would(text: str):
    for count in (0, 1, 9, 10, 11, 50):
        assert has_more_than(10, DOCUMENTS, message_of(count, text)) is (count > 10)


def test_a_tag_within_a_text_is_no_document():
    assert not has_more_than(10, DOCUMENTS, pb.RerankRequest(query="\x1a" * 1_000).SerializeToString())


def test_of_whatever_the_parser_accepts_the_count_is_right():
    seeded, accepted = random.Random(7), 0
    for _ in range(5_000):
        pieces = [b"\x1a\x00", b"\x1a\x02\x0a\x00", b"\x12\x01\x1a", b"\x98\x06\x1a", b"\x1a", b"\x0a"]
        message = b"".join(seeded.choices(pieces, k=seeded.randrange(20)))
        with contextlib.suppress(DecodeError, UnicodeDecodeError):
            count = len(pb.RerankRequest.FromString(message).documents)
            assert has_more_than(5, DOCUMENTS, message) is (count > 5)
            accepted += 1
        has_more_than(5, DOCUMENTS, message)  # raises nothing, whatever it is
    assert accepted > 500


def test_a_message_of_a_great_many_small_fields_is_refused_before_it_is_walked_through():
    longer_tag, group = b"\x9a\x00\x00", b"\x7b\x7c"
    with processor_time() as seconds:
        for field in (b"\x78\x1a", b"\x1a\x00", b"\x98\x06\x1a", longer_tag, b"\x9a\x80\x00\x00"):
            assert has_more_than(1_000, DOCUMENTS, field * 2_000_000)
            assert has_more_than(1_000, DOCUMENTS, group + field * 2_000_000)
        assert seconds() < 1  # all of it would take many seconds
