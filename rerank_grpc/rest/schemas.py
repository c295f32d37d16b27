"""The schemas of openapi.py, with examples that work when pressed."""

from __future__ import annotations

from typing import Any

from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.dialects.tei import LABEL

Json = Any

_TEXT = {"type": "string", "maxLength": LIMITS.characters}
_QUERY = {**_TEXT, "minLength": 1}
_OBJECT = {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}
_SCORE = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_BOOLEAN = {"type": ["boolean", "null"]}
_EXAMPLE_QUERY = "How do I reset my password?"
_EXAMPLE_TEXTS = [
    "Our office is closed on public holidays.",
    "Open Settings and click Forgot password.",
    "Passwords must have at least twelve characters.",
]


def _object(required: dict[str, Json], optional: dict[str, Json] | None = None) -> Json:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _list(items: Json, **more: Json) -> Json:
    return {"type": "array", "items": items, **more}


def _optional_count(description: str) -> Json:
    return {"type": ["integer", "null"], "minimum": 0, "description": description}


_DOCUMENTS = {"minItems": 1, "maxItems": LIMITS.documents}

_REQUEST = _object(
    {
        "query": _QUERY,
        "documents": _list({"anyOf": [_TEXT, _OBJECT]}, **_DOCUMENTS),
    },
    {
        "model": {"type": ["string", "null"], "description": "A name out of /v1/models; else the default."},
        "top_n": _optional_count("How many results; 0 and more than there are mean all."),
        "return_documents": {**_BOOLEAN, "description": "Whether results carry their documents."},
        "instruction": {
            "type": ["string", "null"],
            "maxLength": LIMITS.characters,
            "description": "What the model is to judge; left out where it takes none.",
        },
        "max_tokens_per_doc": _optional_count(
            "How many tokens of each document count; 0 means all that fit."
        ),
        "max_chunks_per_doc": _optional_count("Into how many windows a long document may be cut."),
        "raw_scores": {**_BOOLEAN, "description": "Whether scores are the model's logits."},
    },
)
_REQUEST["examples"] = [
    {"query": _EXAMPLE_QUERY, "documents": _EXAMPLE_TEXTS, "top_n": 2, "return_documents": True}
]

_USAGE = _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT))

_REPLY = _object(
    {
        "id": {"type": "string"},
        "object": {"enum": ["list", "rerank"]},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "results": _list(
            _object({"index": _COUNT, "relevance_score": _SCORE}, {"document": {"anyOf": [_OBJECT, _TEXT]}})
        ),
        "usage": _USAGE,
        "meta": {"type": "object"},
    },
    {
        "data": _list(
            _object({"index": _COUNT, "score": _SCORE, "relevance_score": _SCORE}, {"document": _TEXT})
        )
    },
)

_TEI_REQUEST = _object(
    {"query": _QUERY, "texts": _list(_TEXT, **_DOCUMENTS)},
    {
        "truncate": {**_BOOLEAN, "description": "false refuses a text that is too long."},
        "truncation_direction": {"enum": ["right", "left", "Right", "Left", None]},
        "raw_scores": _BOOLEAN,
        "return_text": _BOOLEAN,
    },
)
_TEI_REQUEST["examples"] = [{"query": _EXAMPLE_QUERY, "texts": _EXAMPLE_TEXTS, "return_text": True}]

_TEI_ERRORS = ["Validation", "Empty", "Overloaded", "Tokenizer", "Backend", "Unhealthy"]
_STRING = {"type": "string"}
_NULLABLE = {"type": ["string", "null"]}

_MODEL = _object(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _STRING,
        "root": _STRING,
        "model_type": {"const": "rerank"},
        "model_name": _STRING,
        "model_uid": _STRING,
        "loaded": {"type": "boolean"},
        "local_available": {"type": "boolean"},
    }
)

SCHEMAS: dict[str, Json] = {
    "RerankRequest": _REQUEST,
    "RerankReply": _REPLY,
    "TeiRequest": _TEI_REQUEST,
    "TeiReply": _list(_object({"index": _COUNT, "score": _SCORE}, {"text": _TEXT})),
    "Error": _object(
        {
            "detail": _STRING,
            "message": _STRING,
            "error": _object(
                {"message": _STRING, "type": _STRING, "param": {"type": "null"}, "code": _STRING}
            ),
        }
    ),
    "TeiError": _object({"error": _STRING, "error_type": {"enum": _TEI_ERRORS}}),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _list(_MODEL)}),
    "Info": _object(
        {
            "model_id": _STRING,
            "model_sha": _NULLABLE,
            "model_dtype": _STRING,
            "model_type": _object(
                {
                    "reranker": _object(
                        {
                            "id2label": {"type": "object"},
                            "label2id": {"type": "object", "examples": [{LABEL: 0}]},
                        }
                    )
                }
            ),
            "max_input_length": _COUNT,
            "max_batch_tokens": _COUNT,
            "max_client_batch_size": _COUNT,
            "version": _STRING,
        }
    ),
    "Root": _object(
        {
            "status": {"const": "running"},
            "loaded_models": _list(_STRING),
            "default_model": _NULLABLE,
            "supported_models": _list(_STRING),
            "authentication": {"type": "boolean"},
        }
    ),
    "Health": _object(
        {"status": {"enum": ["healthy", "unhealthy"]}},
        {"model": _STRING, "model_loaded": {"type": "boolean"}},
    ),
    "Auth": _object({"auth": {"type": "boolean"}}),
}
