"""Texts to token sequences: the query once, all documents in one call of the Rust tokenizer."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from typing import Protocol

from rerank_grpc.models.base import Kind, ModelCard
from rerank_grpc.sequence import Sequence, TokenizedRequest
from rerank_grpc.tokenizer.documents import ALL, QueryEncoder, encode_documents, refuse_instruction
from rerank_grpc.tokenizer.frames import PromptEncoder
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.vocabulary import Vocabulary, read_vocabulary
from rerank_grpc.tokenizer.windows import Cutting
from rerank_grpc.types import Truncation


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
        pace: Pace = UNHURRIED,
    ) -> TokenizedRequest:
        """Encodes one request; 0 tokens per document mean all that fit.

        The documents are tokenized at the `pace` of the caller.

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
    if card.prompt is not None:
        return PromptEncoder(vocabulary, card.prompt, card.tokenizer_file, max_tokens=card.max_tokens)
    if card.kind is Kind.CROSS_ENCODER:
        return PairEncoder(vocabulary, max_tokens=card.max_tokens)
    return TextEncoder(vocabulary, max_tokens=card.max_tokens)


class PairEncoder:
    """Encodes for a cross-encoder: each sequence holds the query and one document's window."""

    def __init__(self, vocabulary: Vocabulary, *, max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._template = vocabulary.pair
        self._max_tokens = max_tokens
        self._queries = QueryEncoder(vocabulary, max_tokens // 2)

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
        pace: Pace = UNHURRIED,
    ) -> TokenizedRequest:
        """Encodes one request; see Encoder.encode."""
        refuse_instruction(instruction)
        head = self._queries.encode(query, truncation, pace)
        template, length = self._template, head.length
        room = max(0, self._max_tokens - template.overhead - length)
        most = max_tokens_per_document or ALL
        cutting = Cutting(min(room, most), most, truncation, max_chunks)
        before = template.prefix.tobytes() + head.ids + template.middle.tobytes()
        split = len(template.prefix) + length + template.segment_start if template.segments else 0
        sequences, encoded = encode_documents(
            self._vocabulary,
            documents,
            cutting,
            before=before,
            after=template.suffix.tobytes(),
            split=split,
            pace=pace,
        )
        return TokenizedRequest(tuple(sequences), encoded, None, head.truncated)


class TextEncoder:
    """Encodes for a bi-encoder: the first sequence is the query, the others the documents."""

    def __init__(self, vocabulary: Vocabulary, *, max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._template = vocabulary.single
        self._max_tokens = max_tokens
        self._queries = QueryEncoder(vocabulary, max_tokens // 2)

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
        pace: Pace = UNHURRIED,
    ) -> TokenizedRequest:
        """Encodes one request; see Encoder.encode."""
        refuse_instruction(instruction)
        head = self._queries.encode(query, truncation, pace)
        before, after = self._template.prefix.tobytes(), self._template.suffix.tobytes()
        most = max_tokens_per_document or ALL
        room = max(0, self._max_tokens - self._template.overhead)
        cutting = Cutting(min(room, most), most, truncation, max_chunks)
        first = Sequence(before + head.ids + after)
        sequences, encoded = encode_documents(
            self._vocabulary, documents, cutting, before=before, after=after, earlier=[first], pace=pace
        )
        return TokenizedRequest(tuple(sequences), encoded, 0, head.truncated)
