"""DashScope's native form: what is ranked under `input`, how under `parameters`."""

from __future__ import annotations

from functools import partial

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Ranked, Reply
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.types import RerankRequest


def decode(body: Body, _context: Context) -> Call:
    """Reads input and parameters."""
    given, parameters = fields.nested(body, "input"), fields.nested(body, "parameters")
    documents = fields.documents(given)
    request = RerankRequest(
        query=fields.query(given),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(parameters, "top_n", len(documents)),
        instruction=fields.first(parameters, ("instruct", "instruction"), fields.text),
    )
    return Call((request,), partial(encode, fields.flag(parameters, "return_documents")))


def encode(with_documents: bool, reply: Reply) -> Json:
    """Writes the results under `output`; a top-level `code` would mean an error."""
    return {
        "output": {"results": [_result(with_documents, result) for result in reply.results]},
        "usage": {"total_tokens": reply.input_tokens},
        "request_id": reply.request_id,
    }


def _result(with_documents: bool, result: Ranked) -> Json:
    encoded = {"index": result.index, "relevance_score": result.score}
    return {**encoded, "document": {"text": result.text}} if with_documents else encoded


def error(problem: Problem) -> tuple[int, Json]:
    """Adds the top-level code that DashScope's own client reads to the common body."""
    status, body = common_body(problem)
    return status, {**body, "code": problem.code}


DASHSCOPE = Dialect("dashscope", decode, error)
