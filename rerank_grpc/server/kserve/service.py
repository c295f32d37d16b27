"""inference.GRPCInferenceService: ModelInfer through the reranker, and what describes server and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from rerank_grpc import __version__
from rerank_grpc.errors import InvalidRequest, UnknownModel
from rerank_grpc.protocols import inference_pb2 as pb
from rerank_grpc.reranker import Reranker
from rerank_grpc.server.call_log import Sink
from rerank_grpc.server.handler import answering, call_of
from rerank_grpc.server.kserve import tensors
from rerank_grpc.server.kserve.bounds import bounded_parser
from rerank_grpc.server.kserve.tensors import INPUTS, NUMBER, OUTPUTS, TEXT, Inference
from rerank_grpc.server.lanes import Handler, Service, parser
from rerank_grpc.server.methods import CallLanes
from rerank_grpc.types import (
    Call,
    ModelInfo,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Usage,
)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
NAME = "rerank-grpc"
# Of Triton's additions to the protocol.
EXTENSIONS = ("model_configuration",)
ANY_SIZE = (-1,)


class KServeServicer:
    """Serves inference.GRPCInferenceService; `leaving` tells whether probes should send calls elsewhere."""

    def __init__(self, reranker: Reranker, leaving: Callable[[], bool], sinks: Sequence[Sink]) -> None:
        self._reranker = reranker
        self._registry = reranker.registry
        self._leaving = leaving
        self._sinks = sinks

    def service(self, lanes: CallLanes) -> Service:
        """Makes the service, in the lanes that all protocols share."""

        def question(answer: Callable[[Any], Message], kind: type[Message]) -> Handler:
            method = f"kserve.{kind.DESCRIPTOR.name.removesuffix('Request')}"

            def behaviour(request: Message, context: grpc.ServicerContext) -> Message:
                with answering(context, method, self._sinks):
                    return answer(request)

            return lanes.probes.unary(method, behaviour, parser(kind))

        infer = bounded_parser(pb.ModelInferRequest)
        handlers = {
            "ServerLive": question(self._server_live, pb.ServerLiveRequest),
            "ServerReady": question(self._server_ready, pb.ServerReadyRequest),
            "ModelReady": question(self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": question(self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": question(self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": question(self._model_config, pb.ModelConfigRequest),
            "ModelInfer": lanes.answers.unary("kserve.ModelInfer", self._model_infer, infer),
        }
        return Service(SERVICE, handlers, lanes)

    def _server_live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def _server_ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._registry.serving and not self._leaving())

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        info = self._model(request.name, request.version)
        return pb.ModelReadyResponse(ready=info.serving and not self._leaving())

    def _server_metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=__version__, extensions=EXTENSIONS)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        info = self._model(request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=info.name,
            versions=[info.revision] if info.revision else [],
            platform=NAME,
            inputs=[tensor(name=name, datatype=TEXT, shape=ANY_SIZE) for name in INPUTS],
            outputs=[tensor(name=name, datatype=NUMBER, shape=ANY_SIZE) for name in OUTPUTS],
        )

    def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        config = pb.ModelConfig(
            name=self._model(request.name, request.version).name,
            platform=NAME,
            input=[pb.ModelInput(name=each, data_type=pb.TYPE_STRING, dims=ANY_SIZE) for each in INPUTS],
            output=[pb.ModelOutput(name=each, data_type=pb.TYPE_FP32, dims=ANY_SIZE) for each in OUTPUTS],
        )
        return pb.ModelConfigResponse(config=config)

    def _model_infer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        with answering(context, "kserve.ModelInfer", self._sinks) as record:
            call = call_of(context)
            self._model(request.model_name, request.model_version)
            inference = tensors.inference_from(request)
            record.documents = len(inference.passages)
            results, summary = self._score(inference, call)
            record.summary = summary
            # A model that was not in memory has told its revision only now.
            _check_version(summary.model, summary.model_revision, request.model_version)
            response = tensors.inference_to(inference, results, summary)
            response.id = request.id
            return response

    def _model(self, name: str, version: str) -> ModelInfo:
        """Describes a model; raises UnknownModel for a name, or a version, that is not served."""
        info = self._registry.info(name)
        _check_version(info.name, info.revision, version)
        return info

    def _score(self, inference: Inference, call: Call) -> tuple[list[ScoredDocument], RerankSummary]:
        """Scores each passage against its query, one query after another; results in the passages' order."""
        found: dict[int, ScoredDocument] = {}
        summaries = []
        for request, places in inference.requests():
            response = self._rerank(request, places, call)
            found.update((places[result.index], result) for result in response.results)
            summaries.append(response.summary)
        return [found[place] for place in sorted(found)], _sum(summaries)

    def _rerank(self, request: RerankRequest, places: Sequence[int], call: Call) -> RerankResponse:
        """Answers one request; an InvalidRequest names the caller's tensors."""
        try:
            return self._reranker.rerank(request, call)
        except InvalidRequest as error:
            failure = tensors.in_own_names(error, places)
        raise failure


def _check_version(name: str, revision: str, version: str) -> None:
    """Raises UnknownModel for a version that is not the model's revision, as far as this is known."""
    if version and revision and version != revision:
        shown = version[: tensors.NAME_CHARACTERS]
        raise UnknownModel(
            f"model {name} has no version {shown!r}: leave it empty, or ask for {revision}",
            metadata={"model": name, "known_models": name},
        )


def _sum(summaries: Sequence[RerankSummary]) -> RerankSummary:
    """Adds up what requests to one model have cost."""
    usage = Usage._make(map(sum, zip(*[summary.usage for summary in summaries], strict=True)))
    truncated = any(summary.query_truncated for summary in summaries)
    return summaries[0]._replace(usage=usage, query_truncated=truncated)
