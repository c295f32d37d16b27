"""The OpenAPI document of the canonical forms."""

from typing import Any


def document() -> dict[str, Any]:
    """Makes the document."""
    return {"openapi": "3.1.0", "info": {"title": "rerank-grpc", "version": "0"}, "paths": {}}
