"""The arguments of a client's methods, their types checked; :mod:`wire` refuses what no message can hold."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import TypedDict, TypeVar

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.types import Document, Priority, RerankRequest, Truncation

DocumentLike = str | Document | Mapping[str, str]

_Choice = TypeVar("_Choice", bound=enum.Enum)


class CallOptions(TypedDict, total=False):
    """The options of every call: its deadline in seconds, and metadata that wins over the client's own."""

    timeout: float | None
    metadata: Mapping[str, str] | None


class RerankOptions(CallOptions, total=False):
    """The options of `rerank` and `stream_rerank`; one left out or None is the contract's default."""

    return_documents: bool
    min_relevance_score: float | None
    instruction: str | None
    max_tokens_per_document: int | None
    truncation: Truncation | str | None
    max_chunks_per_document: int | None
    priority: Priority | str | None
    ignore_unsupported_options: bool
    min_calibrated_score: float | None


def rerank_request(
    query: str,
    documents: Iterable[DocumentLike],
    model: str | None = None,
    top_n: int | None = None,
    *,
    timeout: float | None = None,
    metadata: Mapping[str, str] | None = None,
    return_documents: bool = False,
    min_relevance_score: float | None = None,
    instruction: str | None = None,
    max_tokens_per_document: int | None = None,
    truncation: Truncation | str | None = None,
    max_chunks_per_document: int | None = None,
    priority: Priority | str | None = None,
    ignore_unsupported_options: bool = False,
    min_calibrated_score: float | None = None,
) -> tuple[RerankRequest, CallOptions]:
    """Splits arguments; raises TypeError for a wrong type, InvalidRequest for a wrong value."""
    request = RerankRequest(
        query=text("query", query),
        documents=_documents(documents),
        model=text("model", model or ""),
        top_n=_count("top_n", top_n),
        return_documents=bool(return_documents),
        min_relevance_score=_number("min_relevance_score", min_relevance_score),
        instruction=text("instruction", instruction or ""),
        max_tokens_per_document=_count("max_tokens_per_document", max_tokens_per_document),
        truncation=_choice("truncation", truncation, Truncation.END),
        max_chunks_per_document=_count("max_chunks_per_document", max_chunks_per_document) or 1,
        priority=_choice("priority", priority, Priority.INTERACTIVE),
        ignore_unsupported_options=bool(ignore_unsupported_options),
        min_calibrated_score=_number("min_calibrated_score", min_calibrated_score),
    )
    return request, {"timeout": timeout, "metadata": metadata}


def batch_options(options: RerankOptions) -> RerankOptions:
    """Makes the options of a job of `rerank_many`: background work, unless the caller says otherwise."""
    if options.get("priority") is not None:
        return options
    return {**options, "priority": Priority.BATCH}


def pair(job: object) -> tuple[str, Iterable[DocumentLike]]:
    """Reads a job of `rerank_many`; raises TypeError unless it is a query and its documents."""
    if not isinstance(job, tuple | list) or len(job) != 2:
        raise TypeError(f"jobs: pairs of a query and its documents, not {type(job).__name__}")
    query, documents = job
    return query, documents


def check_type(field: str, value: object, kind: type | UnionType, noun: str) -> None:
    """Raises TypeError for a value that is not of a kind; a bool is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{field}: {noun}, not {type(value).__name__}")


def text(field: str, value: str) -> str:
    """Returns a text; raises TypeError for anything else."""
    check_type(field, value, str, "a str")
    return value


def _count(field: str, value: int | None) -> int:
    if value is None:
        return 0
    check_type(field, value, int, "an int")
    return value


def _number(field: str, value: float | None) -> float | None:
    if value is None:
        return None
    check_type(field, value, int | float, "a float")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequest.of(field, "too large for a float") from None


def _choice(field: str, value: object, default: _Choice) -> _Choice:
    kind = type(default)
    if value is None:
        return default
    if isinstance(value, kind):
        return value
    check_type(field, value, str, f"a {kind.__name__} or its name")
    members: dict[object, _Choice] = {member.name.lower(): member for member in kind}
    if value not in members:
        raise InvalidRequest.of(field, f"one of {', '.join(map(str, members))}")
    return members[value]


def _documents(documents: object) -> list[Document]:
    if isinstance(documents, str | bytes | Mapping | Document) or not isinstance(documents, Iterable):
        raise TypeError(f"documents: a sequence of documents, not one {type(documents).__name__}")
    return [_document(f"documents[{index}]", document) for index, document in enumerate(documents)]


def _document(field: str, document: object) -> Document:
    if isinstance(document, str):
        return Document(document)
    if isinstance(document, Document):
        return Document(text(f"{field}.text", document.text), text(f"{field}.id", document.id))
    if not isinstance(document, Mapping):
        noun = 'a str, a Document or a mapping with "text" and maybe "id"'
        raise TypeError(f"{field}: {noun}, not {type(document).__name__}")
    if "text" not in document:
        raise InvalidRequest.of(field, 'a mapping needs "text"')
    if unknown := document.keys() - {"text", "id"}:
        raise InvalidRequest.of(field, f"unknown key {min(map(repr, unknown))}")
    return Document(text(f"{field}.text", document["text"]), text(f"{field}.id", document.get("id", "")))
