"""The tokens around the texts of late interaction, and those that fill a query up."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import normalizers

from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import original_tokenizer
from rerank_grpc.evidence.facts import LateInteraction, Reading
from rerank_grpc.sequence import TOKEN_BYTES, Sequence
from rerank_grpc.tokenizer.frames import REMEMBERED_CHARACTERS, REMEMBERED_QUERIES, Frame
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.truncation import Cutting, Ends, to_bytes, tokenize
from rerank_grpc.tokenizer.vocabulary import Vocabulary, read_tokenizer
from rerank_grpc.types import Truncation

# Texts by which a load proves that a prefix and a text become the tokens of the model's own tokenizer.
PROBES = ("", "What is a List?", " leading space", "Ünïcode 字", "1", "- item")


class Marker(NamedTuple):
    """The prefix of one side: a token that no text can become, and text that is tokenized with the text."""

    token: str = ""  # "" for none
    text: str = ""


class Side(NamedTuple):
    """The surroundings of the texts of one side, and how many of their tokens fit."""

    before: bytes
    text: str
    free_tokens: int


def late_framing(
    tokenizer_file: Path, reading: Reading, late: LateInteraction, max_tokens: int
) -> LateFraming:
    """Reads a tokenizer.json and makes the framing of its model.

    Raises ModelLoadError, also where a prefix would join the text behind it.
    """
    if late.expanded_tokens > max_tokens:
        raise ModelLoadError(
            f"{tokenizer_file.parent}: fills queries up to {late.expanded_tokens} tokens, and the model "
            f"reads {max_tokens}: correct the length of the expansion"
        )
    prefixes = reading.query_prefix, reading.document_prefix
    inserted = prefixes if late.inserts_prefixes else ()
    original = _original(tokenizer_file, inserted, lower_case=reading.lower_case)
    markers = [_marker(original, prefix) for prefix in prefixes]
    written = {marker.token for marker in markers} - {""}
    vocabulary = read_tokenizer(tokenizer_file, lower_case=reading.lower_case).vocabulary(written)
    query, document = (
        _side(vocabulary, original, marker, min(limit or max_tokens, max_tokens))
        for marker, limit in zip(markers, (late.query_tokens, late.document_tokens), strict=True)
    )
    for side, prefix in ((query, prefixes[0]), (document, prefixes[1])):
        if side.free_tokens - Ends.of(vocabulary, side.text).tokens < 1:
            raise ModelLoadError(
                f"{tokenizer_file.parent}: its limits and prefixes leave no token to a text: correct them"
            )
        _prove(vocabulary, original, side, prefix, tokenizer_file)
    fill = _expansion_id(original, late, tokenizer_file) if late.expanded_tokens else 0
    return LateFraming(vocabulary, query, document, late, fill)


def _side(vocabulary: Vocabulary, original: tokenizers.Tokenizer, marker: Marker, limit: int) -> Side:
    number = original.token_to_id(marker.token)
    token = [] if number is None else [number]
    before = vocabulary.single.prefix.tobytes() + to_bytes(token)
    return Side(before, marker.text, limit - vocabulary.single.overhead - len(token))


class LateFraming:
    """Frames of late interaction: each text stands alone, behind its side's prefix; queries are filled up."""

    accepts_instruction = False

    def __init__(
        self, vocabulary: Vocabulary, query: Side, document: Side, late: LateInteraction, expansion: int
    ) -> None:
        self._vocabulary = vocabulary
        self._query_side = query
        self._document_side = document
        self._document_ends = Ends.of(vocabulary, document.text)
        self._after = vocabulary.single.suffix.tobytes()
        self._expanded_tokens = late.expanded_tokens
        self._attends = late.attends_expansion
        self._expansion = to_bytes([expansion])
        self._remembered = functools.lru_cache(REMEMBERED_QUERIES)(self._query)

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Frames a document by its prefix, and makes the query's sequence; there is no instruction."""
        if len(query) <= REMEMBERED_CHARACTERS:
            alone, truncated = self._remembered(query, truncation)
        else:
            alone, truncated = self._query(query, truncation, pace)
        before, _, free_tokens = self._document_side
        return Frame(
            self._vocabulary,
            free_tokens,
            before,
            self._after,
            ends=self._document_ends,
            query=alone,
            query_truncated=truncated,
        )

    def _query(self, query: str, truncation: Truncation, pace: Pace = UNHURRIED) -> tuple[Sequence, bool]:
        """Makes the query's sequence, and tells whether tokens were left out."""
        before, lead, free_tokens = self._query_side
        cutting = Cutting(free_tokens, free_tokens, truncation)
        (tokenized,) = tokenize(self._vocabulary, [lead + query], lambda _: "query", cutting, pace)
        ids = before + tokenized.chunks[0][0] + self._after
        missing = max(0, self._expanded_tokens - len(ids) // TOKEN_BYTES)
        unseen = 0 if self._attends else missing
        sequence = Sequence(ids + missing * self._expansion, unseen=unseen, is_query=True)
        return sequence, tokenized.truncated


def _original(tokenizer_file: Path, inserted: tuple[str, ...], *, lower_case: bool) -> tokenizers.Tokenizer:
    """Reads the model's own tokenizer, in which the inserted prefixes that it knows are control tokens.

    As in sentence-transformers, a prefix is known as a whole or by its first word.
    """
    original = original_tokenizer(tokenizer_file)
    if lower_case:
        steps = [normalizers.Lowercase(), original.normalizer]
        original.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    for prefix in inserted:
        names = [name for name in (prefix, *prefix.split()[:1]) if name.strip()]
        known = next((name for name in names if original.token_to_id(name) is not None), None)
        if known and original.encode(known, add_special_tokens=False).tokens != [known]:
            original.add_special_tokens([tokenizers.AddedToken(known, normalized=False, special=True)])
    return original


def _marker(original: tokenizers.Tokenizer, prefix: str) -> Marker:
    """Splits a prefix behind the added token that it begins with, if any."""
    added = {number: token.content for number, token in original.get_added_tokens_decoder().items()}
    encoding = original.encode(prefix, add_special_tokens=False)
    if not encoding.ids or encoding.ids[0] not in added:
        return Marker(text=prefix)
    token = added[encoding.ids[0]]
    return Marker(token, prefix.removeprefix(token)) if prefix.startswith(token) else Marker(text=prefix)


def _prove(
    vocabulary: Vocabulary, original: tokenizers.Tokenizer, side: Side, prefix: str, tokenizer_file: Path
) -> None:
    """Raises ModelLoadError unless probes behind a prefix become the tokens of the model's own tokenizer."""
    after = vocabulary.single.suffix.tobytes()
    for probe in PROBES:
        ids = vocabulary.tokenizer.encode(side.text + probe, add_special_tokens=False).ids
        if side.before + to_bytes(ids) + after != to_bytes(original.encode(prefix + probe).ids):
            raise ModelLoadError(
                f"{tokenizer_file}: {prefix[:40]!r} and the text behind it become other tokens here than by "
                "the model's own tokenizer: use another checkpoint"
            )


def _expansion_id(original: tokenizers.Tokenizer, late: LateInteraction, tokenizer_file: Path) -> int:
    """Looks up the token that fills a query up; raises ModelLoadError if there is none."""
    token = late.expansion_token
    if token is None:
        token = _named(tokenizer_file.parent, "mask_token") or _named(tokenizer_file.parent, "eos_token")
    number = None if token is None else original.token_to_id(token)
    # Some networks give padding no position of its own.
    if number is None or token == _named(tokenizer_file.parent, "pad_token"):
        raise ModelLoadError(
            f"{tokenizer_file}: has no fitting token ({token or 'mask_token'}) to fill queries up with: "
            "use the tokenizer that the model came with"
        )
    return number


def _named(directory: Path, role: str) -> str | None:
    """Reads which token has a role, by the first file that says it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = directory / name
        found = read_json(path).get(role) if path.is_file() else None
        if found:
            return str(found["content"]) if isinstance(found, dict) else str(found)
    return None
