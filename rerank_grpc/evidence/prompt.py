"""The prompt of a model: what stands around query and document, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Slot(Enum):
    """A place in a prompt that a request's text fills."""

    INSTRUCTION = "instruction"
    QUERY = "query"
    DOCUMENT = "document"


# One run of text, of which the tokenizer makes tokens by itself: no token reaches into the next segment.
# Control tokens stand as they are written, in segments without slots only.
Segment: TypeAlias = tuple[str | Slot, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads for one query and one document.

    The document has one place, the query one; the instruction, which has one in `instructed` only, may
    stand in any segment.
    """

    segments: tuple[Segment, ...]  # for a request without an instruction, where there is no default
    source: str  # where it stands: "chat_template.jinja", "catalogue.toml" …
    instructed: tuple[Segment, ...] = ()  # for an instruction; () if the model takes none
    instruction: str = ""  # the default one
    strips: frozenset[Slot] = frozenset()  # the texts that lose the white space around them

    def chosen(self, instruction: str) -> tuple[Segment, ...]:
        """Returns the segments for a request's instruction, "" for the default one."""
        return self.instructed if instruction or self.instruction else self.segments
