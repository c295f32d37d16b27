"""Server reflection, so that grpcurl and buf curl need no proto file."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from rerank_grpc.server.lanes import Lane, parser
from rerank_grpc.server.patience import Patience

V1ALPHA = reflection.SERVICE_NAME
# The same messages under the name that newer tools ask for first. It answers
# but is not listed, because its descriptor is not shipped.
V1 = "grpc.reflection.v1.ServerReflection"
METHOD = "ServerReflectionInfo"
# Between two questions of one stream.
IDLE_SECONDS = 10.0


def add_reflection(server: grpc.Server, services: Iterable[str], patience: Patience, name: str) -> Lane:
    """Registers reflection of `services` under both names, in a lane of its own, and returns that.

    A stream of it holds a thread until it is idle for too long.
    """
    servicer = reflection.ReflectionServicer((*services, V1ALPHA))
    lane = Lane(f"{name}-reflection", patience, seconds=IDLE_SECONDS)
    parse = parser(reflection_pb2.ServerReflectionRequest)
    handler = lane.conversation(METHOD, servicer.ServerReflectionInfo, parse)
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, {METHOD: handler}) for service in (V1ALPHA, V1))
    )
    return lane
