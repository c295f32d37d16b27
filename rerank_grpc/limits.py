"""The limits of a request's size, and the checks that come before any work on it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.types import Document, RerankRequest

MIB = 1 << 20
# A character that can be seen: no white space, control character, braille cell without dots, nor code point
# that Unicode has shown as nothing (zero-width and format characters, fillers, variation selectors).
VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# The field that holds a document's text, as errors name it.
DOCUMENT_TEXT = re.compile(r"documents\[(\d+)\]\.text")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the service; the proto's comments state the same numbers, and no option sets them.

    `characters` is of one text, `characters_inside` of all texts that are inside at once, `streams` the calls
    that the REST server sends over one connection. A REST body may have more bytes than its message,
    because many callers escape every character that is not ASCII.
    """

    message_bytes: int = 8 * MIB
    reply_bytes: int = 16 * MIB
    body_bytes: int = 12 * MIB
    documents: int = 1_000
    characters: int = 100_000
    characters_inside: int = 64 * MIB
    id_characters: int = 1_024
    chunks: int = 64
    deadline_seconds: float = 120.0
    streams: int = 96


LIMITS = Limits()
# The most bytes of a process that wait for others: the bodies of REST calls that are inside at once (ten of
# the largest), the answers that wait for their readers in one lane, and those of REST. They are less where
# the memory is small.
BODIES_BYTES, ANSWER_BYTES, UNREAD_BYTES = 128 * MIB, 64 * MIB, 128 * MIB
# What they cost at most. A character has four bytes in a message, and four as Python reads it. A body is
# there as it came, as it is read, as a message, and as that is sent.
CHARACTER_BYTES, BODY_COPIES = 8, 4
TEXT_LANES = 2  # the lanes whose answers wait: those of whole answers and those of streams
LOBBY_PARTS = 4  # calls that wait for a model may hold one of so many parts of `characters_inside` as well


def check_count(name: str, number: int) -> None:
    """Raises InvalidRequest unless a counted list holds a document, and not too many."""
    if number == 0:
        raise InvalidRequest.of(name, "must not be empty")
    if number > LIMITS.documents:
        raise InvalidRequest.of(name, f"holds {number:,}, at most {LIMITS.documents:,} are allowed")


def too_many_documents(name: str = "documents") -> InvalidRequest:
    """Makes the error of a request with too many documents, which need not be counted to the end."""
    return InvalidRequest.of(name, f"holds more than the {LIMITS.documents:,} that are allowed")


def check_request(request: RerankRequest) -> int:
    """Returns the number of characters in a request; raises InvalidRequest naming the first wrong field."""
    # Before any work for each document: a million empty ones fit into a small message.
    if not request.documents:
        raise InvalidRequest.of("documents", "must not be empty")
    if len(request.documents) > LIMITS.documents:
        raise too_many_documents()
    check_length("query", request.query, LIMITS.characters)
    if VISIBLE.search(request.query) is None:
        blank = ", and this one has no visible character" if request.query else ""
        raise InvalidRequest.of("query", f"must not be empty{blank}")
    check_length("instruction", request.instruction, LIMITS.characters)
    texts = [len(document.text) for document in request.documents]
    if max(texts) > LIMITS.characters or max([len(d.id) for d in request.documents]) > LIMITS.id_characters:
        for index, document in enumerate(request.documents):
            check_length(f"documents[{index}].text", document.text, LIMITS.characters)
            check_length(f"documents[{index}].id", document.id, LIMITS.id_characters)
    for field in ("min_relevance_score", "min_calibrated_score"):
        score = getattr(request, field)
        if score is not None and not 0 <= score <= 1:
            raise InvalidRequest.of(field, f"is {score:g}, must be from 0 to 1")
    chunks = request.max_chunks_per_document
    if chunks > LIMITS.chunks:
        text = f"is {chunks:,}, at most {LIMITS.chunks} are allowed"
        raise InvalidRequest.of("max_chunks_per_document", text)
    return sum(texts) + len(request.query) + len(request.instruction)


def blank_texts(documents: Iterable[Document]) -> frozenset[str]:
    """Collects the texts without a visible character, by the rule for queries."""
    return frozenset(document.text for document in documents if VISIBLE.search(document.text) is None)


def check_length(field: str, text: str, limit: int) -> None:
    """Raises InvalidRequest for a text of more characters."""
    if len(text) > limit:
        raise InvalidRequest.of(field, f"has {len(text):,} characters, at most {limit:,} are allowed")
