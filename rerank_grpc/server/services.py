"""The two services: each method reads its message, calls the reranker or the registry, writes the reply."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from rerank_grpc.callers import Caller
from rerank_grpc.errors import InvalidRequest
from rerank_grpc.registry.registry import Registry
from rerank_grpc.reranker import Reranker
from rerank_grpc.server.guard import Edge
from rerank_grpc.server.handler import answering, call_of
from rerank_grpc.types import RerankSummary
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from rerank_grpc.wire import messages


class RerankServicer(rerank_pb2_grpc.RerankServiceServicer):
    """Serves rerank.v1.RerankService."""

    def __init__(self, reranker: Reranker, registry: Registry, edge: Edge) -> None:
        self._reranker = reranker
        self._registry = registry
        self._edge = edge

    def Rerank(self, request: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
        """Scores all documents and returns them by descending relevance."""
        with answering(context, "Rerank", self._edge) as record:
            record.documents = len(request.documents)
            call = call_of(context, record)
            response = self._reranker.rerank(messages.request_from(request), call, charged=record.ids.charge)
            record.summary = response.summary
            return messages.response_to(response)

    def StreamRerank(
        self, request: pb.StreamRerankRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamRerankResponse]:
        """Sends results as they are scored, and the summary at last."""
        with answering(context, "StreamRerank", self._edge) as record:
            record.documents = len(request.documents)
            call = call_of(context, record)
            for part in self._reranker.stream(messages.request_from(request), call):
                if isinstance(part, RerankSummary):
                    record.summary = part
                yield messages.part_to(part)

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        """Lists the configured models that the caller may call, the default first."""
        with answering(context, "ListModels", self._edge) as record:
            own = [model for model in self._registry.models() if record.caller.may_call(model.name)]
            return pb.ListModelsResponse(models=map(messages.model_to, own))

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthResponse:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        with answering(context, "Health", self._edge) as record:
            record.caller.require_model(self._registry.configured_name(request.model))
            return messages.health_to(self._registry.health(request.model))


class ModelAdminServicer(rerank_pb2_grpc.ModelAdminServiceServicer):
    """Serves rerank.v1.ModelAdminService to operators, on the admin port only."""

    def __init__(self, registry: Registry, edge: Edge) -> None:
        self._registry = registry
        self._edge = edge

    def LoadModel(self, request: pb.LoadModelRequest, context: grpc.ServicerContext) -> pb.LoadModelResponse:
        """Loads a configured model and returns once it is READY."""
        with answering(context, "LoadModel", self._edge) as record:
            call = call_of(context, record)
            info = self._registry.load(self._own_name(request.model, call.caller), call)
            return pb.LoadModelResponse(model=messages.model_to(info))

    def UnloadModel(
        self, request: pb.UnloadModelRequest, context: grpc.ServicerContext
    ) -> pb.UnloadModelResponse:
        """Waits for the calls in progress on a model, then frees its memory."""
        with answering(context, "UnloadModel", self._edge) as record:
            call = call_of(context, record)
            name = self._own_name(request.model, call.caller)
            info = self._registry.unload(name, deadline=call.deadline)
            return pb.UnloadModelResponse(model=messages.model_to(info))

    def _own_name(self, name: str, caller: Caller) -> str:
        """Returns the name of a model that the caller may move.

        Raises InvalidRequest for an empty one, which callers use for the default model, and PermissionDenied.
        """
        if not name:
            raise InvalidRequest.of("model", "is empty: name the model")
        caller.require_model(self._registry.configured_name(name, exact=True))
        return name
