"""Lines of text, read within bounds."""

import codecs
import io

import pytest

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files import lines
from rerank_grpc.files.lines import read_lines


def read(data: bytes):
    return list(read_lines(io.BytesIO(data), "a.txt"))


def test_lines_come_with_their_numbers_ends_and_sizes():
    assert read("é\r\n\nlast".encode()) == [(1, "é\r\n", 4, ""), (2, "\n", 1, ""), (3, "last", 4, "")]


def test_a_byte_order_mark_is_left_out_before_the_first_line_alone():
    mark = codecs.BOM_UTF8
    first, second = read(mark + b"a\n" + mark + b"b")
    assert (first.text, first.size, second.text) == ("a\n", 5, "\ufeffb")


def test_a_line_that_is_no_text_says_why_and_the_next_is_read():
    assert [(line.text, line.problem.partition(":")[0]) for line in read(b"\xe9\na\0\nb\n")] == [
        ("", "is not UTF-8"),
        ("", "holds a NUL byte"),
        ("b\n", ""),
    ]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_a_stream_in_utf_16_is_refused(mark: bytes):
    with pytest.raises(ConfigurationError, match=r"^a\.txt: is UTF-16: convert it by iconv -t UTF-8$"):
        read(mark + b"a\0")


def test_a_line_above_the_bound_is_refused_and_its_end_is_not_looked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 8)
    stream = io.BytesIO(b"12345678"[:7] + b"\n" + b"x" * 1_000)
    with pytest.raises(ConfigurationError, match=r"^a\.txt:2: is longer than .*: is this a file of lines\?$"):
        list(read_lines(stream, "a.txt"))
    assert stream.tell() == 8 + 9
