"""What grpcio's type stubs leave open: the methods of generated stubs, and how a call failed."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse


class HealthStub(health_pb2_grpc.HealthStub):
    """The generated stub of grpc.health.v1, with typed methods."""

    Check: grpc.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]
    Watch: grpc.UnaryStreamMultiCallable[HealthCheckRequest, HealthCheckResponse]


class ReflectionStub(reflection_pb2_grpc.ServerReflectionStub):
    """The generated stub of grpc.reflection.v1alpha, with a typed method."""

    # The type stubs give it the type of an exception by mistake.
    ServerReflectionInfo: grpc.StreamStreamMultiCallable[  # type: ignore[assignment]
        ServerReflectionRequest, ServerReflectionResponse
    ]


def status_code(error: BaseException | None) -> grpc.StatusCode:
    """Returns the code of a failed call."""
    assert isinstance(error, grpc.RpcError)
    return error.code()


def message_of(error: grpc.RpcError) -> str:
    """Returns the message of a failed call."""
    message = error.details()
    assert message is not None
    return message
