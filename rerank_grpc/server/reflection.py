"""Server reflection, so that grpcurl and buf curl need no proto file."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from rerank_grpc.server.pools import on_pool

V1ALPHA = reflection.SERVICE_NAME
# The same messages under the name that newer tools ask for first. It answers
# but is not listed, because its descriptor is not shipped.
V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: grpc.Server, services: Iterable[str], pool: ThreadPoolExecutor) -> None:
    """Registers reflection of `services` under both names, to be run on its own pool.

    A stream of it holds a thread for as long as the caller likes.
    """
    servicer = reflection.ReflectionServicer((*services, V1ALPHA))
    handler = grpc.stream_stream_rpc_method_handler(
        on_pool(servicer.ServerReflectionInfo, pool),
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            for name in (V1ALPHA, V1)
        )
    )
