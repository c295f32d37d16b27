"""The services of rerank.v1: each method with its lane and its parser."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.message import Message

from rerank_grpc.limits import LIMITS, too_many_documents
from rerank_grpc.server.guard import Edge
from rerank_grpc.server.lanes import READER_SECONDS, REQUEST_SECONDS, Lane, Parse, Service, parser
from rerank_grpc.server.patience import BYTES_PER_SECOND, Patience
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

RERANK_SERVICE = pb.DESCRIPTOR.services_by_name["RerankService"].full_name
ADMIN_SERVICE = pb.DESCRIPTOR.services_by_name["ModelAdminService"].full_name

# Requests with texts awaited at once: at least as many as ordinary callers send together.
TEXTS_CAPACITY = 96
# A stopping server's wait for one.
TEXTS_DRAIN_SECONDS = 5.0
# Requests of ListModels and Health awaited at once; where tokens are set, these need one.
PROBES_CAPACITY = 96
# Threads that are left to refuse calls while all slots are taken and requests are awaited.
SPARE_THREADS = 32
ADMIN_THREADS = 32

# Wire types of protobuf's encoding, and the bytes of a value of fixed size.
VARINT, BYTES = 0, 2
FIXED_BYTES = {1: 8, 5: 4}
# A message has its documents and a dozen other fields; newer callers may send some more.
OTHER_FIELDS = 64
# Tags are counted piece by piece, so that a message full of them is refused at once.
COUNTED_BYTES = 1 << 16


class CallLanes(NamedTuple):
    """The lanes of calls with texts, with one answer or a stream of them, and of questions without texts.

    All protocols share them: one bound holds for their calls together.
    """

    answers: Lane
    streams: Lane
    probes: Lane


def call_lanes(patience: Patience, edge: Edge, *, calls: int) -> CallLanes:
    """Makes the lanes of a server that admits at most `calls` calls at once."""
    capacity = max(calls, TEXTS_CAPACITY)

    def lane(name: str) -> Lane:
        return Lane(
            name,
            patience,
            edge,
            # Calls inside, calls in the lobby, calls that wait for their request, and readers of streams.
            threads=calls + calls // 2 + 2 * capacity + SPARE_THREADS,
            seconds=REQUEST_SECONDS + LIMITS.message_bytes / BYTES_PER_SECOND,
            capacity=capacity,
            readers=capacity,
            stream_seconds=LIMITS.deadline_seconds + READER_SECONDS,
            drain_seconds=TEXTS_DRAIN_SECONDS,
            drains_readers=False,
        )

    probes = Lane("probe", patience, edge, capacity=PROBES_CAPACITY, threads=2 * PROBES_CAPACITY)
    return CallLanes(lane("rerank"), lane("stream"), probes)


def rerank_service(servicer: rerank_pb2_grpc.RerankServiceServicer, lanes: CallLanes) -> Service:
    """Makes RerankService."""
    documents = pb.RerankRequest.DOCUMENTS_FIELD_NUMBER  # of StreamRerankRequest too
    parse, parse_stream = (
        texts_parser(pb.RerankRequest, documents),
        texts_parser(pb.StreamRerankRequest, documents),
    )
    handlers = {
        "Rerank": lanes.answers.unary("Rerank", servicer.Rerank, parse),
        "StreamRerank": lanes.streams.stream("StreamRerank", servicer.StreamRerank, parse_stream),
        "ListModels": lanes.probes.unary("ListModels", servicer.ListModels, parser(pb.ListModelsRequest)),
        "Health": lanes.probes.unary("Health", servicer.Health, parser(pb.HealthRequest)),
    }
    return Service(RERANK_SERVICE, handlers, lanes)


def admin_service(
    servicer: rerank_pb2_grpc.ModelAdminServiceServicer, patience: Patience, edge: Edge
) -> Service:
    """Makes ModelAdminService; a call holds a thread until its model has moved."""
    lane = Lane("admin", patience, edge, threads=ADMIN_THREADS)
    handlers = {
        "LoadModel": lane.unary("LoadModel", servicer.LoadModel, parser(pb.LoadModelRequest)),
        "UnloadModel": lane.unary("UnloadModel", servicer.UnloadModel, parser(pb.UnloadModelRequest)),
    }
    return Service(ADMIN_SERVICE, handlers, [lane])


def texts_parser(kind: type[Message], texts: int) -> Parse:
    """Makes the Parse of a request, which counts its texts first, the field of that number: millions fit."""
    parse, name = parser(kind, LIMITS.message_bytes), kind.DESCRIPTOR.fields_by_number[texts].name

    def parse_texts(data: bytes) -> object:
        if has_more_than(LIMITS.documents, texts, data):
            raise too_many_documents(name)
        return parse(data)

    return parse_texts


def has_more_than(most: int, number: int, message: bytes) -> bool:
    """Tells whether a serialized message has more than `most` values of a length-delimited field.

    OTHER_FIELDS more fields, or one of no known kind, count as too many; the parser refuses cut messages.
    """
    if not _may_have_more(most, message, number << 3 | BYTES):
        return False
    at = fields = found = 0
    while at < len(message):
        key, at = varint(message, at)
        fields += 1
        found += key >> 3 == number
        if found > most or fields > most + OTHER_FIELDS:
            return True
        if (end := skip(message, at, key & 7)) is None:
            return True
        at = end
    return False


def _may_have_more(most: int, message: bytes, tag: int) -> bool:
    """Tells within microseconds whether a tag of one byte might occur more often."""
    found = 0
    for start in range(0, len(message), COUNTED_BYTES):
        end = start + COUNTED_BYTES
        found += message.count(tag, start, end) + message.count(tag | 0x80, start, end)
        if found > most:
            return True
    return False


def varint(message: bytes, at: int) -> tuple[int, int]:
    """Reads a varint of at most ten bytes; returns it and the position of its end."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at


def skip(message: bytes, at: int, kind: int) -> int | None:
    """Returns the end of a field's value; None for a group, which could hide others, or an unknown kind."""
    if kind == VARINT:
        return varint(message, at)[1]
    if kind == BYTES:
        length, at = varint(message, at)
        return at + length
    return at + FIXED_BYTES[kind] if kind in FIXED_BYTES else None
