"""Flavours of the superset: what some of its callers check, or want otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import superset
from rerank_grpc.rest.dialects.superset import decode
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import (
    Body,
    Decoded,
    Dialect,
    Json,
    Posted,
    Reply,
    Score,
    with_documents,
)


def _decode_fastgpt(body: Body, posted: Posted) -> Decoded:
    """Reads the superset; no documents are no error, but no results."""
    if body.get("documents") == []:
        return Decoded((), lambda _reply: {"results": []})
    return decode(body, posted)


def _fastgpt_error(problem: Problem) -> tuple[int, Json]:
    """Tells access errors as FastGPT's bge-rerank app does."""
    if problem.status != 401:
        return common_body(problem)
    return (
        (401, {"detail": "Invalid token"}) if problem.token_sent else (403, {"detail": "Not authenticated"})
    )


def _decode_sglang(body: Body, posted: Posted) -> Decoded:
    """Reads the superset for a caller that wants a bare list."""
    given = documents.read(body, "documents", documents.rank_fields(body))
    request, names = superset.read_request(body, given, posted)
    shown = given.texts if fields.flag(body, "return_documents", posted.with_documents) else ()
    return Decoded((request,), partial(_encode_sglang, superset.score(body), shown), names=names)


def _encode_sglang(score: Score, shown: Sequence[str], reply: Reply) -> Json:
    results = [
        {
            "score": score(result),
            "index": result.index,
            "meta_info": {"id": reply.request_id, "prompt_tokens": result.tokens},
        }
        for result in reply.results
    ]
    return with_documents(results, "document", shown)


def _sglang_error(problem: Problem) -> tuple[int, Json]:
    kind = "BadRequestError" if problem.status < 500 else "InternalServerError"
    status, message = problem.status, problem.message
    return status, {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def _openrouter_error(problem: Problem) -> tuple[int, Json]:
    """Tells the HTTP status in the place of the code: OpenRouter's SDKs read nothing but a number there."""
    status, body = common_body(problem)
    return status, {**body, "error": {**body["error"], "code": status}}


# Voyage's clients check the literal "list"; Infinity's raises on it, and wants documents as texts,
# as Dify's plugin for Ollama does.
VOYAGE = Dialect("voyage", partial(decode, literal="list"))
INFINITY = Dialect("infinity", partial(decode, literal="rerank", plain=True))
OLLAMA = Dialect("ollama", partial(decode, plain=True))
FASTGPT = Dialect("fastgpt", _decode_fastgpt, _fastgpt_error)
SGLANG = Dialect("sglang", _decode_sglang, _sglang_error)
OPENROUTER = Dialect("openrouter", decode, _openrouter_error)
