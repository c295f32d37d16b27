"""A request's texts to its sequences: the query once, all documents in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from rerank_grpc.errors import UnsupportedOption
from rerank_grpc.models.base import Kind, ModelCard
from rerank_grpc.sequence import TOKEN_BYTES, Chunk, Sequence, TokenizedDocument, TokenizedRequest
from rerank_grpc.tokenizer.frames import Frame, Framing, PlainFraming, PromptFraming
from rerank_grpc.tokenizer.late import late_framing
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.truncation import Cutting, TokenizedText, tokenize
from rerank_grpc.tokenizer.vocabulary import Vocabulary, read_vocabulary
from rerank_grpc.types import RerankRequest, Span


class Tokenizer:
    """Tokenizes the requests of one model; any number of threads may call it at once."""

    def __init__(self, vocabulary: Vocabulary, framing: Framing) -> None:
        self._vocabulary = vocabulary
        self._framing = framing

    def tokenize(self, request: RerankRequest, pace: Pace = UNHURRIED) -> TokenizedRequest:
        """Makes the sequences of a request, at a caller's pace; equal documents share theirs.

        Raises UnsupportedOption for an instruction where the model takes none,
        unless the request says to leave it out, and the errors of `truncation.tokenize`.
        """
        instruction = request.instruction
        if instruction and not self._framing.accepts_instruction:
            if not request.ignore_unsupported_options:
                raise UnsupportedOption.of("instruction", "this model takes no instruction")
            instruction = ""
        frame = self._framing.frame(request.query, instruction, request.truncation, pace)
        positions: dict[str, int] = {}  # each text once, with its first position
        for position, document in enumerate(request.documents):
            positions.setdefault(document.text, position)
        first = list(positions.values())
        texts = [frame.lead + text for text in positions] if frame.lead else list(positions)
        cutting = Cutting.of(request, frame.free_tokens)

        def field(index: int) -> str:
            return f"documents[{first[index]}].text"

        tokenized = tokenize(self._vocabulary, texts, field, cutting, pace)
        return _framed(request, frame, dict(zip(positions, tokenized, strict=True)))


def _framed(request: RerankRequest, frame: Frame, tokenized: Mapping[str, TokenizedText]) -> TokenizedRequest:
    """Puts the frame around each chunk of each text, and takes its lead off their spans."""
    _, before, after, segment_start, lead, prefix, query, query_truncated = frame
    sequences = [] if query is None else [query]
    documents = {}
    for text, (parts, truncated) in tokenized.items():
        chunks = []
        for ids, span in parts:
            own = span and Span(max(0, span.start - len(lead)), span.end - len(lead))
            chunks.append(Chunk(len(sequences), len(ids) // TOKEN_BYTES, own))
            sequences.append(Sequence(before + ids + after, segment_start, prefix))
        documents[text] = TokenizedDocument(tuple(chunks), truncated)
    in_order = tuple(map(documents.__getitem__, map(attrgetter("text"), request.documents)))
    return TokenizedRequest(tuple(sequences), in_order, None if query is None else 0, query_truncated)


def tokenizer_for(card: ModelCard) -> Tokenizer:
    """Makes the tokenizer of a loaded model, or raises ModelLoadError."""
    if card.late is not None:
        facts = card.reading, card.late, card.max_tokens
        return Tokenizer(*late_framing(card.tokenizer_file, card.family, *facts))
    vocabulary = read_vocabulary(card.tokenizer_file, card.family)
    if card.prompt is None:
        pairs = card.kind is Kind.CROSS_ENCODER
        return Tokenizer(vocabulary, PlainFraming(vocabulary, card.max_tokens, pairs=pairs))
    framing = PromptFraming(vocabulary, card.prompt, card.tokenizer_file, max_tokens=card.max_tokens)
    return Tokenizer(vocabulary, framing)
