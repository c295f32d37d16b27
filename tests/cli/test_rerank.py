"""`rerank-grpc rerank`: which documents it reads, what it says of bad ones, and what it prints."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.cli import main
from rerank_grpc.cli.rerank.progress import ProgressLine
from rerank_grpc.cli.rerank.records import DocumentRecord, ReadingOptions
from rerank_grpc.cli.rerank.sources import read, size_of, sources_of
from rerank_grpc.cli.rerank.whole import FolderSearch
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, fail, hang, scored
from tests.command import Served, environment, run, served
from tests.ports import free_port
from tests.support import wait_for
from tests.terminals import Terminal

QUERY = "what is a panda?"
ANSWER = "A panda is a bear that eats bamboo."
OTHER = "The office is closed."


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer(otherwise=lambda request, _: scored(request))
    server.start()
    yield server
    server.stop()


def ask(server: Served | ScriptedServer, *arguments: str, stdin: str = "") -> tuple[str, str]:
    """Ranks by a server; returns what is printed, and what is said on stderr."""
    done = run("rerank", QUERY, *arguments, "--target", server.target, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def printed(server: Served | ScriptedServer, *arguments: str, stdin: str = "") -> list[dict[str, Any]]:
    """Ranks by a server; returns the results out of JSON lines, where nothing is said on stderr."""
    said, complaint = ask(server, *arguments, "--jsonl", stdin=stdin)
    assert complaint == ""
    return [json.loads(line) for line in said.splitlines()]


def documents(*paths: Path, format: str = "", **options: Any) -> list[DocumentRecord]:
    """Reads the documents of files."""
    reading = ReadingOptions(**options)
    return list(read(sources_of([str(path) for path in paths], format, FolderSearch(reading)), reading))


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# What is read


def test_a_record_of_json_lines_comes_back_with_its_other_fields(server: Served, tmp_path: Path):
    file = written(
        tmp_path / "faq.jsonl",
        lines({"id": 7, "body": OTHER, "index": "mine"}, {"id": "p", "body": ANSWER, "vector": [1, 2]}),
    )
    first, second = printed(server, str(file), "--text-field", "body", "--id-field", "id")
    assert (first["text"], first["file"], first["line"], first["index"]) == (ANSWER, str(file), 2, 1)
    assert (first["id"], first["fields"]) == ("p", {"id": "p", "vector": [1, 2]})
    assert (second["id"], second["fields"]) == ("7", {"id": 7, "index": "mine"})
    assert first["relevance_score"] > second["relevance_score"]


def test_what_is_printed_can_be_ranked_again(server: Served):
    said, _ = ask(server, "-", "--jsonl", stdin=f"{OTHER}\n{ANSWER}\n")
    again = printed(server, "-", "--format", "jsonl", stdin=said)
    assert [result["text"] for result in again] == [ANSWER, OTHER]
    assert again[0]["fields"]["index"] == 1


def test_a_row_of_csv_may_go_over_several_lines(server: Served, tmp_path: Path):
    rows = (
        "id,text,title",
        f'1,"{OTHER}",Office',
        "",
        '2,"A panda\nis a ""bear""",Panda',
        '3,last,"a,b"',
        "",
    )
    text = "\ufeff" + "\r\n".join(rows)
    file = written(tmp_path / "faq.csv", text)
    first, *_ = printed(server, str(file))
    assert (first["text"], first["line"]) == ('A panda\nis a "bear"', 4)
    assert first["fields"] == {"id": "2", "title": "Panda"}
    assert [(each.line, each.fields) for each in documents(file)][2] == (6, {"id": "3", "title": "a,b"})


def test_each_text_file_of_a_directory_is_a_document(server: Served, tmp_path: Path):
    folder = tmp_path / "notes"
    written(folder / "b.txt", f"{ANSWER}\n\nIt is black and white.\n")
    written(folder / "sub/a.md", OTHER)
    written(folder / "sub/image.png", b"\x89PNG\0")
    written(folder / "latin", b"caf\xe9")
    written(folder / "empty", "\n")
    written(folder / ".git/config", "hidden")
    os.mkfifo(folder / "pipe")
    (folder / "sub/round").symlink_to(folder)
    said, complaint = ask(server, str(folder), "--jsonl")
    found = [json.loads(line) for line in said.splitlines()]
    assert [Path(each["file"]).name for each in found] == ["b.txt", "a.md"]
    assert (found[0]["line"], found[0]["text"].count("\n")) == (None, 3)
    assert complaint.count("\n") == 1
    for reason in ("1 hidden", "1 empty", "1 linked directory", "1 not a regular file", "2 not UTF-8 text"):
        assert reason in complaint


