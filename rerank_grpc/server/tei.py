"""tei.v1: the calls of Text Embeddings Inference that a reranker answers, by the default model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from time import monotonic
from typing import NamedTuple

import grpc

from rerank_grpc import __version__
from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.protocols import tei_pb2 as tei
from rerank_grpc.reranker import Reranker
from rerank_grpc.server.guard import Edge
from rerank_grpc.server.handler import answering, call_of
from rerank_grpc.server.lanes import Service, parser
from rerank_grpc.server.methods import CallLanes, texts_parser
from rerank_grpc.server.parts import FieldNames, Part, score_parts
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.types import (
    LABEL,
    Call,
    Document,
    RerankRequest,
    ScoredDocument,
    Truncation,
    Usage,
)

_Options = tei.RerankRequest | tei.RerankStreamRequest | tei.PredictPairRequest
_RIGHT, _LEFT = tei.TRUNCATION_DIRECTION_RIGHT, tei.TRUNCATION_DIRECTION_LEFT


def _other(field: str) -> str:
    return "texts" if field == "documents" else field


_OF_RERANK = FieldNames("query", "texts[{}]", _other)
_OF_STREAM = FieldNames("requests[{}].query", "requests[{}].text", _other)
_OF_PAIR = FieldNames("inputs[0]", "inputs[1]", _other)


class _Asked(NamedTuple):
    """Texts to be scored; `groups` has the places of those that share a query and a truncation."""

    texts: Sequence[str]
    groups: Mapping[tuple[str, Truncation], Sequence[int]]
    names: FieldNames

    @property
    def characters(self) -> int:
        """The characters of all pairs of a query and a text."""
        queries = sum([len(query) * len(places) for (query, _), places in self.groups.items()])
        return queries + sum(map(len, self.texts))

    def parts(self) -> Iterator[Part]:
        """Yields a request for each group."""
        for (query, truncation), places in self.groups.items():
            documents = [Document(self.texts[place]) for place in places]
            yield Part(RerankRequest(query, documents, truncation=truncation), places)


class TeiServicer:
    """Serves tei.v1; `max_calls` is the number of calls that the server admits at once."""

    def __init__(self, reranker: Reranker, edge: Edge, *, max_calls: int) -> None:
        self._reranker = reranker
        self._edge = edge
        self._max_calls = max_calls

    def Rerank(self, request: tei.RerankRequest, context: grpc.ServicerContext) -> tei.RerankResponse:
        """Scores all texts and returns them by descending score."""
        with answering(context, "tei.Rerank", self._edge) as record:
            texts = list(request.texts)
            groups = {(request.query, _truncation(request)): range(len(texts))}
            return self._rank(_Asked(texts, groups, _OF_RERANK), request, record, call_of(context))

    def RerankStream(
        self, requests: Sequence[tei.RerankStreamRequest], context: grpc.ServicerContext
    ) -> tei.RerankResponse:
        """Does the same with a text of each request; the first tells the form of the answer."""
        with answering(context, "tei.RerankStream", self._edge) as record:
            texts, first = [request.text for request in requests], requests[0]
            groups: dict[tuple[str, Truncation], list[int]] = {}
            for place, request in enumerate(requests):
                key = request.query or first.query, _truncation(request, f"requests[{place}].")
                groups.setdefault(key, []).append(place)
            return self._rank(_Asked(texts, groups, _OF_STREAM), first, record, call_of(context))

    def PredictPair(
        self, request: tei.PredictPairRequest, context: grpc.ServicerContext
    ) -> tei.PredictResponse:
        """Scores a pair of a query and a text."""
        return self._predict("tei.PredictPair", request, call_of(context), context)

    def PredictPairStream(
        self, requests: Iterable[tei.PredictPairRequest], context: grpc.ServicerContext
    ) -> Iterator[tei.PredictResponse]:
        """Scores pairs one after another, within one deadline; each is a call of its own in the log."""
        call = call_of(context)
        for request in requests:
            yield self._predict("tei.PredictPairStream", request, call, context)

    def Info(self, _request: tei.InfoRequest, context: grpc.ServicerContext) -> tei.InfoResponse:
        """Describes the default model and the limits."""
        with answering(context, "tei.Info", self._edge) as record:
            model = self._reranker.registry.info("")
            record.caller.require_model(model.name)
            return tei.InfoResponse(
                version=__version__,
                model_id=model.hub_id or model.name,
                model_sha=model.revision or None,
                model_dtype=model.dtype,
                model_type=tei.MODEL_TYPE_RERANKER,
                max_concurrent_requests=self._max_calls,
                max_input_length=model.max_tokens,
                max_batch_tokens=model.max_batch_tokens,
                max_client_batch_size=LIMITS.documents,
                tokenization_workers=1,
            )

    def _rank(
        self,
        asked: _Asked,
        options: tei.RerankRequest | tei.RerankStreamRequest,
        record: CallRecord,
        call: Call,
    ) -> tei.RerankResponse:
        results, metadata = self._score(asked, record, call)
        score, with_text = _score_of(options.raw_scores), options.return_text
        # Scores of 1.0 hide an order that logits have.
        results.sort(key=attrgetter(score, "logit"), reverse=True)
        ranks = [
            tei.Rank(
                index=result.index,
                score=getattr(result, score),
                text=asked.texts[result.index] if with_text else None,
            )
            for result in results
        ]
        return tei.RerankResponse(ranks=ranks, metadata=metadata)

    def _predict(
        self, method: str, request: tei.PredictPairRequest, call: Call, context: grpc.ServicerContext
    ) -> tei.PredictResponse:
        with answering(context, method, self._edge) as record:
            if len(request.inputs) != 2:
                text = f"must be a query and a text to score against it, not {len(request.inputs):,} texts"
                raise InvalidRequest.of("inputs", text)
            query, text = request.inputs
            asked = _Asked([text], {(query, _truncation(request)): [0]}, _OF_PAIR)
            (result,), metadata = self._score(asked, record, call)
            prediction = tei.Prediction(score=getattr(result, _score_of(request.raw_scores)), label=LABEL)
            return tei.PredictResponse(predictions=[prediction], metadata=metadata)

    def _score(
        self, asked: _Asked, record: CallRecord, call: Call
    ) -> tuple[list[ScoredDocument], tei.Metadata]:
        """Scores the texts, one group after another; returns a result for each, in the texts' order."""
        started = monotonic()
        record.documents = len(asked.texts)
        call.timelines, call.caller = record.timelines, record.caller
        results, record.summary = score_parts(self._reranker, asked.parts(), call, asked.names)
        return results, _metadata(asked.characters, record.summary.usage, monotonic() - started)


