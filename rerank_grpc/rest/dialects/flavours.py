"""Flavours of the superset: what some of its callers check, or want otherwise."""

from __future__ import annotations

from functools import partial

from rerank_grpc.rest.dialects.superset import decode
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Posted


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


def _openrouter_error(problem: Problem) -> tuple[int, Json]:
    """Tells the HTTP status in the place of the code: OpenRouter's SDKs read nothing but a number there."""
    status, body = common_body(problem)
    return status, {**body, "error": {**body["error"], "code": status}}


# Voyage's clients check the literal "list"; Infinity's raises on it, and wants documents as texts.
VOYAGE = Dialect("voyage", partial(decode, literal="list"))
INFINITY = Dialect("infinity", partial(decode, literal="rerank", plain=True))
FASTGPT = Dialect("fastgpt", _decode_fastgpt, _fastgpt_error)
OPENROUTER = Dialect("openrouter", decode, _openrouter_error)
