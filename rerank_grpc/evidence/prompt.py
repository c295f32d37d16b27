"""The prompt of a model: what stands around query and document, as data."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from rerank_grpc.errors import ConfigurationError

# The source of prompts that are encoded in parts on purpose, as their models' own code does it.
CATALOGUE = "catalogue.toml"


class Placeholder(Enum):
    """A place in a prompt that a request's text fills."""

    INSTRUCTION = "instruction"
    QUERY = "query"
    DOCUMENT = "document"


# One run of text, of which the tokenizer makes tokens by itself: no token reaches into the next segment.
# Control tokens stand as they are written, in segments without slots only.
Segment: TypeAlias = tuple[str | Placeholder, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text that a model reads for one query and one document.

    The document has one place, the query one; the instruction, which has one in `instructed` only, may
    stand in any segment.
    """

    segments: tuple[Segment, ...]  # for a request without an instruction; () where there is a default one
    source: str  # where it stands: "chat_template.jinja", "catalogue.toml" …
    instructed: tuple[Segment, ...] = ()  # for an instruction; () if the model takes none
    instruction: str = ""  # the default one
    strips: frozenset[Placeholder] = frozenset()  # the texts that lose the white space around them

    def chosen(self, instruction: str) -> tuple[Segment, ...]:
        """Returns the segments for a request's instruction, "" for the default one."""
        return self.instructed if instruction or self.instruction else self.segments


KEYS = ("segments", "instruction", "answers", "strips")


def parse_prompt(table: Mapping[str, Any], where: str, source: str) -> Prompt:
    """Makes the prompt of a catalogue's table, whose segments name their slots in braces.

    `where` begins the messages of errors, and `source` becomes the prompt's. Raises ConfigurationError.
    """
    for key in table:
        if key not in KEYS:
            raise ConfigurationError(f"{where}: unknown key prompt.{key}; known: {', '.join(KEYS)}")
    instruction = table.get("instruction", "")
    if not isinstance(instruction, str):
        raise ConfigurationError(f"{where}: prompt.instruction is not a text")
    texts = _texts(table, "segments", where)
    segments = tuple(_segment(text, f"{where}: prompt.segments[{at}]") for at, text in enumerate(texts))
    slots = [part for segment in segments for part in segment if isinstance(part, Placeholder)]
    for slot in Placeholder:
        if slots.count(slot) != 1 and (slot is not Placeholder.INSTRUCTION or slots.count(slot)):
            raise ConfigurationError(
                f"{where}: prompt.segments: {{{slot.value}}} stands {slots.count(slot)} times instead of once"
            )
    if bool(instruction) != (Placeholder.INSTRUCTION in slots):
        raise ConfigurationError(
            f"{where}: prompt.instruction and a place for {{instruction}} need each other"
        )
    plain, instructed = ((), segments) if instruction else (segments, ())
    return Prompt(plain, source, instructed, instruction, _strips(table, where))


def parse_answers(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Reads the words whose logits make the score, the true one first; raises ConfigurationError."""
    words = _texts(table, "answers", where)
    if len(words) > 2:
        raise ConfigurationError(f"{where}: prompt.answers: {len(words)} words instead of one or two")
    return words


def _strips(table: Mapping[str, Any], where: str) -> frozenset[Placeholder]:
    names = _texts(table, "strips", where) if "strips" in table else ()
    try:
        return frozenset(map(Placeholder, names))
    except ValueError:
        known = ", ".join(slot.value for slot in Placeholder)
        raise ConfigurationError(f"{where}: prompt.strips names another text than {known}") from None


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    found = table.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(each, str) and each for each in found):
        raise ConfigurationError(f"{where}: prompt.{key} is not a list of texts")
    return tuple(found)


def _segment(text: str, where: str) -> Segment:
    """Reads a text with slots in braces; "{{" and "}}" stand for braces."""
    names = {slot.value: slot for slot in Placeholder}
    parts: list[str | Placeholder] = []
    try:
        for literal, name, form, conversion in string.Formatter().parse(text):
            if literal and parts and isinstance(parts[-1], str):
                parts[-1] += literal
            elif literal:
                parts.append(literal)
            if name is not None:
                if form or conversion:
                    raise KeyError(name)
                parts.append(names[name])
    except (KeyError, ValueError):
        known = ", ".join(f"{{{name}}}" for name in names)
        raise ConfigurationError(
            f"{where}: braces stand around {known} only; {{{{ is a brace itself"
        ) from None
    return tuple(parts)
