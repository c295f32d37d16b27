"""inference.GRPCInferenceService: ModelInfer through the reranker, and what describes server and models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from rerank_grpc import __version__
from rerank_grpc.callers import Caller
from rerank_grpc.errors import UnknownModel
from rerank_grpc.protocols import inference_pb2 as pb
from rerank_grpc.reranker import Reranker
from rerank_grpc.server.guard import Edge
from rerank_grpc.server.handler import answering, call_of
from rerank_grpc.server.kserve import tensors
from rerank_grpc.server.kserve.bounds import bounded_parser
from rerank_grpc.server.kserve.tensors import INPUTS, NUMBER, OUTPUTS, TEXT
from rerank_grpc.server.lanes import Handler, Service, parser
from rerank_grpc.server.methods import CallLanes
from rerank_grpc.server.parts import score_parts
from rerank_grpc.types import ModelInfo

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
NAME = "rerank-grpc"
# Of Triton's additions to the protocol.
EXTENSIONS = ("model_configuration",)
ANY_SIZE = (-1,)


class KServeServicer:
    """Serves inference.GRPCInferenceService; `leaving` tells whether probes should send calls elsewhere."""

    def __init__(self, reranker: Reranker, leaving: Callable[[], bool], edge: Edge) -> None:
        self._reranker = reranker
        self._registry = reranker.registry
        self._leaving = leaving
        self._edge = edge

    def ServerLive(self, _request: pb.ServerLiveRequest, _caller: Caller) -> pb.ServerLiveResponse:
        """Tells that the server answers."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, _request: pb.ServerReadyRequest, _caller: Caller) -> pb.ServerReadyResponse:
        """Tells whether a call of the default model would be answered."""
        return pb.ServerReadyResponse(ready=self._registry.serving and not self._leaving())

    def ModelReady(self, request: pb.ModelReadyRequest, caller: Caller) -> pb.ModelReadyResponse:
        """Tells whether a call of one model would be answered."""
        info = self._model(request.name, request.version, caller)
        return pb.ModelReadyResponse(ready=info.serving and not self._leaving())

    def ServerMetadata(
        self, _request: pb.ServerMetadataRequest, _caller: Caller
    ) -> pb.ServerMetadataResponse:
        """Describes the server."""
        return pb.ServerMetadataResponse(name=NAME, version=__version__, extensions=EXTENSIONS)

    def ModelMetadata(self, request: pb.ModelMetadataRequest, caller: Caller) -> pb.ModelMetadataResponse:
        """Describes a model's tensors."""
        info = self._model(request.name, request.version, caller)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=info.name,
            versions=[info.revision] if info.revision else [],
            platform=NAME,
            inputs=[tensor(name=name, datatype=TEXT, shape=ANY_SIZE) for name in INPUTS],
            outputs=[tensor(name=name, datatype=NUMBER, shape=ANY_SIZE) for name in OUTPUTS],
        )

    def ModelConfig(self, request: pb.ModelConfigRequest, caller: Caller) -> pb.ModelConfigResponse:
        """Describes them in Triton's form."""
        config = pb.ModelConfig(
            name=self._model(request.name, request.version, caller).name,
            platform=NAME,
            input=[pb.ModelInput(name=each, data_type=pb.TYPE_STRING, dims=ANY_SIZE) for each in INPUTS],
            output=[pb.ModelOutput(name=each, data_type=pb.TYPE_FP32, dims=ANY_SIZE) for each in OUTPUTS],
        )
        return pb.ModelConfigResponse(config=config)

    def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        """Scores passages; answers in their order."""
        with answering(context, "kserve.ModelInfer", self._edge) as record:
            call = call_of(context, record)
            self._model(request.model_name, request.model_version, call.caller)
            inference = tensors.inference_from(request)
            record.documents = len(inference.passages)
            results, summary = score_parts(self._reranker, inference.parts(), call, tensors.NAMES)
            record.summary = summary
            # A model that was not in memory has told its revision only now.
            _check_version(summary.model, summary.model_revision, request.model_version)
            response = tensors.inference_to(inference, results, summary)
            response.id = request.id
            return response

    def _model(self, name: str, version: str, caller: Caller) -> ModelInfo:
        """Describes a model; raises UnknownModel for a name, or a version, that is not served.

        Raises PermissionDenied for a model that is not the caller's.
        """
        caller.require_model(self._registry.configured_name(name))
        info = self._registry.info(name)
        _check_version(info.name, info.revision, version)
        return info


def kserve_service(servicer: KServeServicer, lanes: CallLanes, edge: Edge) -> Service:
    """Makes GRPCInferenceService, in the lanes of all calls."""

    def question(answer: Callable[[Any, Caller], Message], kind: type[Message]) -> Handler:
        method = f"kserve.{answer.__name__}"

        def behaviour(request: Message, context: grpc.ServicerContext) -> Message:
            with answering(context, method, edge) as record:
                return answer(request, record.caller)

        return lanes.probes.unary(method, behaviour, parser(kind))

    infer = bounded_parser(pb.ModelInferRequest)
    handlers = {
        "ServerLive": question(servicer.ServerLive, pb.ServerLiveRequest),
        "ServerReady": question(servicer.ServerReady, pb.ServerReadyRequest),
        "ModelReady": question(servicer.ModelReady, pb.ModelReadyRequest),
        "ServerMetadata": question(servicer.ServerMetadata, pb.ServerMetadataRequest),
        "ModelMetadata": question(servicer.ModelMetadata, pb.ModelMetadataRequest),
        "ModelConfig": question(servicer.ModelConfig, pb.ModelConfigRequest),
        "ModelInfer": lanes.answers.unary("kserve.ModelInfer", servicer.ModelInfer, infer),
    }
    return Service(SERVICE, handlers, [], "kserve.")


def _check_version(name: str, revision: str, version: str) -> None:
    """Raises UnknownModel for a version that is not the model's revision, as far as this is known."""
    if version and revision and version != revision:
        shown = version[: tensors.NAME_CHARACTERS]
        raise UnknownModel(
            f"model {name} has no version {shown!r}: leave it empty, or ask for {revision}",
            metadata={"model": name, "known_models": name},
        )
