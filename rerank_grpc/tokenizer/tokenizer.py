"""A request's texts to its sequences: the query once, all documents in one batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as ListOf
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from rerank_grpc.errors import ModelLoadError, UnsupportedOption
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.models.base import ModelCard
from rerank_grpc.sequence import TOKEN_BYTES, Chunk, Sequence, TokenizedDocument, TokenizedRequest
from rerank_grpc.tokenizer.frames import LEAST_FREE_TOKENS, Frame, Framing, PlainFraming, Yielding
from rerank_grpc.tokenizer.late import late_framing
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.prompts import PromptFraming
from rerank_grpc.tokenizer.truncation import CUT_MARGIN, UNBOUNDED, Cutting, TokenizedText, tokenize
from rerank_grpc.tokenizer.vocabulary import TokenizerFile, read_tokenizer
from rerank_grpc.types import RerankRequest, Span, Truncation

LEFT_OUT = TokenizedDocument((), False)

Positions: TypeAlias = Mapping[str, int]  # each text once, with its first position in the request


class Group(NamedTuple):
    """Documents that have the same frame, and their tokens by their text."""

    frame: Frame
    documents: Mapping[str, TokenizedText]


class Tokenizer:
    """Tokenizes the requests of one model; any number of threads may call it at once."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    def tokenize(
        self, request: RerankRequest, pace: Pace = UNHURRIED, left_out: Collection[str] = ()
    ) -> TokenizedRequest:
        """Makes the sequences of a request, at a caller's pace; equal documents share theirs.

        Documents whose text is `left_out` get none.
        Raises UnsupportedOption for an instruction where the model takes none,
        unless the request says to leave it out, and the errors of `truncation.tokenize`.
        """
        instruction = request.instruction
        if instruction and not self._framing.accepts_instruction:
            if not request.ignore_unsupported_options:
                text = "this model takes no instruction"
                raise UnsupportedOption.of("instruction", text, metadata={"option": "instruction"})
            instruction = ""
        frame = self._framing.frame(request.query, instruction, request.truncation, pace)
        positions: dict[str, int] = {}
        for position, document in enumerate(request.documents):
            positions.setdefault(document.text, position)
        for text in left_out:
            positions.pop(text, None)
        if frame.yielding is None:
            groups = [_group(frame, positions, Cutting.of(request, frame.room, frame.ends), pace)]
        else:
            groups = list(_beside_long_query(request, frame, frame.yielding, positions, pace))
        return _assembled(request, frame.query, groups, left_out)


def _group(frame: Frame, positions: Positions, cutting: Cutting, pace: Pace) -> Group:
    """Tokenizes documents that have the same frame."""
    first, texts = list(positions.values()), list(positions)
    if frame.strips:
        texts = [text.strip() for text in texts]
    if frame.ends.lead or frame.ends.tail:
        texts = [frame.ends.lead + text + frame.ends.tail for text in texts]

    def field(index: int) -> str:
        return f"documents[{first[index]}].text"

    tokenized = tokenize(frame.vocabulary, texts, field, cutting, pace)
    return Group(frame, dict(zip(positions, tokenized, strict=True)))


def _beside_long_query(
    request: RerankRequest, frame: Frame, yielding: Yielding, positions: Positions, pace: Pace
) -> Iterator[Group]:
    """Puts each document beside the whole query if it fits there, and beside a part of it otherwise."""
    # A document that may not be cut is refused only by the frame that it gets.
    cuts = request.truncation is not Truncation.NONE
    room = max(frame.room, yielding.count_to) + CUT_MARGIN if cuts else UNBOUNDED
    counted = Cutting.of(request, room, frame.ends)._replace(max_chunks=1)
    fitting: dict[str, TokenizedText] = {}
    others: dict[int, dict[str, int]] = {}
    for text, found in _group(frame, positions, counted, pace).documents.items():
        ((ids, _),), _ = found
        count = len(ids) // TOKEN_BYTES
        if count <= frame.room:
            fitting[text] = found
        else:
            others.setdefault(min(count, yielding.count_to), {})[text] = positions[text]
    if fitting or not others:
        yield Group(frame, fitting)
    for count, texts in others.items():
        other = yielding.frame(count)
        yield _group(other, texts, Cutting.of(request, other.room, other.ends), pace)


def _assembled(
    request: RerankRequest, query: Sequence | None, groups: ListOf[Group], left_out: Collection[str]
) -> TokenizedRequest:
    """Puts its frame around each chunk of each text, and lists the documents in the request's order."""
    sequences = [] if query is None else [query]
    documents = dict.fromkeys(left_out, LEFT_OUT)
    query_truncated = False
    for frame, tokenized in groups:
        query_truncated |= frame.query_truncated
        before, after, segment_start, prefix = frame.before, frame.after, frame.segment_start, frame.prefix
        ends = frame.ends if frame.ends.lead or frame.ends.tail else None
        for text, (parts, truncated) in tokenized.items():
            chunks = []
            for ids, span in parts:
                own = span and _own_span(span, text, frame)
                tokens = ends.count_own(ids) if ends else len(ids) // TOKEN_BYTES
                chunks.append(Chunk(len(sequences), tokens, own))
                sequences.append(Sequence(before + ids + after, segment_start, prefix))
            documents[text] = TokenizedDocument(tuple(chunks), truncated)
    in_order = tuple(map(documents.__getitem__, map(attrgetter("text"), request.documents)))
    return TokenizedRequest(tuple(sequences), in_order, None if query is None else 0, query_truncated)


def _own_span(span: Span, text: str, frame: Frame) -> Span:
    """Moves a span in the tokenized text into the caller's."""
    stripped = len(text) - len(text.lstrip()) if frame.strips else 0
    moved = stripped - len(frame.ends.lead)
    return Span(max(stripped, span.start + moved), span.end + moved)


def tokenizer_for(card: ModelCard, file: TokenizerFile | None = None) -> Tokenizer:
    """Makes the tokenizer of a loaded model, of a file that may be read already; raises ModelLoadError."""
    reading = card.reading
    if card.late is not None:
        return Tokenizer(late_framing(card.tokenizer_file, reading, card.late, card.max_tokens))
    file = file or read_tokenizer(card.tokenizer_file, lower_case=reading.lower_case)
    if reading.prompt is None:
        vocabulary, pairs = file.vocabulary(), card.kind is Kind.CROSS_ENCODER
        if not pairs and not vocabulary.single.overhead:
            raise ModelLoadError(
                f"{card.tokenizer_file}: puts no token around a text, so that an empty one has none: "
                "not supported; use the tokenizer that the model came with"
            )
        framing = PlainFraming(vocabulary, card.max_tokens, pairs=pairs, reading=reading)
        if framing.free_tokens < LEAST_FREE_TOKENS:
            raise ModelLoadError(
                f"{card.tokenizer_file.parent}: {card.max_tokens} tokens are too few for its control tokens "
                "and prompts: correct max_seq_length or model_max_length"
            )
        return Tokenizer(framing)
    prompt = PromptFraming(
        file, reading.prompt, max_tokens=card.max_tokens, shares_prefixes=card.shares_prefixes
    )
    return Tokenizer(prompt)
