"""ModelAdminService: loads and unloads models for an operator, on the admin port only."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.registry.registry import Registry
from rerank_grpc.server.handler import Sink, answering, call_of
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from rerank_grpc.wire import messages


class ModelAdminServicer(rerank_pb2_grpc.ModelAdminServiceServicer):
    """Serves rerank.v1.ModelAdminService."""

    def __init__(self, registry: Registry, sinks: Sequence[Sink]) -> None:
        self._registry = registry
        self._sinks = sinks

    def LoadModel(self, request: pb.LoadModelRequest, context: grpc.ServicerContext) -> pb.LoadModelResponse:
        """Loads a configured model and returns once it is READY."""
        with answering(context, "LoadModel", self._sinks):
            call = call_of(context)
            info = self._registry.load(_name(request.model), call)
            return pb.LoadModelResponse(model=messages.model_to(info))

    def UnloadModel(
        self, request: pb.UnloadModelRequest, context: grpc.ServicerContext
    ) -> pb.UnloadModelResponse:
        """Waits for the calls in progress on a model, then frees its memory."""
        with answering(context, "UnloadModel", self._sinks):
            call = call_of(context)
            info = self._registry.unload(_name(request.model), deadline=call.deadline)
            return pb.UnloadModelResponse(model=messages.model_to(info))


def _name(name: str) -> str:
    """Returns the name; raises InvalidRequest for an empty one, which callers use for the default model."""
    if not name:
        raise InvalidRequest.of("model", "is empty: name the model")
    return name
