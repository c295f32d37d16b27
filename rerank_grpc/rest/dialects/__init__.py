"""The dialects, a file each, and which one a body is in: by its fields, unless a path prefix forces one."""

from __future__ import annotations

from collections.abc import Callable

from rerank_grpc.rest.dialects import huggingface
from rerank_grpc.rest.dialects.dashscope import DASHSCOPE
from rerank_grpc.rest.dialects.flavours import FASTGPT, INFINITY, OLLAMA, OPENROUTER, SGLANG, VOYAGE
from rerank_grpc.rest.dialects.huggingface import HUGGING_FACE
from rerank_grpc.rest.dialects.legacy import BATCH, TEXT_PAIRS
from rerank_grpc.rest.dialects.mixedbread import MIXEDBREAD
from rerank_grpc.rest.dialects.nim import NIM
from rerank_grpc.rest.dialects.score import DEEPINFRA, SCORE
from rerank_grpc.rest.dialects.superset import SUPERSET
from rerank_grpc.rest.dialects.tei import PREDICT, RERANK
from rerank_grpc.rest.dialects.vector_databases import PINECONE, WEAVIATE
from rerank_grpc.rest.forms.decoded import ENDINGS, Body, Dialect

# The dialect of a body that shows none, by its path.
BY_PATH = {
    "/predict": PREDICT,
    "/score": SCORE,
    "/v1/score": SCORE,
    "/v1/ranking": NIM,
    "/bge-reranker-base/post": TEXT_PAIRS,
    "/api/rerank": OLLAMA,
    "/api/v1/services/rerank/text-rerank/text-rerank": DASHSCOPE,
    "/v1/inference/{model:path}": DEEPINFRA,
    "/inference/{model:path}": DEEPINFRA,
    "/hf-inference/models/{model:path}": HUGGING_FACE,
    "/models/{model:path}": HUGGING_FACE,
}

# The same, of every path that begins so.
BY_BEGINNING = {route.partition("{")[0]: dialect for route, dialect in BY_PATH.items() if "{" in route}
BY_BEGINNING["/api/v1/"] = OPENROUTER

Shows = Callable[[Body, str], bool]


def _any(_body: Body, _path: str) -> bool:
    return True


def _at(own: Dialect) -> Shows:
    """Makes a rule of the paths that are a dialect's own."""
    return lambda _body, path: presumed("", path) is own


def _inputs_are_objects(body: Body, _path: str) -> bool:
    return huggingface.has_objects(body["inputs"])


def _input_is(kind: type) -> Shows:
    return lambda body, _path: isinstance(body["input"], kind)


# The fields that show a dialect when all have a value, and what else must hold of body and path.
# The first rule that holds wins.
RULES: tuple[tuple[set[str], Dialect, Shows], ...] = (
    ({"passages"}, NIM, _any),
    ({"text_pairs"}, TEXT_PAIRS, _any),
    ({"texts", "documents"}, SUPERSET, _any),
    ({"texts"}, RERANK, _any),
    ({"inputs"}, HUGGING_FACE, _at(HUGGING_FACE)),
    ({"inputs"}, HUGGING_FACE, _inputs_are_objects),
    ({"inputs"}, PREDICT, _any),
    ({"input"}, DASHSCOPE, _input_is(dict)),
    ({"input"}, MIXEDBREAD, _input_is(list)),
    ({"text_1"}, SCORE, _any),
    ({"queries"}, DEEPINFRA, _at(DEEPINFRA)),
    ({"queries"}, SCORE, _any),
    ({"data_1"}, SCORE, _any),
    ({"query", "property"}, WEAVIATE, _any),
    ({"documents", "rank_fields", "parameters"}, PINECONE, _any),
    ({"documents", "batch_size"}, BATCH, _any),
    ({"documents", "top_k"}, VOYAGE, _any),
    ({"documents", "truncation"}, VOYAGE, _any),
    ({"documents", "raw_scores"}, INFINITY, _any),
)
NAMES = set[str]().union(*(names for names, _, _ in RULES))

# A prefix forces one of its dialects: the one that the body shows, else the last.
SUPERSETS = ("cohere", "jina", "localai", "siliconflow", "superset", "together", "xinference")
PREFIXES: dict[str, tuple[Dialect, ...]] = {
    **dict.fromkeys(SUPERSETS, (SUPERSET,)),
    "batch": (BATCH,),
    "dashscope": (DASHSCOPE, SUPERSET),
    "deepinfra": (DEEPINFRA,),
    "fastgpt": (FASTGPT,),
    "huggingface": (HUGGING_FACE,),
    "infinity": (INFINITY,),
    "mixedbread": (MIXEDBREAD,),
    "nim": (NIM,),
    "nvidia": (NIM,),
    "pinecone": (PINECONE,),
    "sglang": (SGLANG,),
    "ollama": (OLLAMA,),
    "openrouter": (OPENROUTER,),
    "tei": (PREDICT, RERANK),
    "text-pairs": (TEXT_PAIRS,),
    "vllm": (SCORE, SUPERSET),
    "voyage": (VOYAGE,),
    "weaviate": (WEAVIATE,),
}

# A header that forces as a prefix does; Pinecone's clients always send theirs.
PREFIX_HEADERS = {"x-pinecone-api-version": "pinecone"}

# Rerank calls may be posted to all of these, and to every path that ends in one of ENDINGS; each takes every
# dialect.
PATHS = (
    *BY_PATH,
    "/v1/rerank",  # which most callers use, and see by its own name in a trace
    "/v2/rerank",
    *ENDINGS,
    *(f"/{{folder:path}}{ending}" for ending in ENDINGS),
    "/",
    "/invocations",
)


def presumed(prefix: str, path: str) -> Dialect:
    """Tells the dialect of a call before its body is read, for the errors that come sooner."""
    if prefix:
        return PREFIXES[prefix][-1]
    if path in BY_PATH:
        return BY_PATH[path]
    for beginning, dialect in BY_BEGINNING.items():
        if path.startswith(beginning):
            return dialect
    return SUPERSET


def dialect_of(body: Body, prefix: str, path: str) -> Dialect:
    """Tells a body's dialect."""
    present = {name for name in NAMES if body.get(name) is not None}
    allowed = PREFIXES.get(prefix)
    for names, dialect, shows in RULES:
        if names <= present and shows(body, path) and (not allowed or dialect in allowed):
            return dialect
    dialect = presumed(prefix, path)
    # A query with documents says more than the path of another form does.
    if not prefix and dialect not in (OLLAMA, OPENROUTER) and present >= {"query", "documents"}:
        return SUPERSET
    return dialect
