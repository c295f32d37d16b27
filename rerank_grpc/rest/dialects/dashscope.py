"""DashScope's native form: the texts under `input`, the options under `parameters`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply, with_documents
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.types import RerankRequest


def decode(body: Body, _path: str) -> Decoded:
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
    shown = documents if fields.flag(parameters, "return_documents") else ()
    return Decoded((request,), partial(encode, [{"text": document.text} for document in shown]))


def encode(shown: Sequence[Json], reply: Reply) -> Json:
    """Writes the results under `output`; a top-level `code` would mean an error."""
    results = [{"index": result.index, "relevance_score": result.relevance_score} for result in reply.results]
    return {
        "output": {"results": with_documents(results, "document", shown)},
        "usage": {"total_tokens": reply.input_tokens},
        "request_id": reply.request_id,
    }


def error(problem: Problem) -> tuple[int, Json]:
    """Adds the top-level code that DashScope's own client reads to the common body."""
    status, body = common_body(problem)
    return status, {**body, "code": problem.code}


DASHSCOPE = Dialect("dashscope", decode, error)
