"""The superset: one form that Cohere, Jina, vLLM, Xinference, LocalAI, Together … callers can all read.

Its flavours differ in the demands of one client each: Voyage's in a literal,
Infinity's and FastGPT's in the form of documents and errors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from rerank_grpc.errors import InvalidRequest, Reason
from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import (
    LOGIT,
    RELEVANCE,
    Body,
    Decoded,
    Dialect,
    Json,
    Reply,
    Score,
    usage,
)
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.types import Document, RerankRequest, Truncation

_UINT32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Form:
    """How one reply is encoded; the flags tell which of its two lists carries documents."""

    object: str
    documents: Sequence[Document]
    in_results: bool
    in_data: bool
    plain: bool
    score: Score


def decode(body: Body, path: str) -> Decoded:
    """Reads the superset."""
    raw = body.get("raw_scores") is not None
    return _decode(body, "rerank" if raw or path == "/rerank" else "list")


def decode_voyage(body: Body, _path: str) -> Decoded:
    """Reads Voyage's flavour; its clients check the literal "list"."""
    return _decode(body, "list")


def decode_infinity(body: Body, _path: str) -> Decoded:
    """Reads Infinity's flavour; its client raises on "list" and wants documents as texts."""
    return _decode(body, "rerank", plain=True)


def decode_fastgpt(body: Body, path: str) -> Decoded:
    """Reads the superset; no documents are no error, but no results."""
    if body.get("documents") == []:
        return Decoded((), lambda _reply: {"results": []})
    return decode(body, path)


def _decode(body: Body, name: str, *, plain: bool = False) -> Decoded:
    documents = fields.documents(body)
    chunks = fields.count(body, "max_chunks_per_doc")
    request = RerankRequest(
        query=fields.query(body),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n" if body.get("top_n") is not None else "top_k", len(documents)),
        instruction=_instruction(body),
        max_tokens_per_document=token_limit(body),
        max_chunks_per_document=min(max(chunks, 1), fields.LIMITS.chunks),
        truncation=Truncation.END if fields.flag(body, "truncation", True) else Truncation.NONE,
    )
    form = Form(
        object=name,
        documents=documents,
        in_results=fields.flag(body, "return_documents"),
        in_data=fields.flag(body, "return_documents", default=True),
        plain=plain,
        score=score(body),
    )
    return Decoded((request,), partial(encode, form))


def score(body: Body) -> Score:
    """Reads whether a score is the logit: either of two fields asks for it."""
    raw = fields.flag(body, "raw_scores") or not fields.flag(body, "use_activation", True)
    return LOGIT if raw else RELEVANCE


def token_limit(body: Body) -> int:
    """Reads how many tokens of a document count; vLLM's -1 means as many as fit."""
    if body.get("truncate_prompt_tokens") == -1:
        return fields.count(body, "max_tokens_per_doc")
    tokens = fields.first(body, ("max_tokens_per_doc", "truncate_prompt_tokens"), fields.count)
    return min(tokens, _UINT32_MAX)


def _instruction(body: Body) -> str:
    """Reads the instruction, which Xinference's clients put into a JSON text of their own."""
    kwargs = body.get("kwargs")
    try:
        kwargs = orjson.loads(kwargs) if isinstance(kwargs, str) else kwargs
    except orjson.JSONDecodeError:
        raise InvalidRequest.of("kwargs", "is not JSON") from None
    if isinstance(kwargs, dict):
        body = {**kwargs, **{name: value for name, value in body.items() if value is not None}}
    return fields.first(body, ("instruction", "instruct"), fields.text)


def encode(form: Form, reply: Reply) -> Json:
    """Writes the superset: `results`, and the older list `data` with the same scores."""
    results, data = [], []
    for result in reply.results:
        index, score, text = result.index, form.score(result), form.documents[result.index].text
        encoded: dict[str, Json] = {"index": index, "relevance_score": score}
        # Left out and not null: two clients crash on null.
        if form.in_results:
            encoded["document"] = text if form.plain else {"text": text}
        results.append(encoded)
        datum: dict[str, Json] = {"index": index, "score": score, "relevance_score": score}
        if form.in_data:
            datum["document"] = text
        data.append(datum)
    return {
        "id": reply.request_id,
        "object": form.object,
        "created": int(time.time()),
        "model": reply.model,
        "results": results,
        "usage": usage(reply),
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1, "input_tokens": reply.input_tokens},
            "tokens": {"input_tokens": reply.input_tokens, "output_tokens": 0},
        },
        "data": data,
    }


def fastgpt_error(problem: Problem) -> tuple[int, Json]:
    """Tells access errors as FastGPT's bge-rerank app does: 403 without a token, 401 with a wrong one."""
    if problem.reason is Reason.UNAUTHENTICATED:
        missing = not problem.token_sent
        return (403, {"detail": "Not authenticated"}) if missing else (401, {"detail": "Invalid token"})
    return common_body(problem)


SUPERSET = Dialect("superset", decode)
VOYAGE = Dialect("voyage", decode_voyage)
INFINITY = Dialect("infinity", decode_infinity)
FASTGPT = Dialect("fastgpt", decode_fastgpt, fastgpt_error)
