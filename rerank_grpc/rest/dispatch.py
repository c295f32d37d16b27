"""Which dialect a body is in: by its fields, unless a path prefix forces one."""

from __future__ import annotations

from collections.abc import Callable

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects.base import Body, Dialect
from rerank_grpc.rest.dialects.batch import BATCH
from rerank_grpc.rest.dialects.dashscope import DASHSCOPE
from rerank_grpc.rest.dialects.fields import has
from rerank_grpc.rest.dialects.mixedbread import MIXEDBREAD
from rerank_grpc.rest.dialects.nim import NIM
from rerank_grpc.rest.dialects.superset import FASTGPT, INFINITY, SUPERSET, VOYAGE
from rerank_grpc.rest.dialects.tei import PREDICT, RERANK
from rerank_grpc.rest.dialects.text_pairs import TEXT_PAIRS
from rerank_grpc.rest.dialects.vllm import SCORE

# The first that holds wins.
RULES: tuple[tuple[Callable[[Body], bool], Dialect], ...] = (
    (lambda body: has(body, "passages"), NIM),
    (lambda body: has(body, "text_pairs"), TEXT_PAIRS),
    (lambda body: has(body, "texts"), RERANK),
    (lambda body: has(body, "inputs"), PREDICT),
    (lambda body: isinstance(body.get("input"), dict), DASHSCOPE),
    (lambda body: isinstance(body.get("input"), list), MIXEDBREAD),
    (lambda body: has(body, "text_1") or has(body, "queries") or has(body, "data_1"), SCORE),
    (lambda body: has(body, "documents", "batch_size"), BATCH),
    (lambda body: has(body, "documents", "top_k") or has(body, "documents", "truncation"), VOYAGE),
    (lambda body: has(body, "documents", "raw_scores"), INFINITY),
)

# A prefix forces one of its dialects: the one that the body shows, else the last.
PREFIXES: dict[str, tuple[Dialect, ...]] = {
    "batch": (BATCH,),
    "cohere": (SUPERSET,),
    "dashscope": (DASHSCOPE, SUPERSET),
    "fastgpt": (FASTGPT,),
    "infinity": (INFINITY,),
    "jina": (SUPERSET,),
    "localai": (SUPERSET,),
    "mixedbread": (MIXEDBREAD,),
    "nim": (NIM,),
    "nvidia": (NIM,),
    "siliconflow": (SUPERSET,),
    "superset": (SUPERSET,),
    "tei": (PREDICT, RERANK),
    "text-pairs": (TEXT_PAIRS,),
    "together": (SUPERSET,),
    "vllm": (SCORE, SUPERSET),
    "voyage": (VOYAGE,),
    "xinference": (SUPERSET,),
}

# What a body that shows nothing is taken for, where the path says it.
BY_PATH = {
    "/predict": PREDICT,
    "/bge-reranker-base/post": TEXT_PAIRS,
    "/api/v1/services/rerank/text-rerank/text-rerank": DASHSCOPE,
}

# Where rerank calls may be posted; each takes every dialect.
PATHS = (
    "/",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/v1/rerank",
    "/v1/v2/rerank",
    "/reranking",
    "/v1/reranking",
    "/v1/reranks",
    "/compatible-api/v1/reranks",
    "/compatible-mode/v1/reranks",
    "/v1/ranking",
    "/v1/retrieval/{model:path}/reranking",
    "/api/v1/services/rerank/text-rerank/text-rerank",
    "/score",
    "/v1/score",
    "/invocations",
    "/predict",
    "/bge-reranker-base/post",
)


def presumed(prefix: str, path: str, fastgpt: bool = False) -> Dialect:
    """Tells the dialect of a call before its body is read, for the errors that come sooner."""
    if prefix:
        return PREFIXES[prefix][-1]
    return BY_PATH.get(path, FASTGPT if fastgpt else SUPERSET)


def dialect_of(body: Body, prefix: str, path: str, fastgpt: bool = False) -> Dialect:
    """Tells a body's dialect; raises InvalidRequest for one in two at once."""
    if has(body, "texts", "documents"):
        raise InvalidRequest.of("texts", "not together with documents")
    allowed = PREFIXES.get(prefix)
    for applies, dialect in RULES:
        if (allowed is None or dialect in allowed) and applies(body):
            return dialect
    # Documents say more than the path does.
    return presumed(prefix, "" if has(body, "documents") else path, fastgpt)
