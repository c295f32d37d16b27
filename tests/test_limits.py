"""The rule for blank texts, against Unicode's own tables."""

from __future__ import annotations

import sys
import unicodedata

from rerank_grpc.limits import LIMITS, VISIBLE, blank_texts
from rerank_grpc.types import Document
from tests.support import processor_time

# Format characters that are shown: signs before Arabic, Syriac and Kaithi numbers.
SHOWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}


def test_spaces_control_and_format_characters_are_blank_and_letters_signs_and_marks_are_not() -> None:
    wrong = []
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        hidden = category in ("Cc", "Cf", "Zs", "Zl", "Zp") and code not in SHOWN
        if hidden and VISIBLE.search(chr(code)):
            wrong.append(hex(code))
        if category[0] in "NPS" and code != 0x2800 and not VISIBLE.search(chr(code)):
            wrong.append(hex(code))
    assert wrong == []


def test_every_letter_but_the_hangul_fillers_is_visible() -> None:
    letters = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "L")
    assert [hex(ord(letter)) for letter in letters if not VISIBLE.search(letter)] == [
        *("0x115f", "0x1160", "0x3164", "0xffa0"),
    ]


def test_blank_texts_are_collected_once() -> None:
    documents = [Document(text) for text in ("", " ", " ", "a", "\u200b", "\u200b b")]
    assert blank_texts(documents) == {"", " ", "\u200b"}


def test_the_longest_blank_texts_take_no_time_to_speak_of() -> None:
    documents = [Document("\u200b" * LIMITS.characters)] * 28  # as many as fit a message
    with processor_time() as seconds:
        assert len(blank_texts(documents)) == 1
        assert seconds() < 2