def test_files_of_all_formats_are_ranked_together(server: Served, tmp_path: Path):
    files = [
        written(tmp_path / "a.txt", f"{OTHER}\n\nlast\n"),
        written(tmp_path / "b.ndjson", lines({"text": ANSWER})),
        written(tmp_path / "c.csv", "text\nPandas live in China.\n"),
        written(tmp_path / "d/e.jsonl", "one document, whatever it is named").parent,
    ]
    said, complaint = ask(server, *map(str, files))
    assert complaint == ""
    places = [f"{files[0]}:1", f"{files[0]}:3", f"{files[1]}:1", f"{files[2]}:2", str(files[3] / "e.jsonl")]
    assert sorted(line.split()[3] for line in said.splitlines()) == places
    assert said.split()[3] == places[2]


@pytest.mark.parametrize(
    ("format", "expected"),
    [("lines", ["{}", "b"]), ("file", ["{}\nb\n"]), ("", ["{}", "b"])],
)
def test_a_format_may_be_named(tmp_path: Path, format: str, expected: list[str]):
    file = written(tmp_path / "file", "{}\nb\n")
    assert [each.text for each in documents(file, format=format)] == expected


def test_the_shards_of_a_directory_may_be_json_lines(tmp_path: Path):
    for name in ("1", "2"):
        written(tmp_path / "shards" / name, lines({"text": name}))
    assert [each.text for each in documents(tmp_path / "shards", format="jsonl")] == ["1", "2"]


def test_the_options_of_a_request_reach_the_server(scripted: ScriptedServer):
    arguments = ("--instruction", "Judge.", "--min-score", "0.25", "--priority", "batch", "--top-n", "2")
    printed(scripted, "-", *arguments, "--min-calibrated-score", "0.75", stdin="a\nb\n")
    (call,) = scripted.calls
    assert call.request.instruction == "Judge."
    assert (call.request.min_relevance_score, call.request.top_n) == (0.25, 2)
    assert call.request.min_calibrated_score == 0.75
    assert call.request.priority == pb.PRIORITY_BATCH


# Bad input


BAD_LINES = [
    (b"[1]", 'is a list, not an object with "text"'),
    (b'"a"', 'is a string, not an object with "text"'),
    (b"null", 'is null, not an object with "text"'),
    (b'{"txt": "a", "n": 1}', 'has no field "text" (it has "txt", "n"): --text-field names another'),
    (b"{}", 'has no field "text" (it is empty): --text-field names another'),
    (b'{"text": 3}', '"text" is a number, not a string'),
    (b'{"text": null}', '"text" is null, not a string'),
    (b'{"text": "a"', "is not JSON (Expecting ',' delimiter at column 13): a line holds an object"),
    (b'{"text": "a", "n": NaN}', "is not JSON (JSON has no NaN): a line holds an object"),
    (b"[" * 100_000, "is not JSON"),
    (b'{"text": "\xff"}', "is not UTF-8: convert the file by iconv -t UTF-8"),
    (b'{"text": "a\0"}', "holds a NUL byte: is this a text in UTF-8?"),
    (b'{"text": "\\ud800"}', "holds half of a character at 0: escape it by both its surrogates"),
    (b'{"text": "' + b"a" * 100_001 + b'"}', "has 100,001 characters, where a document has at most 100,000"),
]


