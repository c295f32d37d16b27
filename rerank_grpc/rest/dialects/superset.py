"""The superset: one form that callers of Cohere, Jina, vLLM, Xinference, LocalAI … can all read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import orjson

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.forms import decoded, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Posted, Reply, Score
from rerank_grpc.types import Document, RerankRequest, Truncation
from rerank_grpc.wire.messages import UINT32_MAX


def decode(body: Body, posted: Posted, literal: str = "", plain: bool = False) -> Decoded:
    """Reads the superset; some clients check a `literal`, or want documents as `plain` texts."""
    texts = fields.texts(body, "documents")
    request = _request(body, texts)
    shown = texts if fields.flag(body, "return_documents", True) else []
    in_results: Sequence[Json] = ()
    if body.get("return_documents") is not None:
        in_results = shown if plain else [{"text": text} for text in shown]
    if not literal:
        literal = "rerank" if body.get("raw_scores") is not None or posted.path == "/rerank" else "list"
    return Decoded((request,), partial(_encode, literal, score(body), in_results, shown))


def _request(body: Body, texts: Sequence[str]) -> RerankRequest:
    chunks = fields.count(body, "max_chunks_per_doc")
    return RerankRequest(
        query=fields.query(body),
        documents=tuple(map(Document, texts)),
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, fields.first(body, "top_n", "top_k"), len(texts)),
        instruction=_instruction(body),
        max_tokens_per_document=token_limit(body),
        max_chunks_per_document=min(max(chunks, 1), LIMITS.chunks),
        truncation=Truncation.END if fields.flag(body, "truncation", True) else Truncation.NONE,
    )


def score(body: Body) -> Score:
    """Reads whether a score is the logit: either of two fields asks for it."""
    raw = fields.flag(body, "raw_scores") or not fields.flag(body, "use_activation", True)
    return decoded.LOGIT if raw else decoded.RELEVANCE


def token_limit(body: Body) -> int:
    """Reads how many tokens of a document count; vLLM's -1 means as many as fit."""
    if body.get("truncate_prompt_tokens") == -1:
        return fields.count(body, "max_tokens_per_doc")
    name = fields.first(body, "max_tokens_per_doc", "truncate_prompt_tokens")
    return min(fields.count(body, name), UINT32_MAX)


def _instruction(body: Body) -> str:
    """Reads the instruction, which Xinference's clients put into a JSON text of their own."""
    kwargs = body.get("kwargs")
    try:
        kwargs = orjson.loads(kwargs) if isinstance(kwargs, str) else kwargs
    except orjson.JSONDecodeError:
        raise InvalidRequest.of("kwargs", "is not JSON") from None
    if isinstance(kwargs, dict):
        body = {**kwargs, **{name: value for name, value in body.items() if value is not None}}
    return fields.text(body, fields.first(body, "instruction", "instruct"))


def _encode(
    literal: str, score: Score, in_results: Sequence[Json], in_data: Sequence[Json], reply: Reply
) -> Json:
    """Writes `results`, the older list `data` with the same scores, and the documents asked for."""
    results = [{"index": result.index, "relevance_score": score(result)} for result in reply.results]
    data = [{"index": result["index"], "score": result["relevance_score"], **result} for result in results]
    return {
        "id": reply.request_id,
        "object": literal,
        "created": int(time.time()),
        "model": reply.model,
        # A document is left out and not null: two clients crash on null.
        "results": decoded.with_documents(results, "document", in_results),
        "usage": decoded.usage(reply),
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1, "input_tokens": reply.input_tokens},
            "tokens": {"input_tokens": reply.input_tokens, "output_tokens": 0},
        },
        "data": decoded.with_documents(data, "document", in_data),
    }


SUPERSET = Dialect("superset", decode)
