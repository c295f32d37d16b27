"""DashScope's native form: the texts under `input`, the options under `parameters`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Posted, Reply, with_documents
from rerank_grpc.types import RerankRequest


def _decode(body: Body, _posted: Posted) -> Decoded:
    body = fields.Nested(body)
    given = documents.read(body, "input.documents")
    instruction = fields.first(body, "parameters.instruct", "parameters.instruction")
    request = RerankRequest(
        query=fields.query(body, "input.query"),
        documents=given.scored,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "parameters.top_n", len(given.scored)),
        instruction=fields.text(body, instruction),
    )
    shown = given.texts if fields.flag(body, "parameters.return_documents") else ()
    encode = partial(_encode, [{"text": text} for text in shown])
    return Decoded((request,), encode, names=given.names(body, "input.query", instruction))


def _encode(shown: Sequence[Json], reply: Reply) -> Json:
    results = [{"index": result.index, "relevance_score": result.relevance_score} for result in reply.results]
    # A `code` beside the output would mean an error.
    return {
        "output": {"results": with_documents(results, "document", shown)},
        "usage": {"total_tokens": reply.input_tokens},
        "request_id": reply.request_id,
    }


def _error(problem: Problem) -> tuple[int, Json]:
    """Adds the code that DashScope's own client reads to the common body."""
    status, body = common_body(problem)
    return status, {**body, "code": problem.code}


DASHSCOPE = Dialect("dashscope", _decode, _error)