@pytest.mark.parametrize(("bad", "complaint"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_ends_the_command_or_is_left_out(tmp_path: Path, bad: bytes, complaint: str):
    file = written(tmp_path / "bad.jsonl", b'{"text": "fine"}\n\n' + bad + b'\n{"text": "last"}\n')
    with pytest.raises(ConfigurationError) as caught:
        documents(file)
    assert str(caught.value).startswith(f"{file}:3: {complaint}")
    told: list[str] = []
    assert [each.text for each in documents(file, bad=told.append)] == ["fine", "last"]
    assert told == [str(caught.value)]


FILES = [
    ("a.csv", "", b"id,body\n1,a\n", ':1: has no column "text" (it has "id", "body"): --text-field names'),
    ("a.csv", "", b"id;text\n1;a\n", ":1: its cells are separated by semicolons, where commas are expected"),
    ("a.csv", "", b"text,text\n1,a\n", ':1: has 2 columns "text"'),
    ("a.csv", "", b'text\na\n"never\nclosed\n', ":3: a quote that is opened in this row is not closed"),
    ("a.csv", "", b'text\n"a"b\n', ":2: is not CSV ("),
    ("a.csv", "", b"text\n" + b"a" * 140_000, ":2: a cell has more than 131,072 characters"),
    ("a.csv", "", b"text\n\xff\n", ":2: is not UTF-8"),
    ("a.txt", "", b"\xff\xfea\0", ": is UTF-16: convert it by iconv -t UTF-8"),
    ("none.txt", "", None, "cannot read "),
]


@pytest.mark.parametrize(("name", "format", "content", "complaint"), FILES, ids=range(len(FILES)))
def test_a_file_that_cannot_be_read_further_ends_the_command_in_any_case(
    tmp_path: Path, name: str, format: str, content: bytes | None, complaint: str
):
    file = tmp_path / name if content is None else written(tmp_path / name, content)
    for options in ({}, {"bad": lambda problem: None}):
        with pytest.raises(ConfigurationError) as caught:
            documents(file, format=format, **options)
        start = f"cannot read {file}: no such file" if content is None else f"{file}{complaint}"
        assert str(caught.value).startswith(start)


def test_a_row_with_another_number_of_cells_is_told(tmp_path: Path):
    told: list[str] = []
    file = written(tmp_path / "a.csv", "id,text\n1\n2,b\n3,c,d\n")
    assert [each.text for each in documents(file, bad=told.append)] == ["b"]
    assert told == [f"{file}:{line}: has {n} cells, where the header has 2" for line, n in ((2, 1), (4, 3))]


def test_a_huge_line_is_refused_before_it_fills_the_memory(tmp_path: Path):
    file = written(tmp_path / "huge.jsonl", '{"text": "a"}\n')
    os.truncate(file, 3 << 30)  # a hole: it takes no room on the disk
    with pytest.raises(ConfigurationError, match=r"huge\.jsonl:2: is longer than 67,108,864 bytes"):
        documents(file)
    with pytest.raises(ConfigurationError, match=r"huge\.jsonl: holds a NUL byte"):
        documents(file, format="file")
    text = written(tmp_path / "text", "é" * 200_002)
    with pytest.raises(ConfigurationError, match="has more than the 100,000 characters of a document: split"):
        documents(text, format="file")


def test_a_directory_without_a_text_is_told(tmp_path: Path):
    written(tmp_path / "folder/.hidden", "text")
    with pytest.raises(ConfigurationError, match="the directory has no text file that is not hidden"):
        documents(tmp_path / "folder")


def test_a_file_that_goes_after_it_was_found_is_told(tmp_path: Path):
    for name in ("a", "b"):
        written(tmp_path / "folder" / name, name)
    sources = sources_of([str(tmp_path / "folder")], "", FolderSearch(ReadingOptions()))
    (tmp_path / "folder/a").unlink()
    with pytest.raises(ConfigurationError, match=r"cannot read .*/a: no such file"):
        list(read(sources, ReadingOptions()))
    told: list[str] = []
    assert [each.text for each in read(sources, ReadingOptions(bad=told.append))] == ["b"]
    assert len(told) == 1


def test_bad_documents_are_left_out_only_by_an_option(server: Served, tmp_path: Path):
    file = written(tmp_path / "bad.jsonl", lines({"text": ANSWER}, *[{"no": "text"}] * 12))
    done = run("rerank", QUERY, str(file), "--target", server.target)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    said, complaint = ask(server, str(file), "--skip-bad")
    assert said.endswith(f"1  {ANSWER}\n")
    *each, count = complaint.splitlines()
    assert len(each) == 10
    assert count == "rerank-grpc: warning: left out 12 documents, of which the first 10 are told"
    file.write_text(lines({"no": "text"}))
    done = run("rerank", QUERY, str(file), "--skip-bad", "--target", server.target)
    assert (done.returncode, "no documents: all were left out" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-", "--json", "--jsonl"], "--json prints one object, --jsonl one for each result: choose one"),
        (["-", "-"], "- stands for stdin, which can be read only once"),
        (["-", "--text-field", "body"], "--text-field is for jsonl and csv, and the files are read as lines"),
        (["-", "--min-score", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["-", "--min-score", "nan"], "'nan' is not a number from 0 to 1"),
        (["-", "--min-calibrated-score", "1.1"], "'1.1' is not a number from 0 to 1"),
        (["-", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
):
    assert main(["rerank", QUERY, *arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert complaint in said.err


def test_a_document_that_the_server_refuses_is_told_by_its_place(scripted: ScriptedServer, tmp_path: Path):
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="documents[1].text", description="has too many tokens"
    )
    scripted.otherwise = fail(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason="ERROR_REASON_INVALID_REQUEST",
        details=[error_details_pb2.BadRequest(field_violations=[violation])],
    )
    file = written(tmp_path / "a.jsonl", lines({"text": "a"}) + "\n" + lines({"text": "b"}))
    done = run("rerank", QUERY, str(file), "--target", scripted.target)
    assert done.stderr == f"rerank-grpc: error: {file}:3: has too many tokens\n"


# Terminals, pipes and signals


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Feeds a pipe with documents, one after the other, until it is told to end."""
    pipe, ended = tmp_path / "pipe.jsonl", threading.Event()
    os.mkfifo(pipe)

    def write() -> None:
        writing_end = os.open(pipe, os.O_WRONLY)
        with contextlib.suppress(BrokenPipeError):
            while not ended.wait(0.05):
                os.write(writing_end, lines({"text": ANSWER}).encode())
        os.close(writing_end)

    writing = threading.Thread(target=write)
    writing.start()

    def end() -> None:
        ended.set()
        writing.join()

    yield pipe, end
    end()


def test_a_terminal_shows_how_far_the_reading_is(
    scripted: ScriptedServer, feed: tuple[Path, Callable[[], None]]
):
    pipe, end = feed
    with Terminal(80, 24, "rerank", QUERY, str(pipe), "--target", scripted.target, "--top-n", "1") as screen:
        screen.wait_for(r"^reading  \d+ documents, \d")
        end()
        assert screen.process.wait(20) == 0
        wait_for(lambda: any(ANSWER in line for line in screen.lines))
        assert not any("reading" in line or "scoring" in line for line in screen.lines)


def test_a_bar_shows_the_share_of_files_whose_size_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [written(tmp_path / name, "x" * 500) for name in ("a", "b")]
    total = size_of(sources_of(list(map(str, files)), "", FolderSearch(ReadingOptions())))
    assert total == 1000
    assert size_of(sources_of([str(files[0]), "-"], "", FolderSearch(ReadingOptions()))) == 0
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen, open(theirs, "w", encoding="utf-8") as stream:
        line = ProgressLine(stream, total)
        line.documents = 2
        line.advance(500)

        def is_drawn() -> bool:
            line.advance(0)
            return bool(select.select([screen], [], [], 0)[0])

        wait_for(is_drawn)
        drawn = screen.read(1000).decode().strip()
    assert drawn.startswith("reading  ██████████            50%  2 documents, 500 B of 1")


def test_a_terminal_shows_that_documents_are_scored(scripted: ScriptedServer, tmp_path: Path):
    scripted.otherwise = hang
    file = written(tmp_path / "a.txt", f"{ANSWER}\n")
    with Terminal(80, 24, "rerank", QUERY, str(file), "--target", scripted.target) as screen:
        screen.wait_for("^scoring  1 document, for ")
        assert screen.end(by="\x03") == 128 + signal.SIGINT
        wait_for(lambda: not any("scoring" in line for line in screen.lines))
        assert not any("Traceback" in line for line in screen.lines)


def test_a_terminal_shows_the_share_of_documents_that_are_scored(scripted: ScriptedServer, tmp_path: Path):
    """The first call of three is answered, the others hang."""
    scripted.script.append(lambda request, _: scored(request))
    scripted.otherwise = hang
    path = written(tmp_path / "many.txt", "text\n" * 2_500)
    with Terminal(100, 24, "rerank", QUERY, str(path), "--target", scripted.target) as screen:
        screen.wait_for("^scoring .* (40%  1,000|20%  500) of 2,500 documents, for ")
        assert screen.end(by="\x03") == 128 + signal.SIGINT


def test_a_call_for_each_thousand_documents_has_the_whole_time(scripted: ScriptedServer, tmp_path: Path):
    path = written(tmp_path / "many.txt", "text\n" * 2_500)
    ask(scripted, str(path), "--timeout", "30")
    assert sorted(len(call.request.documents) for call in scripted.calls) == [500, 1_000, 1_000]
    assert all(60 < call.time_remaining < 90.5 for call in scripted.calls)


def test_ctrl_c_ends_the_reading_quietly(scripted: ScriptedServer, feed: tuple[Path, Callable[[], None]]):
    with Terminal(80, 24, "rerank", QUERY, str(feed[0]), "--target", scripted.target) as screen:
        screen.wait_for("^reading ")
        assert screen.end(by="\x03") == 128 + signal.SIGINT
        assert [line for line in screen.lines if line not in ("", "^C")] == []
    assert scripted.calls == []


def test_a_reader_that_leaves_ends_the_results_quietly(scripted: ScriptedServer, tmp_path: Path):
    file = written(tmp_path / "a.jsonl", lines(*[{"text": ANSWER, "more": "x" * 1000}] * 500))
    command = f"{sys.executable} -m rerank_grpc rerank q {file} --jsonl | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(RERANK_TARGET=scripted.target),
    )
    first, status = done.stdout.splitlines()
    assert json.loads(first)["text"] == ANSWER
    assert (status, done.stderr) == (str(128 + signal.SIGPIPE), "")


def test_bad_files_are_told_before_a_server_is_asked(tmp_path: Path):
    file = written(tmp_path / "bad.jsonl", "nothing\n")
    done = run("rerank", QUERY, str(file), "--target", f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{file}:1: is not JSON" in done.stderr
