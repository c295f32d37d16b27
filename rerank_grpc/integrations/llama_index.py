"""A node postprocessor for LlamaIndex's query engines and retrievers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from rerank_grpc.integrations.connection import Scored
from rerank_grpc.integrations.fields import RerankFields

_dispatcher = get_dispatcher(__name__)


class RerankGrpcPostprocessor(RerankFields, BaseNodePostprocessor):
    """Returns the nodes by descending relevance, with the relevance as their score.

        RerankGrpcPostprocessor(target="localhost:50051", top_n=3).postprocess_nodes(nodes, query_str="query")

    A node's text is scored with the metadata that its embedding would have, as by LlamaIndex's own
    rerankers. The nodes themselves stay as they are. A failed call raises a RerankError.
    """

    @classmethod
    def class_name(cls) -> str:
        """Returns the name under which LlamaIndex serializes it."""
        return "RerankGrpcPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        with self._reported(nodes, query) as found:
            results = self._connection.rerank(query.query_str, _texts(nodes), **self._arguments())
            found += _scored(nodes, results)
        return found

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        with self._reported(nodes, query) as found:
            results = await self._connection.arerank(query.query_str, _texts(nodes), **self._arguments())
            found += _scored(nodes, results)
        return found

    @contextmanager
    def _reported(self, nodes: list[NodeWithScore], query: QueryBundle) -> Iterator[list[NodeWithScore]]:
        """Reports a reranking to LlamaIndex's events and callbacks; yields a list for its results."""
        found: list[NodeWithScore] = []
        top_n, model = self.top_n or len(nodes), self.model or ""
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=model))
        asked: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=asked) as event:
            yield found
            event.on_end(payload={EventPayload.NODES: found})
        _dispatcher.event(ReRankEndEvent(nodes=found))


def _query(bundle: QueryBundle | None) -> QueryBundle:
    if bundle is None:
        raise ValueError("query_str: a reranker needs the query; give query_str or query_bundle")
    return bundle


def _texts(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [each.node.get_content(metadata_mode=MetadataMode.EMBED) for each in nodes]


def _scored(nodes: Sequence[NodeWithScore], results: Scored) -> list[NodeWithScore]:
    return [NodeWithScore(node=nodes[result.index].node, score=result.relevance_score) for result in results]
