"""Proves by probes that a template does no more than to paste its texts, and finds where it puts them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.prompt import Placeholder, Segment
from rerank_grpc.evidence.rendering import Rendered, constants

Filling: TypeAlias = Mapping[Placeholder, str]

MARK_DIGITS = 30
LONGEST_CONSTANT = 100_000  # a length in a template's code that is still probed, in characters
MOST_CONSTANTS = 500
MOST_CHARACTERS = 2_000_000  # of all probes that are made of constants

# Texts that templates are known to change: by trim, lower, escape, truncate (at 255), wordwrap (at 79) …
PROBES = (
    *("", " ", "\n\n", "word", " a  b\n", "\n\t a \u3000\u00a0", "\x0b\x1c x \u2028"),
    *("{{ messages }}{% raw %}{# x #}", 'it\'s "quoted" <b>&amp;</b> \\n %s {0}', "MiXed İß", "0", "None"),
    *(
        "<|im_end|>\n<|im_start|>system\nx<|im_end|>\n",
        "</think> x <think>\n\n</think>",
        "[1, 2]",
        '{"a": 1}',
    ),
    *("深度学习，東京。", "👩\u200d🔬 e\u0301\r\nx", "https://example.org/a.png", "line\n" * 40),
    *("word " * 2_000, "x" * 20_000),
)


class Pasting(NamedTuple):
    """A template's text with places for its texts, and which of these lose the white space around them."""

    text: Segment
    strips: frozenset[Placeholder]


def probes(slots: Sequence[Placeholder], source: str, where: str) -> list[Filling]:
    """Makes the fillings to render: first marks, which occur nowhere else, then probes beside marks.

    The texts and lengths that the template's code holds are probes too: it may compare with them. There is
    no empty system message: without an instruction none is sent. Raises ModelLoadError for more than
    MOST_CONSTANTS.
    """
    marks = {slot: f"7{secrets.randbelow(10**MARK_DIGITS):0{MARK_DIGITS}}" for slot in slots}
    one = [{**marks, slot: probe} for slot in slots for probe in PROBES]
    all_at_once = [dict.fromkeys(slots, probe) for probe in _constant_probes(source, where)]
    return [marks, *(each for each in one + all_at_once if each.get(Placeholder.INSTRUCTION) != "")]


def pasting(fillings: Sequence[Filling], rendered: Sequence[Rendered], where: str) -> Pasting:
    """Reads off where a template puts its texts; raises ModelLoadError unless it only pastes them."""
    if rendered[-1].failure:
        raise _refusal(where, rendered[-1].failure)
    text = _split(rendered[0].text, fillings[0], where)
    strips = frozenset(
        slot
        for filling, (found, _) in zip(fillings, rendered, strict=True)
        for slot in filling
        if filled(text, filling) != found == filled(text, filling, frozenset((slot,)))
    )
    for filling, (found, _) in zip(fillings, rendered, strict=True):
        if filled(text, filling, strips) != found:
            raise _refusal(where, f"changes {_changed(filling, fillings[0])}")
    return Pasting(text, strips)


def filled(
    text: Iterable[str | Placeholder], filling: Filling, strips: frozenset[Placeholder] = frozenset()
) -> str:
    """Fills texts into their places."""
    parts = []
    for part in text:
        value = filling[part] if isinstance(part, Placeholder) else part
        parts.append(value.strip() if part in strips else value)
    return "".join(parts)


def _constant_probes(source: str, where: str) -> list[str]:
    found = constants(source)
    words = [value for value in found if isinstance(value, str)]
    lengths = {value for value in found if isinstance(value, int) and 1 < value <= LONGEST_CONSTANT}
    near = sorted({length + more for length in lengths for more in (-1, 0, 1)})
    if len(words) + len(near) > MOST_CONSTANTS:
        raise _refusal(where, f"knows more than {MOST_CONSTANTS} texts and numbers")
    if sum(near) > MOST_CHARACTERS:
        raise _refusal(where, "knows more and larger numbers than can be tried as lengths")
    return words + ["x" * length for length in near]


def _split(text: str, marks: Filling, where: str) -> Segment:
    """Cuts a text at its marks."""
    for slot, mark in marks.items():
        count = text.count(mark)
        if count != 1:
            said = f"writes {_name(slot)} {count} times" if count else f"drops {_name(slot)}"
            raise _refusal(where, said)
    parts: list[str | Placeholder] = []
    for slot in sorted(marks, key=lambda slot: text.index(marks[slot])):
        before, _, text = text.partition(marks[slot])
        parts += [before, slot]
    return tuple(part for part in [*parts, text] if part)


def _changed(filling: Filling, marks: Filling) -> str:
    slots = [slot for slot in filling if filling[slot] != marks[slot]]
    example = filling[slots[0]]
    said = f"{example[:30]!r} …" if len(example) > 30 else repr(example)
    return f"{_name(slots[0]) if len(slots) == 1 else 'its texts'} ({said} comes out otherwise)"


def _name(slot: Placeholder) -> str:
    return "the system message" if slot is Placeholder.INSTRUCTION else f"the {slot.value}"


def _refusal(where: str, said: str) -> ModelLoadError:
    return ModelLoadError(
        f"{where}: {said}, which is not supported: use a checkpoint whose template only puts query and "
        "document into a text"
    )
