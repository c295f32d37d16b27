"""A call that is too large for the server's limits: split into parts, whose replies are merged exactly.

A document's score depends on no other document, so the merged response is what one call would have given:
the order is by score, equal scores by logit and then in the caller's order; `top_n` is cut from the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rerank_grpc.client.errors import RevisionChanged
from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.types import Document, RerankRequest, RerankResponse, RerankSummary, ScoredDocument

# How many parts of one call are on their way at once.
AT_ONCE = 4
# How often a call is asked again because its parts were scored by different revisions of the model.
ASKED_AGAIN = 1
# The bytes of a document's own tags and lengths, at most; and of the fields that are no text.
DOCUMENT_BYTES, OPTION_BYTES = 24, 128


class RequestPart(NamedTuple):
    """A request whose first document is the caller's at `offset`."""

    offset: int
    request: RerankRequest


class PartsTally:
    """How many documents of a request are scored, for its caller's `progress`."""

    def __init__(self, request: RerankRequest, progress: Callable[[int, int], object] | None) -> None:
        self._total, self._done, self._progress = len(request.documents), 0, progress

    def add(self, part: RerankRequest) -> None:
        """Counts those of a part."""
        self._done += len(part.documents)
        if self._progress is not None:
            self._progress(self._done, self._total)


def parts_of(request: RerankRequest) -> list[RequestPart]:
    """Splits a request into as few parts as the limits allow; most requests are one part."""
    texts = (request.model, request.query, request.instruction)
    shared = sum(map(_bytes_of, texts)) + OPTION_BYTES
    most = LIMITS.message_bytes - shared
    if _surely_fit(request.documents, most):
        return [RequestPart(0, request)]
    bounds = list(_bounds(request.documents, most))
    if len(bounds) <= 1:
        return [RequestPart(0, request)]
    return [
        RequestPart(start, request._replace(documents=request.documents[start:end])) for start, end in bounds
    ]


def merged(
    request: RerankRequest, parts: Sequence[RequestPart], replies: Sequence[RerankResponse]
) -> RerankResponse:
    """Makes the response of the whole request; its usage is the sum of the parts'."""
    if len(parts) == 1:
        return replies[0]
    results: list[ScoredDocument] = []
    for part, reply in zip(parts, replies, strict=True):
        results += [result._replace(index=result.index + part.offset) for result in reply.results]
    # The server sorts by logits: high ones that differ have equal scores, of 1.0 and just below.
    results.sort(key=lambda result: (-result.relevance_score, -result.logit, result.index))
    summary = RerankSummary.of([reply.summary for reply in replies])
    return RerankResponse(tuple(results[: request.top_n or None]), summary)


def of_one_revision(replies: Sequence[RerankResponse]) -> bool:
    """Tells whether one revision of one model has scored all parts."""
    return len({(reply.summary.model, reply.summary.model_revision) for reply in replies}) == 1


def changed(replies: Sequence[RerankResponse]) -> RevisionChanged:
    """Makes the error of parts that different revisions have scored."""
    seen = dict.fromkeys(f"{reply.summary.model} {reply.summary.model_revision}" for reply in replies)
    return RevisionChanged(
        f"the parts of this large call were scored by different models ({', '.join(seen)}), and again: "
        "call again when the servers have one revision"
    )


@contextmanager
def named(part: RequestPart) -> Iterator[None]:
    """Has a refusal of a part name the documents by the caller's numbers."""
    try:
        yield
    except InvalidRequest as error:
        raise in_the_whole(error, part) from error.__cause__


def in_the_whole(error: InvalidRequest, part: RequestPart) -> InvalidRequest:
    """Makes the same error with the caller's numbers of documents."""

    def name_of(field: str) -> str:
        head, bracket, rest = field.partition("[")
        number, closing, tail = rest.partition("]")
        if (head, bracket, closing) != ("documents", "[", "]") or not number.isdecimal():
            return field
        return f"documents[{int(number) + part.offset}]{tail}"

    return error.renamed(name_of)


def _surely_fit(documents: Sequence[Document], most: int) -> bool:
    """Tells few and short documents by their characters alone, each of which has 4 bytes at most."""
    if len(documents) > LIMITS.documents:
        return False
    characters = sum([len(document.text) + len(document.id) for document in documents])
    return 4 * characters + DOCUMENT_BYTES * len(documents) <= most


def _bounds(documents: Sequence[Document], most: int) -> Iterator[tuple[int, int]]:
    """Yields the first document of each part, and the first one after it."""
    start = size = 0
    for place, document in enumerate(documents):
        bytes_ = _bytes_of(document.text) + _bytes_of(document.id) + DOCUMENT_BYTES
        if place > start and (place - start == LIMITS.documents or size + bytes_ > most):
            yield start, place
            start, size = place, 0
        size += bytes_
    yield start, len(documents)


def _bytes_of(text: str) -> int:
    """Counts the bytes of a text in UTF-8, and those of a lone surrogate, which is refused later."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
