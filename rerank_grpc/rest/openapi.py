"""The OpenAPI document: the superset as the canonical form, TEI's, and what can be asked.

The other dialects are for callers that exist already; docs/clients.md lists them.
"""

from __future__ import annotations

from typing import Any

from rerank_grpc import __version__
from rerank_grpc.rest.schemas import SCHEMAS

Json = Any

DESCRIPTION = """Scores documents against a query, for callers of JSON rerank APIs.

Every rerank path takes every dialect that docs/clients.md lists; shown here are the canonical form and
that of Text Embeddings Inference. Where the service has a token, press *Authorize* first.

`X-Request-Timeout` says how many seconds the caller waits; `X-Request-Id` and `traceparent` go along with
the call and come back."""


def document() -> Json:
    """Makes the document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "rerank-grpc", "version": __version__, "description": DESCRIPTION},
        "paths": {
            "/v1/rerank": {"post": _rerank("rerank", "Rerank", "RerankRequest", "RerankReply", "Error")},
            "/tei/rerank": {
                "post": _rerank("teiRerank", "Rerank, as TEI does", "TeiRequest", "TeiReply", "TeiError")
            },
            "/v1/models": {"get": _ask("listModels", "Which models there are", "Models")},
            "/v1/models/{model}": {"get": _ask("getModel", "One model", "Model", path="model")},
            "/info": {"get": _ask("info", "The default model, as TEI describes it", "Info")},
            "/": {
                "get": _ask("root", "What is served", "Root", public=True),
                "post": _rerank(
                    "rerankAtRoot", "The same as /v1/rerank", "RerankRequest", "RerankReply", "Error"
                ),
            },
            "/health": {
                "get": _ask("health", "Whether the default model can be called", "Health", public=True)
            },
            "/v1/cluster/auth": {"get": _ask("auth", "Whether a token is needed", "Auth", public=True)},
        },
        "security": [{"bearer": []}, {}],
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _rerank(name: str, summary: str, request: str, reply: str, error: str) -> Json:
    statuses = (400, 401, 403, 404, 413, 415, 422, 424, 429, 499, 500, 503, 504)
    # TEI's clients know 422 and 424, the others neither.
    missing = (422, 424) if error == "Error" else ()
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {
            "200": _response("The results, best first.", reply),
            **{str(status): _response(_SAID[status], error) for status in statuses if status not in missing},
        },
    }


def _ask(name: str, summary: str, reply: str, *, path: str = "", public: bool = False) -> Json:
    statuses = [429, 499, 500, 503, 504] + ([] if public else [400, 401, 403]) + ([404] if path else [])
    schema = {"type": "string", "minLength": 1, "pattern": "^[A-Za-z0-9._-]+$"}
    parameters = [{"name": path, "in": "path", "required": True, "schema": schema}] if path else []
    said = {str(status): _response(_SAID[status], "Error") for status in statuses}
    if name == "health":
        said["503"] = {
            "description": _SAID[503],
            "content": {"application/json": {"schema": {"anyOf": [_ref("Error"), _ref("Health")]}}},
        }
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": _response("The answer.", reply), **said},
        **({"security": []} if public else {}),
    }


_SAID = {
    400: "A field or the body is wrong.",
    401: "The token is missing or wrong.",
    403: "The token does not carry the right.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "A field or the body is wrong.",
    424: "A fault of the server.",
    429: "The queue is full, or the deadline cannot be met: see Retry-After.",
    499: "The caller has left.",
    500: "A fault of the server.",
    503: "The server is away, stopping or still loading: see Retry-After.",
    504: "The deadline has passed.",
}


def _response(description: str, schema: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
