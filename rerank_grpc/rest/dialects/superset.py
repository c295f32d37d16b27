"""The superset: one form that callers of Cohere, Jina, vLLM, Xinference, LocalAI … can all read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import orjson

from rerank_grpc.errors import InvalidRequest, UnsupportedOption
from rerank_grpc.limits import LIMITS, check_length
from rerank_grpc.rest.dialects import tei
from rerank_grpc.rest.forms import decoded, documents, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Names, Posted, Reply, Score
from rerank_grpc.rest.forms.documents import Documents
from rerank_grpc.types import RerankRequest, Truncation
from rerank_grpc.wire.messages import UINT32_MAX

# The longest instruction, each of its characters escaped. A longer text may hold millions of lists, which the
# limit of the body's own does not count.
MAX_KWARGS = 6 * LIMITS.characters + 1_000
# What refuses a text that is too long, and the side that is cut off one.
TRUNCATION = "truncation", "truncation_side"


def decode(body: Body, posted: Posted, literal: str = "", plain: bool = False) -> Decoded:
    """Reads the superset; some clients check a `literal`, or want documents as `plain` texts."""
    given = documents.read(body, "documents", documents.rank_fields(body))
    if body.get("texts") is not None:
        given.check_same(body, "texts")
    request, names = read_request(body, given, posted)
    asked = fields.first(body, "return_documents", "return_text")
    in_data = given.texts if fields.flag(body, asked, True) else []
    in_results: Sequence[Json] = ()
    if in_data and (posted.with_documents or body.get(asked) is not None):
        in_results = in_data if plain else given.objects
    if not literal:
        literal = "rerank" if body.get("raw_scores") is not None or posted.path == "/rerank" else "list"
    # Strict callers would refuse a field that they do not know: one that sends the bound knows it.
    calibrated = request.min_calibrated_score is not None
    encode = partial(_encode, literal, given.ids, score(body), calibrated, in_results, in_data)
    return Decoded((request,), encode, names=names)


def read_request(body: Body, given: Documents, posted: Posted) -> tuple[RerankRequest, Names]:
    """Reads all but the documents, and how the caller names it."""
    if body.get("relevant_spans") is not None:
        _check_spans(body)
    instruction, name = _instruction(body)
    chunks = fields.count(body, "max_chunks_per_doc")
    request = RerankRequest(
        query=fields.query(body),
        documents=given.scored,
        model=posted.model or fields.text(body, "model"),
        top_n=fields.top_n(body, fields.first(body, "top_n", "top_k"), len(given.scored)),
        min_relevance_score=fields.number(body, "min_relevance_score"),
        min_calibrated_score=fields.number(body, "min_calibrated_score"),
        instruction=instruction,
        max_tokens_per_document=token_limit(body),
        max_chunks_per_document=min(max(chunks, 1), LIMITS.chunks),
        truncation=_truncation(body),
    )
    return request, given.names(body, instruction=name)


def _check_spans(body: Body) -> None:
    """Raises UnsupportedOption for Cohere's spans: a reply without any would say that none is relevant."""
    modes = "enabled", "disabled"
    if fields.choice(fields.Nested(body), "relevant_spans.mode", modes, modes[0]) == modes[0]:
        raise UnsupportedOption.of("relevant_spans", "no model here gives spans: leave it out, or disable it")


def _truncation(body: Body) -> Truncation:
    """Reads what is cut off a text that is too long; with `texts`, TEI's words for it count too."""
    cuts, side = TRUNCATION
    if body.get("texts") is not None:
        cuts, side = fields.first(body, cuts, tei.TRUNCATION[0]), fields.first(body, side, tei.TRUNCATION[1])
    return fields.truncation(body, cuts, side)


def score(body: Body) -> Score:
    """Reads whether a score is the logit: either of two fields asks for it."""
    raw = fields.flag(body, "raw_scores") or not fields.flag(body, "use_activation", True)
    return decoded.LOGIT if raw else decoded.RELEVANCE


def token_limit(body: Body) -> int:
    """Reads how many tokens of a document count; vLLM's -1 means as many as fit."""
    name = fields.first(body, "max_tokens_per_doc", "truncate_prompt_tokens")
    if name == "truncate_prompt_tokens" and fields.whole(body, name) == -1:
        return 0
    return min(fields.count(body, name), UINT32_MAX)


def _instruction(body: Body) -> tuple[str, str]:
    """Reads the instruction and names its field; Xinference's clients put it into a JSON text."""
    name, kwargs = fields.first(body, "instruction", "instruct"), body.get("kwargs")
    if body.get(name) is None and kwargs is not None:
        body = fields.Nested({"kwargs": _parsed(kwargs) if isinstance(kwargs, str) else kwargs})
        name = fields.first(body, "kwargs.instruction", "kwargs.instruct")
    return fields.text(body, name), name


def _parsed(kwargs: str) -> Json:
    check_length("kwargs", kwargs, MAX_KWARGS)
    try:
        return orjson.loads(kwargs)
    except orjson.JSONDecodeError:
        raise InvalidRequest.of("kwargs", "is not JSON") from None


def _results(ids: Mapping[int, Json], score: Score, calibrated: bool, reply: Reply) -> list[dict[str, Json]]:
    """Writes results; an id is there where the caller gave one, `truncated` where it is true."""
    results = [{"index": result.index, "relevance_score": score(result)} for result in reply.results]
    for written, result in zip(results, reply.results, strict=True):
        if result.index in ids:
            written["id"] = ids[result.index]
        if result.truncated:
            written["truncated"] = True
        if calibrated and result.calibrated_score is not None:  # of an older server it is
            written["calibrated_score"] = result.calibrated_score
    return results


def _encode(
    literal: str,
    ids: Mapping[int, Json],
    score: Score,
    calibrated: bool,
    in_results: Sequence[Json],
    in_data: Sequence[Json],
    reply: Reply,
) -> Json:
    """Writes `results`, the older list `data` with the same scores, and the documents asked for."""
    results = _results(ids, score, calibrated, reply)
    data = [{"index": each["index"], "score": each["relevance_score"], **each} for each in results]
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
