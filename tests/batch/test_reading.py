"""Files of each form are read row by row, damaged ones to the place where they end."""

import gzip
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_grpc.batch import reading
from rerank_grpc.batch.blocks import Size, blocks
from rerank_grpc.batch.reading import Input
from rerank_grpc.batch.rows import BadRow
from rerank_grpc.errors import ConfigurationError
from tests.batch.files import rows, write_lines


def values(path):
    return [each.value for each in Input.of(path).rows()]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.ndjson"])
def test_json_lines_are_read_plain_and_gzipped(tmp_path, name):
    made = rows(50)
    assert values(write_lines(tmp_path / name, made)) == made


def test_parquet_is_read_with_lists_of_texts_and_of_structs(tmp_path):
    made = rows(200)
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == made
    structs = [row | {"documents": [{"id": "d", "text": text} for text in row["documents"]]} for row in made]
    pq.write_table(pa.Table.from_pylist(structs), tmp_path / "b.parquet", row_group_size=7)
    assert values(tmp_path / "b.parquet") == structs


def test_rows_are_numbered_as_lines_and_empty_ones_are_left_out(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": 1}\n\n{"query": 3}\r\n{"query": 4}')
    assert [each.number for each in Input.of(path).rows()] == [1, 3, 4]
    assert not any(each.reason for each in Input.of(path).rows())


def test_a_line_that_cannot_be_decoded_has_the_reason(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"query": \n' + b"\xff\xfe\n" + b"[" * 100_000 + b"\n" + b"1" * 5_000 + b"\n")
    reasons = [each.reason for each in Input.of(path).rows()]
    assert reasons[0].startswith("is not JSON: Expecting value at character")
    assert reasons[1] == "is not UTF-8 at byte 0"
    assert reasons[2].startswith("is not JSON that can be read")
    assert reasons[3].startswith("is not JSON that can be read")


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_LINE", 1_024)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 10_000 + b"\n" + b'{"query": "q"}\n')
    first, second = Input.of(path).rows()
    assert first.reason == "is longer than 0 MiB"
    assert (second.number, second.value) == (2, {"query": "q"})


def test_a_torn_gzip_file_is_told_with_the_last_row(tmp_path):
    path = write_lines(tmp_path / "in.jsonl.gz", rows(500))
    path.write_bytes(path.read_bytes()[:-2_000])
    with pytest.raises(ConfigurationError, match="ends in the middle, after row"):
        values(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        values(path)
    path.write_bytes(gzip.compress(b""))
    assert values(path) == []


def test_a_torn_parquet_file_and_missing_columns_are_told(tmp_path):
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ConfigurationError, match=r"in\.parquet is no readable Parquet file"):
        values(path)
    pq.write_table(pa.table({"query": ["q"], "text": ["x"]}), path)
    with pytest.raises(
        ConfigurationError, match="has the columns query, text: it needs query, and documents"
    ):
        values(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("in.csv", "ends in none of .parquet, .jsonl, .jsonl.gz"), ("gone.jsonl", "no such file")],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, name, reason):
    with pytest.raises(ConfigurationError, match=reason):
        Input.of(tmp_path / name)


def test_blocks_hold_rows_in_order_up_to_a_size(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", rows(100))
    found = list(blocks(Input.of(path).rows(), size=Size(40)))
    assert [row.number for block in found for row in block.rows] == list(range(1, 101))
    assert all(block.pairs >= 40 for block in found[:-1])
    assert [block.number for block in found] == list(range(len(found)))
    assert found[-1].position == 1.0


def test_a_block_is_the_same_at_every_start_and_another_where_its_rows_are(tmp_path):
    made = rows(60)
    first = write_lines(tmp_path / "a.jsonl", made)
    made[50]["documents"][0] += "!"
    second = write_lines(tmp_path / "b.jsonl", made)
    digests = [
        [block.digest for block in blocks(Input.of(path).rows(), size=Size(100))]
        for path in (first, first, second)
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert digests[0][0] == digests[2][0]


def test_a_second_row_of_an_id_is_bad_and_the_first_is_named(tmp_path):
    made = rows(3)
    path = write_lines(tmp_path / "in.jsonl", [*made, made[1], made[2] | {"id": 2}, made[2] | {"id": "2"}])
    (block,) = blocks(Input.of(path).rows(), size=Size())
    assert block.bad == [
        BadRow(4, "q1", "id: row 2 has the same"),
        BadRow(6, "2", "id: row 5 has the same"),
    ]


def test_the_automatic_size_follows_the_devices_batches():
    assert Size.of(100, 2_048) == Size(100)
    assert Size.of(None, 2_048) == Size(50_000, 24 * 4 * 2_048)
    assert Size.of(None, 1 << 30).characters == 32 << 20


READ = r"""
import re, sys
from pathlib import Path
from rerank_grpc.batch.blocks import Size, blocks
from rerank_grpc.batch.reading import Input
count = sum(len(block.rows) for block in blocks(Input.of(Path(sys.argv[1])).rows(), size=Size(2_000)))
print(count, int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path, name):
    peaks = []
    for count in (5_000, 100_000):
        made = [{"id": f"q{n}", "query": f"{n}", "documents": ["x" * 100] * 5} for n in range(count)]
        path = tmp_path / f"{count}{name}"
        if name.endswith("jsonl"):
            write_lines(path, made)
        else:
            pq.write_table(pa.Table.from_pylist(made), path)
        read, peak = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(read) == count
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 48  # MiB; of ids at most 32 are in memory


def test_a_pipe_is_refused_for_it_can_be_read_once_alone(tmp_path):
    os.mkfifo(tmp_path / "in.jsonl")
    with pytest.raises(ConfigurationError, match=r"in\.jsonl is no file: write it to one"):
        Input.of(tmp_path / "in.jsonl")


def test_a_parquet_row_that_is_no_text_is_bad_alone(tmp_path):
    path = tmp_path / "in.parquet"
    offsets, content = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")
    torn = pa.StringArray.from_buffers(2, offsets, content)
    pq.write_table(pa.table({"query": torn, "document": ["x", "y"]}), path)
    first, second = Input.of(path).rows()
    assert first.reason == "is not UTF-8 at byte 0 of a text"
    assert second.value == {"query": "a", "document": "y"}


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["x"]], names=["query", "query", "document"]), path)
    with pytest.raises(ConfigurationError, match="has two columns of one name"):
        values(path)
