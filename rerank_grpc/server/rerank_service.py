"""RerankService: each method translates, calls the reranker or the registry, and translates back."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from rerank_grpc.config import Limits
from rerank_grpc.registry.registry import Registry
from rerank_grpc.reranker import Reranker
from rerank_grpc.server import convert
from rerank_grpc.server.boundary import boundary
from rerank_grpc.server.context import call_of
from rerank_grpc.types import RerankSummary
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc


class RerankServicer(rerank_pb2_grpc.RerankServiceServicer):
    """Serves rerank.v1.RerankService."""

    def __init__(self, reranker: Reranker, registry: Registry, limits: Limits) -> None:
        self._reranker = reranker
        self._registry = registry
        self._limits = limits

    def Rerank(self, request: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
        """Scores all documents and returns them by descending relevance."""
        with boundary(context, "Rerank") as facts:
            facts["documents"] = len(request.documents)
            call = call_of(context, self._limits.deadline_seconds)
            response = self._reranker.rerank(convert.request_from(request, self._limits), call)
            facts["model"] = response.summary.model
            facts["tokens"] = response.summary.usage.input_tokens
            return convert.response_to(response)

    def StreamRerank(
        self, request: pb.StreamRerankRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamRerankResponse]:
        """Sends results as they are scored, and the summary at last."""
        with boundary(context, "StreamRerank") as facts:
            facts["documents"] = len(request.documents)
            call = call_of(context, self._limits.deadline_seconds)
            for part in self._reranker.stream(convert.request_from(request, self._limits), call):
                if isinstance(part, RerankSummary):
                    facts["model"] = part.model
                    facts["tokens"] = part.usage.input_tokens
                    yield pb.StreamRerankResponse(summary=convert.summary_to(part))
                else:
                    yield pb.StreamRerankResponse(results=convert.results_to(part))

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        """Lists the configured models, the default first."""
        with boundary(context, "ListModels"):
            return pb.ListModelsResponse(models=map(convert.model_to, self._registry.models()))

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthResponse:
        """Tells whether a model can be called now, and how full its queue is."""
        with boundary(context, "Health"):
            return convert.health_to(self._registry.health(request.model))
