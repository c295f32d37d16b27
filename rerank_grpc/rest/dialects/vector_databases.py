"""The dialects of vector databases: Weaviate's to its reranker-transformers, and Pinecone's inference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Names, Posted, Reply, with_documents
from rerank_grpc.types import Document, RerankRequest, Truncation


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
    """Tells an error as a text, since Weaviate cannot read an object there."""
    return problem.status, {"error": problem.message}


def _decode_pinecone(body: Body, posted: Posted) -> Decoded:
    body = fields.Nested(body)
    given = documents.read(body, "documents", documents.rank_fields(body))
    cut = fields.choice(body, "parameters.truncate", ("END", "START", "NONE"), "END")
    request = RerankRequest(
        query=fields.query(body),
        documents=given.scored,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n", len(given.scored)),
        truncation=Truncation[cut],
    )
    shown = given.objects if fields.flag(body, "return_documents", posted.with_documents) else ()
    return Decoded((request,), partial(_encode_pinecone, shown), names=given.names(body))


def _encode_pinecone(shown: Sequence[Json], reply: Reply) -> Json:
    data = [{"index": result.index, "score": result.relevance_score} for result in reply.results]
    return {
        "model": reply.model,
        "data": with_documents(data, "document", shown),
        "usage": {"rerank_units": 1},
    }


def _pinecone_error(problem: Problem) -> tuple[int, Json]:
    code = _PINECONE_CODES.get(problem.status, "UNKNOWN")
    return problem.status, {"error": {"code": code, "message": problem.message}, "status": problem.status}


_PINECONE_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

WEAVIATE = Dialect("weaviate", _decode_weaviate, _weaviate_error)
PINECONE = Dialect("pinecone", _decode_pinecone, _pinecone_error)
