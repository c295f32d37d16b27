"""The methods of our own services, each in its lane: a table of what grpcio is to run, and how."""

from __future__ import annotations

import grpc

from rerank_grpc.checks import too_many_documents
from rerank_grpc.config import Limits
from rerank_grpc.server import wire
from rerank_grpc.server.lanes import STALL_SECONDS, Lane, Parse, parser
from rerank_grpc.server.patience import Patience
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

RERANK_SERVICE = pb.DESCRIPTOR.services_by_name["RerankService"].full_name
ADMIN_SERVICE = pb.DESCRIPTOR.services_by_name["ModelAdminService"].full_name

# A request with texts may take this long to come, which is also the deadline that clients set by default.
TEXTS_SECONDS = 30.0
# A request that takes less than this to come is never given up, however many are awaited.
TEXTS_SPARED = 0.25
# One connection may hold fewer calls than there are threads, so that some are always left for others.
SPARE_THREADS = 96
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
    """Registers RerankService on a server that lets in `calls` calls of one connection; returns its lanes."""

    def lane(name: str) -> Lane:
        return Lane(
            name,
            patience,
            threads=calls + SPARE_THREADS,
            seconds=TEXTS_SECONDS,
            most=calls,
            spared=TEXTS_SPARED,
            keeps_readers=True,
            stream_seconds=limits.deadline_seconds + STALL_SECONDS,
        )

    answers, streams, probes = lane("rerank"), lane("stream"), Lane("probe", patience)
    handlers = {
        "Rerank": answers.unary("Rerank", servicer.Rerank, _texts_parser(pb.RerankRequest, limits)),
        "StreamRerank": streams.stream(
            "StreamRerank", servicer.StreamRerank, _texts_parser(pb.StreamRerankRequest, limits)
        ),
        "ListModels": probes.unary("ListModels", servicer.ListModels, parser(pb.ListModelsRequest)),
        "Health": probes.unary("Health", servicer.Health, parser(pb.HealthRequest)),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RERANK_SERVICE, handlers),))
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
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ADMIN_SERVICE, handlers),))
    return lane
