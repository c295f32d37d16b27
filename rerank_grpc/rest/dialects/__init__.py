"""The dialects, a file each, and which one a body is in: by its fields, unless a path prefix forces one."""

from __future__ import annotations

from rerank_grpc.rest.dialects.dashscope import DASHSCOPE
from rerank_grpc.rest.dialects.flavours import FASTGPT, INFINITY, OPENROUTER, VOYAGE
from rerank_grpc.rest.dialects.legacy import BATCH, TEXT_PAIRS
from rerank_grpc.rest.dialects.mixedbread import MIXEDBREAD
from rerank_grpc.rest.dialects.nim import NIM
from rerank_grpc.rest.dialects.score import SCORE
from rerank_grpc.rest.dialects.superset import SUPERSET
from rerank_grpc.rest.dialects.tei import PREDICT, RERANK
from rerank_grpc.rest.forms.decoded import Body, Dialect

# The fields that show a dialect when all have a value, and the type of `input` where that counts.
# The first rule that holds wins.
RULES: tuple[tuple[set[str], Dialect, type], ...] = (
    ({"passages"}, NIM, object),
    ({"text_pairs"}, TEXT_PAIRS, object),
    ({"texts", "documents"}, SUPERSET, object),
    ({"texts"}, RERANK, object),
    ({"inputs"}, PREDICT, object),
    ({"input"}, DASHSCOPE, dict),
    ({"input"}, MIXEDBREAD, list),
    ({"text_1"}, SCORE, object),
    ({"queries"}, SCORE, object),
    ({"data_1"}, SCORE, object),
    ({"documents", "batch_size"}, BATCH, object),
    ({"documents", "top_k"}, VOYAGE, object),
    ({"documents", "truncation"}, VOYAGE, object),
    ({"documents", "raw_scores"}, INFINITY, object),
)
NAMES = set[str]().union(*(names for names, _, _ in RULES))

# A prefix forces one of its dialects: the one that the body shows, else the last.
SUPERSETS = ("cohere", "jina", "localai", "siliconflow", "superset", "together", "xinference")
PREFIXES: dict[str, tuple[Dialect, ...]] = {
    **dict.fromkeys(SUPERSETS, (SUPERSET,)),
    "batch": (BATCH,),
    "dashscope": (DASHSCOPE, SUPERSET),
    "fastgpt": (FASTGPT,),
    "infinity": (INFINITY,),
    "mixedbread": (MIXEDBREAD,),
    "nim": (NIM,),
    "nvidia": (NIM,),
    "openrouter": (OPENROUTER,),
    "tei": (PREDICT, RERANK),
    "text-pairs": (TEXT_PAIRS,),
    "vllm": (SCORE, SUPERSET),
    "voyage": (VOYAGE,),
}

# The paths below which a body of the superset is OpenRouter's.
OPENROUTER_PATHS = "/api/v1/"

# The dialect of a body that shows none, by its path.
BY_PATH = {
    "/predict": PREDICT,
    "/bge-reranker-base/post": TEXT_PAIRS,
    "/api/v1/services/rerank/text-rerank/text-rerank": DASHSCOPE,
}

# Rerank calls may be posted to all of these; each takes every dialect.
PATHS = (
    *BY_PATH,
    f"{OPENROUTER_PATHS}rerank",
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
    "/score",
    "/v1/score",
    "/invocations",
)


def presumed(prefix: str, path: str) -> Dialect:
    """Tells the dialect of a call before its body is read, for the errors that come sooner."""
    return PREFIXES[prefix][-1] if prefix else BY_PATH.get(path, _superset(path))


def _superset(path: str) -> Dialect:
    return OPENROUTER if path.startswith(OPENROUTER_PATHS) and path not in BY_PATH else SUPERSET


def dialect_of(body: Body, prefix: str, path: str) -> Dialect:
    """Tells a body's dialect."""
    present = {name for name in NAMES if body.get(name) is not None}
    allowed = PREFIXES.get(prefix)
    for names, dialect, kind in RULES:
        if names <= present and isinstance(body.get("input"), kind) and (not allowed or dialect in allowed):
            return dialect
    # Documents say more than the path does.
    return _superset(path) if "documents" in present and not prefix else presumed(prefix, path)