def tei_services(servicer: TeiServicer, lanes: CallLanes) -> list[Service]:
    """Makes the services of tei.v1, in the lanes of all calls."""
    pair = texts_parser(tei.PredictPairRequest, tei.PredictPairRequest.INPUTS_FIELD_NUMBER)
    ranked = texts_parser(tei.RerankRequest, tei.RerankRequest.TEXTS_FIELD_NUMBER)
    streamed = lanes.answers.gathering(
        "tei.RerankStream",
        servicer.RerankStream,
        parser(tei.RerankStreamRequest, LIMITS.message_bytes),
        most=LIMITS.documents,
        most_bytes=LIMITS.message_bytes,
    )
    handlers = {
        "Rerank": {
            "Rerank": lanes.answers.unary("tei.Rerank", servicer.Rerank, ranked),
            "RerankStream": streamed,
        },
        "Predict": {
            "PredictPair": lanes.answers.unary("tei.PredictPair", servicer.PredictPair, pair),
            "PredictPairStream": lanes.streams.conversation(
                "tei.PredictPairStream", servicer.PredictPairStream, pair
            ),
        },
        "Info": {"Info": lanes.probes.unary("tei.Info", servicer.Info, parser(tei.InfoRequest))},
    }
    names = {name: service.full_name for name, service in tei.DESCRIPTOR.services_by_name.items()}
    return [Service(names[name], methods, [], "tei.") for name, methods in handlers.items()]


def _truncation(options: _Options, path: str = "") -> Truncation:
    """Reads how a text that is too long is cut; without `truncate` it is refused.

    An error's field stands behind `path`.
    """
    direction = options.truncation_direction
    if direction not in (_RIGHT, _LEFT):
        raise InvalidRequest.of(f"{path}truncation_direction", f"{direction} is not a TruncationDirection")
    if not options.truncate:
        return Truncation.NONE
    return Truncation.START if direction == _LEFT else Truncation.END


def _score_of(raw: bool) -> str:
    return "logit" if raw else "relevance_score"


def _metadata(characters: int, usage: Usage, seconds: float) -> tei.Metadata:
    return tei.Metadata(
        compute_chars=characters,
        compute_tokens=usage.input_tokens,
        total_time_ns=_nanoseconds(seconds),
        tokenization_time_ns=_nanoseconds(usage.tokenization_seconds),
        queue_time_ns=_nanoseconds(usage.queue_seconds),
        inference_time_ns=_nanoseconds(usage.inference_seconds),
    )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
