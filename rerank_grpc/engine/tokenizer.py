"""Texts to token sequences: the query once, all documents in one call of the Rust tokenizer."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from typing import Protocol

from rerank_grpc.engine.batch import TOKEN_BYTES, Sequence
from rerank_grpc.engine.encoding import EncodedChunk, EncodedDocument, EncodedRequest
from rerank_grpc.engine.texts import Cutting, Tokens, tokenize
from rerank_grpc.engine.vocabulary import Vocabulary, read_vocabulary
from rerank_grpc.errors import UnsupportedOption
from rerank_grpc.models.base import ModelCard
from rerank_grpc.types import Span, Truncation

ALL = 1 << 31  # more tokens than any document has


class Encoder(Protocol):
    """Makes sequences of texts for one model; any number of threads may call it at once."""

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
    ) -> EncodedRequest:
        """Encodes one request; 0 tokens per document mean all that fit.

        Spans are exact where a document was cut into windows, and the whole
        text elsewhere.

        Raises:
            InvalidRequest: if a text is too long and may not be cut, or is no
                Unicode text (a lone surrogate).
            UnsupportedOption: if the model takes no instruction.
            InternalError: if a text became a control token, which is a defect.
        """


def encoder_for(card: ModelCard) -> Encoder:
    """Makes the encoder of a loaded model, or raises ModelLoadError."""
    vocabulary = read_vocabulary(card.tokenizer_file, card.family)
    if card.reads_pairs:
        return PairEncoder(vocabulary, max_tokens=card.max_tokens)
    return TextEncoder(vocabulary, max_tokens=card.max_tokens)


class PairEncoder:
    """Encodes for a cross-encoder: each sequence holds the query and one document's window."""

    def __init__(self, vocabulary: Vocabulary, *, max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._template = vocabulary.pair
        self._max_tokens = max_tokens

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
    ) -> EncodedRequest:
        """Encodes one request; see Encoder.encode."""
        refuse_instruction(instruction)
        head = encode_query(self._vocabulary, query, self._max_tokens // 2, truncation)
        template, length = self._template, head.length
        room = max(0, self._max_tokens - template.overhead - length)
        most = max_tokens_per_document or ALL
        cutting = Cutting(min(room, most), most, truncation, max_chunks)
        before = template.prefix.tobytes() + head.ids + template.middle.tobytes()
        split = len(template.prefix) + length + template.segment_start if template.segments else 0
        sequences, encoded = encode_documents(
            self._vocabulary, documents, cutting, before=before, after=template.suffix.tobytes(), split=split
        )
        return EncodedRequest(tuple(sequences), encoded, None, head.truncated)


class TextEncoder:
    """Encodes for a bi-encoder: the first sequence is the query, the others the documents."""

    def __init__(self, vocabulary: Vocabulary, *, max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._template = vocabulary.single
        self._max_tokens = max_tokens

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
    ) -> EncodedRequest:
        """Encodes one request; see Encoder.encode."""
        refuse_instruction(instruction)
        head = encode_query(self._vocabulary, query, self._max_tokens // 2, truncation)
        before, after = self._template.prefix.tobytes(), self._template.suffix.tobytes()
        most = max_tokens_per_document or ALL
        room = max(0, self._max_tokens - self._template.overhead)
        cutting = Cutting(min(room, most), most, truncation, max_chunks)
        first = Sequence(before + head.ids + after)
        sequences, encoded = encode_documents(
            self._vocabulary, documents, cutting, before=before, after=after, split=0, earlier=[first]
        )
        return EncodedRequest(tuple(sequences), encoded, 0, head.truncated)


def refuse_instruction(instruction: str) -> None:
    """Raises UnsupportedOption for an instruction to a model that takes none."""
    if instruction:
        raise UnsupportedOption.of("instruction", "this model takes no instruction")


def encode_query(vocabulary: Vocabulary, query: str, room: int, truncation: Truncation) -> Tokens:
    """Tokenizes the query, and cuts it to `room` tokens."""
    (tokens,) = tokenize(vocabulary, [query], Cutting(room, room, truncation), lambda _: "query")
    return tokens


def encode_documents(
    vocabulary: Vocabulary,
    documents: ListOf[str],
    cutting: Cutting,
    *,
    before: bytes,
    after: bytes,
    split: int,
    earlier: ListOf[Sequence] = (),
) -> tuple[list[Sequence], tuple[EncodedDocument, ...]]:
    """Makes the sequences of all documents; those with equal text share theirs."""
    texts = list(dict.fromkeys(documents))

    def field(index: int) -> str:
        return f"documents[{documents.index(texts[index])}].text"

    sequences = list(earlier)
    encoded: dict[str, EncodedDocument] = {}
    for text, tokens in zip(texts, tokenize(vocabulary, texts, cutting, field), strict=True):
        count = tokens.length
        if tokens.spans is None:
            chunk = EncodedChunk(len(sequences), count, Span(0, len(text)))
            sequences.append(Sequence(before + tokens.ids + after, split))
            encoded[text] = EncodedDocument((chunk,), tokens.truncated)
            continue
        chunks = []
        for start, end in cutting.windows(count):
            span = Span(tokens.spans[start][0], tokens.spans[end - 1][1])
            chunks.append(EncodedChunk(len(sequences), end - start, span))
            sequences.append(
                Sequence(before + tokens.ids[TOKEN_BYTES * start : TOKEN_BYTES * end] + after, split)
            )
        encoded[text] = EncodedDocument(tuple(chunks), tokens.truncated)
    return sequences, tuple(map(encoded.__getitem__, documents))
