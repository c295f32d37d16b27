"""What vector databases speak: Weaviate to its reranker-transformers, and Pinecone's inference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Names, Posted, Reply
from rerank_grpc.types import Document, RerankRequest


def _decode_weaviate(body: Body, _posted: Posted) -> Decoded:
    """Reads documents, beside which `property` is empty; an older caller sends its one document there."""
    query, text = fields.query(body), fields.text(body, "property")
    model = fields.text(body, "model")
    if text and body.get("documents") is None:
        request = RerankRequest(query, (Document(text),), model)
        encode, names = partial(_encode_property, query, text), Names(document="property".format)
        return Decoded((request,), encode, names=names)
    given = documents.read(body, "documents")
    request = RerankRequest(query, given.scored, model)
    return Decoded((request,), partial(_encode_weaviate, query, given.texts), names=given.names(body))


def _encode_weaviate(query: str, texts: Sequence[str], reply: Reply) -> Json:
    scores = {result.index: result.relevance_score for result in reply.results}
    listed = [{"document": text, "score": scores[index]} for index, text in enumerate(texts)]
    return {"query": query, "scores": listed}


def _encode_property(query: str, text: str, reply: Reply) -> Json:
    return {"query": query, "property": text, "score": reply.results[0].relevance_score}


def _weaviate_error(problem: Problem) -> tuple[int, Json]:
    """Tells an error as a text: Weaviate cannot read an object there."""
    return problem.status, {"error": problem.message}


WEAVIATE = Dialect("weaviate", _decode_weaviate, _weaviate_error)
