"""The methods of our own services, each in its lane: a table of what grpcio is to run, and how."""

from __future__ import annotations

import grpc

from rerank_grpc.limits import Limits, too_many_documents
from rerank_grpc.server import wire
from rerank_grpc.server.lanes import READER_SECONDS, REQUEST_SECONDS, Lane, Parse, parser, register
from rerank_grpc.server.patience import BYTES_PER_SECOND, Patience
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

RERANK_SERVICE = pb.DESCRIPTOR.services_by_name["RerankService"].full_name
ADMIN_SERVICE = pb.DESCRIPTOR.services_by_name["ModelAdminService"].full_name

# How many requests with texts are awaited at once: at least as many as ordinary callers send together.
TEXTS_CAPACITY = 96
# How long a stopping server still waits for one.
TEXTS_DRAIN_SECONDS = 5.0
# How many probes of our own are awaited at once; where tokens are set, they need one.
PROBES_CAPACITY = 96
# Threads that are left to refuse calls while all slots are taken and requests are awaited.
SPARE_THREADS = 32
ADMIN_THREADS = 32


def _texts_parser(kind: type[pb.RerankRequest] | type[pb.StreamRerankRequest], limits: Limits) -> Parse:
    """Makes the Parse of a request with texts, which counts its documents first: millions fit a message."""
    parse, documents = parser(kind, limits.message_bytes), kind.DOCUMENTS_FIELD_NUMBER

    def parse_texts(data: bytes) -> object:
        if wire.has_more_than(limits.documents, documents, data):
            raise too_many_documents(limits)
        return parse(data)

    return parse_texts


def add_rerank(
    server: grpc.Server,
    servicer: rerank_pb2_grpc.RerankServiceServicer,
    patience: Patience,
    limits: Limits,
    *,
    calls: int,
) -> list[Lane]:
    """Registers RerankService on a server that admits so many calls; returns its lanes."""
    capacity = max(calls, TEXTS_CAPACITY)

    def lane(name: str) -> Lane:
        return Lane(
            name,
            patience,
            # Calls inside, those in the lobby, those whose request has not come, and readers of streams.
            threads=calls + calls // 2 + 2 * capacity + SPARE_THREADS,
            seconds=REQUEST_SECONDS + limits.message_bytes / BYTES_PER_SECOND,
            capacity=capacity,
            readers=capacity,
            stream_seconds=limits.deadline_seconds + READER_SECONDS,
            drain_seconds=TEXTS_DRAIN_SECONDS,
            drains_readers=False,
        )

    answers, streams = lane("rerank"), lane("stream")
    probes = Lane("probe", patience, capacity=PROBES_CAPACITY, threads=2 * PROBES_CAPACITY)
    handlers = {
        "Rerank": answers.unary("Rerank", servicer.Rerank, _texts_parser(pb.RerankRequest, limits)),
        "StreamRerank": streams.stream(
            "StreamRerank", servicer.StreamRerank, _texts_parser(pb.StreamRerankRequest, limits)
        ),
        "ListModels": probes.unary("ListModels", servicer.ListModels, parser(pb.ListModelsRequest)),
        "Health": probes.unary("Health", servicer.Health, parser(pb.HealthRequest)),
    }
    register(server, RERANK_SERVICE, handlers)
    return [answers, streams, probes]


def add_admin(
    server: grpc.Server, servicer: rerank_pb2_grpc.ModelAdminServiceServicer, patience: Patience
) -> Lane:
    """Registers ModelAdminService, and returns its lane; a call holds a thread until a model has moved."""
    lane = Lane("admin", patience, threads=ADMIN_THREADS)
    handlers = {
        "LoadModel": lane.unary("LoadModel", servicer.LoadModel, parser(pb.LoadModelRequest)),
        "UnloadModel": lane.unary("UnloadModel", servicer.UnloadModel, parser(pb.UnloadModelRequest)),
    }
    register(server, ADMIN_SERVICE, handlers)
    return lane
