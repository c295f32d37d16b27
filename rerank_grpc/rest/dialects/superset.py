"""The superset: one form that Cohere, Jina, vLLM, Xinference, LocalAI, Together … callers can all read.

Its flavours differ in what one client each insists on: Voyage's in a literal,
Infinity's and FastGPT's in the form of documents and errors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import orjson

from rerank_grpc.errors import InvalidRequest, Reason
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Ranked, Reply
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.types import RerankRequest, Truncation


@dataclass(frozen=True, slots=True)
class Form:
    """How one reply is encoded."""

    object: str
    results_with_documents: bool
    data: bool
    data_with_documents: bool
    plain_documents: bool = False


def decode(body: Body, context: Context) -> Call:
    """Reads the superset."""
    raw = fields.has(body, "raw_scores")
    return _call(body, context, "rerank" if raw or context.path == "/rerank" else "list")


def decode_voyage(body: Body, context: Context) -> Call:
    """Reads Voyage's flavour; its clients check the literal "list" and read `data`."""
    return _call(body, context, "list", data=True)


def decode_infinity(body: Body, context: Context) -> Call:
    """Reads Infinity's flavour; its client raises on "list" and wants documents as texts."""
    return _call(body, context, "rerank", plain_documents=True)


def _call(
    body: Body, context: Context, name: str, *, data: bool = False, plain_documents: bool = False
) -> Call:
    request = request_of(body)
    form = Form(
        object=name,
        results_with_documents=fields.flag(body, "return_documents"),
        data=data or context.with_data,
        data_with_documents=fields.flag(body, "return_documents", default=True),
        plain_documents=plain_documents,
    )
    return Call((request,), partial(encode, form), raw_scores=wants_raw_scores(body))


def request_of(body: Body) -> RerankRequest:
    """Reads what is to be scored and how."""
    documents = fields.documents(body)
    chunks = fields.count(body, "max_chunks_per_doc")
    return RerankRequest(
        query=fields.query(body),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n" if fields.has(body, "top_n") else "top_k", len(documents)),
        instruction=_instruction(body),
        max_tokens_per_document=token_limit(body),
        max_chunks_per_document=min(max(chunks, 1), LIMITS.chunks),
        truncation=Truncation.END if fields.flag(body, "truncation", True) else Truncation.NONE,
    )


def wants_raw_scores(body: Body) -> bool:
    """Tells whether logits are wanted: either of two words for it."""
    return fields.flag(body, "raw_scores") or not fields.flag(body, "use_activation", True)


def token_limit(body: Body) -> int:
    """Reads how many tokens of a document count; vLLM's -1 means as many as fit."""
    if body.get("truncate_prompt_tokens") == -1:
        return fields.count(body, "max_tokens_per_doc")
    tokens = fields.first(body, ("max_tokens_per_doc", "truncate_prompt_tokens"), fields.count)
    return min(tokens, 2**32 - 1)


def _instruction(body: Body) -> str:
    """Reads the instruction, which Xinference's clients put into a JSON text of their own."""
    if fields.has(body, "kwargs"):
        kwargs = body["kwargs"]
        try:
            kwargs = orjson.loads(kwargs) if isinstance(kwargs, str) else kwargs
        except orjson.JSONDecodeError:
            raise InvalidRequest.of("kwargs", "is not JSON") from None
        if isinstance(kwargs, dict):
            body = {**kwargs, **{name: value for name, value in body.items() if value is not None}}
    return fields.first(body, ("instruction", "instruct"), fields.text)


def encode(form: Form, reply: Reply) -> Json:
    """Writes the superset."""
    encoded = {
        "id": reply.request_id,
        "object": form.object,
        "created": int(time.time()),
        "model": reply.model,
        "results": [_result(form, result) for result in reply.results],
        "usage": usage(reply),
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1, "input_tokens": reply.input_tokens},
            "tokens": {"input_tokens": reply.input_tokens, "output_tokens": 0},
        },
    }
    if form.data:
        encoded["data"] = [_datum(form, result) for result in reply.results]
    return encoded


def usage(reply: Reply) -> Json:
    """Writes what the call cost, as OpenAI names it."""
    tokens = reply.input_tokens
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def _result(form: Form, result: Ranked) -> Json:
    encoded: dict[str, Json] = {"index": result.index, "relevance_score": result.score}
    # Left out and not null: two clients crash on null.
    if form.results_with_documents:
        encoded["document"] = result.text if form.plain_documents else {"text": result.text}
    return encoded


def _datum(form: Form, result: Ranked) -> Json:
    encoded = {"index": result.index, "score": result.score, "relevance_score": result.score}
    return {**encoded, "document": result.text} if form.data_with_documents else encoded


def fastgpt_error(problem: Problem) -> tuple[int, Json]:
    """Says access errors as FastGPT's bge-rerank app does: 403 without a token, 401 with a wrong one."""
    if problem.reason is Reason.UNAUTHENTICATED:
        missing = not problem.token_sent
        return (403, {"detail": "Not authenticated"}) if missing else (401, {"detail": "Invalid token"})
    return common_body(problem)


def decode_fastgpt(body: Body, context: Context) -> Call:
    """Reads the superset; no documents are no error, but no results."""
    if body.get("documents") == []:
        return Call((), lambda _reply: {"results": []})
    return decode(body, context)


SUPERSET = Dialect("superset", decode)
VOYAGE = Dialect("voyage", decode_voyage)
INFINITY = Dialect("infinity", decode_infinity)
FASTGPT = Dialect("fastgpt", decode_fastgpt, fastgpt_error)
