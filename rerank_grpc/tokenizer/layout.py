"""The layout of a prompt: what of it becomes tokens once, for a request, and for a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeAlias

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import has_placeholders
from rerank_grpc.evidence.pasting import filled
from rerank_grpc.evidence.prompt import CATALOGUE, Placeholder, Prompt, Segment
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.truncation import WHOLE, to_bytes, tokenize
from rerank_grpc.tokenizer.vocabulary import TokenizerFile, Vocabulary

Texts: TypeAlias = Mapping[Placeholder, str]

# Documents whose beginnings and ends a tokenizer could join with what stands beside them.
DOCUMENTS = ("word", " word", "\nword", "7 words.", "。深度", "'s", "...", '"quoted"', "(a)\n", "éa b ", "")
# Queries and instructions, likewise.
QUERIES = ("what is a word?", "words ", "7\n", "深度", "")
# The marks by which vocabularies write white space.
_MARKS = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "▁": " "})
# The most characters of a token that can stand before a document and grow together with it.
LONGEST_BEGINNING = 12


class Means(NamedTuple):
    """The means to tokenize segments: fixed ones, and those with a caller's text."""

    file: TokenizerFile
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment or a part of one, as ids if they are the same for all requests."""

    ids: bytes = b""
    segment: Segment = ()
    vocabulary: Vocabulary | None = None

    def ids_for(self, texts: Texts, pace: Pace) -> bytes:
        """Returns its token ids for the texts of a request, as int32."""
        if self.vocabulary is None:
            return self.ids
        text = filled(self.segment, texts)
        (tokenized,) = tokenize(self.vocabulary, [text], lambda _: "query", WHOLE, pace)
        return tokenized.chunks[0][0]


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """A prompt, divided by how often its tokens are made."""

    system: bytes  # the ids of its beginning, the same for all requests
    before: tuple[Piece, ...]  # up to the lead
    lead: Segment  # what becomes tokens together with each document
    tail: Segment  # likewise, behind it
    documents: Vocabulary
    after: tuple[Piece, ...]

    def before_ids(self, texts: Texts, pace: Pace) -> bytes:
        """Returns the ids between system and lead for the texts of a request, as int32."""
        return b"".join([piece.ids_for(texts, pace) for piece in self.before])

    def after_ids(self, texts: Texts, pace: Pace) -> bytes:
        """Returns the ids behind the tail for the texts of a request, as int32."""
        return b"".join([piece.ids_for(texts, pace) for piece in self.after])

    def _ids(self, texts: Texts) -> bytes:
        """Assembles the ids of a request with one document."""
        own = Piece(b"", (*self.lead, Placeholder.DOCUMENT, *self.tail), self.documents)
        parts = (*self.before, own, *self.after)
        return self.system + b"".join([piece.ids_for(texts, UNHURRIED) for piece in parts])

    def gives_whole_text(self, segments: tuple[Segment, ...], file: TokenizerFile) -> bool:
        """Tells whether the ids of all parts are those of the whole text, for a number of texts."""
        return all(
            self._ids(texts) == to_bytes(file.ids("".join(filled(each, texts) for each in segments)))
            for texts in _probes()
        )


def _probes() -> Iterator[Texts]:
    for query, document in product(QUERIES, DOCUMENTS):
        yield {Placeholder.INSTRUCTION: query[::-1], Placeholder.QUERY: query, Placeholder.DOCUMENT: document}


def lay_out(prompt: Prompt, segments: tuple[Segment, ...], first: Means, inside: Means) -> PromptLayout:
    """Divides the segments of a prompt; `inside` tokenizes a text that follows another.

    Raises ModelLoadError if the ids of a template's segments, put together, are not those of the whole text.
    """
    if prompt.source == CATALOGUE:
        return _divided(segments, first, first, inside)
    for others in (first,) if inside is first else (first, inside):
        layout = _divided(segments, first, others, inside)
        if layout.gives_whole_text(segments, first.file):
            return layout
    raise ModelLoadError(
        f"{first.file.path}: gives other tokens for the parts of {prompt.source} than for its whole text: "
        "use the tokenizer that the model came with"
    )


def _divided(segments: tuple[Segment, ...], first: Means, others: Means, inside: Means) -> PromptLayout:
    """Divides segments, of which `first` tokenizes the first one and `others` the rest."""
    fixed = next(at for at, segment in enumerate(segments) if has_placeholders(segment))
    place = next(at for at, segment in enumerate(segments) if Placeholder.DOCUMENT in segment)
    means = [first, *[others] * (len(segments) - 1)]
    pieces = [_piece(segment, own) for segment, own in zip(segments, means, strict=True)]
    at = segments[place].index(Placeholder.DOCUMENT)
    before, tail = segments[place][:at], segments[place][at + 1 :]
    head, lead = _split(before, tail, means[place].vocabulary, inside.vocabulary)
    return PromptLayout(
        system=b"".join([piece.ids for piece in pieces[:fixed]]),
        before=(*pieces[fixed:place], *([_piece(head, means[place])] if head else [])),
        lead=lead,
        tail=tail,
        documents=inside.vocabulary if head else means[place].vocabulary,
        after=tuple(pieces[place + 1 :]),
    )


def _piece(segment: Segment, means: Means) -> Piece:
    if not has_placeholders(segment):
        return Piece(to_bytes(means.file.ids(filled(segment, {}))))
    return Piece(b"", segment, means.vocabulary)


def _split(
    before: Segment, tail: Segment, vocabulary: Vocabulary, inside: Vocabulary
) -> tuple[Segment, Segment]:
    """Splits what stands before the document into a head, which can be tokenized apart, and a short lead."""
    *rest, literal = before or ("",)
    if isinstance(literal, Placeholder):
        return (), before
    for at in range(len(literal), -1, -1):
        head: Segment = (*rest, literal[:at]) if at else tuple(rest)
        lead: Segment = (literal[at:],) if at < len(literal) else ()
        if not head or _are_apart(head, lead, tail, vocabulary, inside):
            return head, lead
    return (), before


def _are_apart(
    head: Segment, lead: Segment, tail: Segment, vocabulary: Vocabulary, inside: Vocabulary
) -> bool:
    """Tells whether a segment has the same tokens when its head and the rest are tokenized apart."""
    rest = (*lead, Placeholder.DOCUMENT, *tail)

    def same(texts: Texts) -> bool:
        apart = _encoded(head, texts, vocabulary) + _encoded(rest, texts, inside)
        return _encoded((*head, *rest), texts, vocabulary) == apart

    return all(map(same, _probes())) and all(map(same, _crossings(head, lead, vocabulary)))


def _crossings(head: Segment, lead: Segment, vocabulary: Vocabulary) -> Iterator[Texts]:
    """Yields a document for each token that begins in a head's last literal and ends in a document."""
    literal = head[-1] if isinstance(head[-1], str) else ""
    ends = tuple(literal[at:] for at in range(max(0, len(literal) - LONGEST_BEGINNING), len(literal)))
    start = "".join(map(str, lead))
    for text in map(_readable, vocabulary.tokenizer.get_vocab()) if ends else ():
        if text.startswith(ends):
            for end in ends:
                if text.startswith(end + start):
                    document = text[len(end + start) :]
                    yield {Placeholder.INSTRUCTION: "", Placeholder.QUERY: "", Placeholder.DOCUMENT: document}


def _readable(token: str) -> str:
    """Returns a token's text, as far as it is ASCII."""
    return token.translate(_MARKS)


def _encoded(segment: Segment, texts: Texts, vocabulary: Vocabulary) -> list[int]:
    return list(vocabulary.tokenizer.encode(filled(segment, texts), add_special_tokens=False).ids)


def literals(segments: Iterable[Segment]) -> list[str]:
    """Lists the texts of segments without slots, in which control tokens stand."""
    return [filled(segment, {}) for segment in segments if not has_placeholders(segment)]
