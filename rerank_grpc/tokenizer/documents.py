"""What all encoders do alike with queries and documents."""

from __future__ import annotations

import functools
from collections.abc import Sequence as ListOf

from rerank_grpc.errors import UnsupportedOption
from rerank_grpc.sequence import TOKEN_BYTES, Chunk, Prefix, Sequence, TokenizedDocument
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.vocabulary import Vocabulary
from rerank_grpc.tokenizer.windows import Cutting, Tokens, tokenize
from rerank_grpc.types import Span, Truncation

ALL = 1 << 31  # more tokens than any document has
REMEMBERED_QUERIES = 128
REMEMBERED_CHARACTERS = 2_000


def refuse_instruction(instruction: str) -> None:
    """Raises UnsupportedOption for an instruction to a model that takes none."""
    if instruction:
        raise UnsupportedOption.of("instruction", "this model takes no instruction")


class QueryEncoder:
    """Tokenizes queries, and remembers the last ones: who sends few documents at a time repeats them."""

    def __init__(self, vocabulary: Vocabulary, room: int) -> None:
        self._vocabulary = vocabulary
        self._room = room
        self._remembered = functools.lru_cache(REMEMBERED_QUERIES)(self._encode)

    def encode(self, query: str, truncation: Truncation, pace: Pace = UNHURRIED) -> Tokens:
        """Tokenizes a query and cuts it to the room; raises InvalidRequest if it may not be cut."""
        if len(query) <= REMEMBERED_CHARACTERS:
            return self._remembered(query, truncation)
        return self._encode(query, truncation, pace)

    def _encode(self, query: str, truncation: Truncation, pace: Pace = UNHURRIED) -> Tokens:
        cutting = Cutting(self._room, self._room, truncation)
        (tokens,) = tokenize(self._vocabulary, [query], cutting, lambda _: "query", pace)
        return tokens


def encode_documents(
    vocabulary: Vocabulary,
    documents: ListOf[str],
    cutting: Cutting,
    *,
    before: bytes,
    after: bytes,
    split: int = 0,
    earlier: ListOf[Sequence] = (),
    lead: str = "",
    prefix: Prefix | None = None,
    pace: Pace = UNHURRIED,
) -> tuple[list[Sequence], tuple[TokenizedDocument, ...]]:
    """Makes the sequences of all documents; those with equal text share theirs.

    `lead` is put before each text and counts as a part of it, but for its place.
    """
    distinct = list(dict.fromkeys(documents))
    texts = [lead + text for text in distinct] if lead else distinct

    def field(index: int) -> str:
        return f"documents[{documents.index(distinct[index])}].text"

    sequences = list(earlier)
    encoded: dict[str, TokenizedDocument] = {}
    for text, tokens in zip(distinct, tokenize(vocabulary, texts, cutting, field, pace), strict=True):
        count = tokens.length
        if tokens.spans is None:
            chunk = Chunk(len(sequences), count)
            sequences.append(Sequence(before + tokens.ids + after, split, prefix))
            encoded[text] = TokenizedDocument((chunk,), tokens.truncated)
            continue
        chunks = []
        for (start, end), (first, last) in zip(cutting.windows(count), tokens.spans, strict=True):
            span = Span(max(0, first - len(lead)), last - len(lead))
            chunks.append(Chunk(len(sequences), end - start, span))
            window = tokens.ids[TOKEN_BYTES * start : TOKEN_BYTES * end]
            sequences.append(Sequence(before + window + after, split, prefix))
        encoded[text] = TokenizedDocument(tuple(chunks), tokens.truncated)
    return sequences, tuple(map(encoded.__getitem__, documents))
