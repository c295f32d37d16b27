from __future__ import annotations

import contextlib
import random

import pytest
from google.protobuf.message import DecodeError, Message

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.protocols import inference_pb2 as pb
from rerank_grpc.server.kserve import bounds
from tests.support import processor_time

Input = pb.ModelInferRequest.InferInputTensor


def values_in(message: Message) -> int:
    """Counts a parsed message's values, those of its messages too; a map's entry is one."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            count += len(value)
        elif field.message_type:
            for each in value if field.is_repeated else [value]:
                count += 1 + values_in(each)
        else:
            count += len(value) if field.is_repeated else 1
    return count


def refused(data: bytes) -> bool:
    try:
        bounds.bounded_parser(pb.ModelInferRequest)(data)
    except InvalidRequest:
        return True
    return False


def field(number: int, value: bytes) -> bytes:
    """Writes a length-delimited field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def test_of_whatever_the_parser_accepts_no_value_is_missed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounds, "MOST_VALUES", 8)
    seeded, many, few = random.Random(7), 0, 0
    for _ in range(5_000):
        contents = b"".join(seeded.choices([field(8, b"t"), field(2, b"\x01\x02\x03"), b"\x42\x00"], k=2))
        parts = [
            field(1, b"QUERY"),
            field(3, b"\x01\x01"),
            b"\x18\x01",
            field(5, contents),
            field(4, field(1, b"p")),
        ]
        tensor = field(5, b"".join(seeded.choices(parts, k=seeded.randrange(4))))
        others = [tensor, tensor, field(7, b"raw"), field(3, b"id"), field(9, b"new"), b"\x48\x01", b"\x2a"]
        data = b"".join(seeded.choices(others, k=seeded.randrange(8)))
        with contextlib.suppress(DecodeError):
            if values_in(pb.ModelInferRequest.FromString(data)) > 8:
                assert refused(data)
                many += 1
            elif len(data) <= 8:  # each value has a byte at least
                assert not refused(data)
                few += 1
    assert min(many, few) > 300


@pytest.mark.parametrize(
    "piece",
    [
        field(5, b""),
        field(5, field(5, field(8, b"") * 40)),
        field(5, field(3, b"\x01" * 100)),
        field(5, field(4, field(1, b""))),
        field(6, b""),
        field(7, b""),
        field(4, b""),
        field(9, b""),
        b"\x48\x01",
        b"\x22\x80\x80\x80\x00",
    ],
)
def test_a_message_of_eight_megabytes_of_small_values_is_refused_before_it_is_parsed(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
):
    data = piece * (LIMITS.message_bytes // len(piece))
    parse = bounds.bounded_parser(pb.ModelInferRequest)
    monkeypatch.setattr(bounds, "parser", lambda *_: pytest.fail)
    unparsed = bounds.bounded_parser(pb.ModelInferRequest)
    with processor_time() as seconds:
        with pytest.raises(InvalidRequest, match="more than 2,256 values; 1,000 passages are allowed"):
            unparsed(data)
        assert seconds() < 0.5
    assert parse(b"") == pb.ModelInferRequest()


def test_the_largest_request_that_is_allowed_passes():
    texts = pb.InferTensorContents(bytes_contents=[b"t"] * LIMITS.documents)
    parameters = {name: pb.InferParameter(string_param="x") for name in "abcdefgh"}
    shape = [LIMITS.documents, 1]
    inputs = [
        Input(name=name, datatype="BYTES", shape=shape, contents=texts, parameters=parameters)
        for name in ("QUERY", "PASSAGE")
    ]
    request = pb.ModelInferRequest(model_name="m", inputs=inputs, parameters=parameters)
    assert not refused(request.SerializeToString())
