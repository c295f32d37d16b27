"""ModelAdminService: an operator loads and unloads models; on the admin port only."""

from __future__ import annotations

import grpc

from rerank_grpc.config import Limits
from rerank_grpc.errors import InvalidRequest
from rerank_grpc.registry.registry import Registry
from rerank_grpc.server import convert
from rerank_grpc.server.boundary import boundary
from rerank_grpc.server.context import call_of
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc


class ModelAdminServicer(rerank_pb2_grpc.ModelAdminServiceServicer):
    """Serves rerank.v1.ModelAdminService."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry = registry
        self._limits = limits

    def LoadModel(self, request: pb.LoadModelRequest, context: grpc.ServicerContext) -> pb.LoadModelResponse:
        """Loads a configured model and returns once it is READY."""
        with boundary(context, "LoadModel"):
            call = call_of(context, self._limits.deadline_seconds)
            info = self._registry.load(_name(request.model), call)
            return pb.LoadModelResponse(model=convert.model_to(info))

    def UnloadModel(
        self, request: pb.UnloadModelRequest, context: grpc.ServicerContext
    ) -> pb.UnloadModelResponse:
        """Waits for the calls in progress on a model, then frees its memory."""
        with boundary(context, "UnloadModel"):
            call = call_of(context, self._limits.deadline_seconds)
            info = self._registry.unload(_name(request.model), deadline=call.deadline)
            return pb.UnloadModelResponse(model=convert.model_to(info))


def _name(name: str) -> str:
    """Refuses to guess which model an operator means."""
    if not name:
        raise InvalidRequest.of("model", "is empty: name the model")
    return name
