"""A watched file: however it is replaced, its new content is taken, and none that is half written."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from rerank_grpc.files import watched
from rerank_grpc.files.obstacles import Unfinished
from rerank_grpc.files.watched import LOOK_SECONDS, WatchedFile, WatchedFiles
from tests.support import wait_for


class Taken(list[bytes]):
    """The contents that were taken; one that begins with "bad" is objected to."""

    def __call__(self, content: bytes) -> None:
        if content.startswith(b"bad"):
            raise ValueError("it is bad")
        self.append(content)


def in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def by_rename(path: Path, content: bytes) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(content)
    beside.replace(path)


def by_another_file(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def as_kubernetes_does(path: Path, content: bytes) -> None:
    """Has `..data`, through which the file's link leads, point to another folder."""
    folder = path.with_name(f"..{len(os.listdir(path.parent))}")
    folder.mkdir()
    (folder / path.name).write_bytes(content)
    link = path.with_name("..data_tmp")
    link.symlink_to(folder.name)
    link.replace(path.with_name("..data"))
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        path.symlink_to(f"..data/{path.name}")


def with_the_times_and_the_size_of_the_old_one(path: Path, content: bytes) -> None:
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "replace",
    [in_place, by_rename, by_another_file, as_kubernetes_does, with_the_times_and_the_size_of_the_old_one],
)
def test_a_new_content_is_taken_at_the_second_look(
    tmp_path: Path, replace: Callable[[Path, bytes], None]
) -> None:
    path, taken = tmp_path / "file", Taken()
    path.write_bytes(b"0")
    if replace is as_kubernetes_does:
        replace(path, b"0")
    file = WatchedFile(path, taken)
    for number in range(1, 4):
        for _ in range(3):
            file.look()
        replace(path, b"%d" % number)
        file.look()
        assert taken == [b"%d" % each for each in range(number)]
    for _ in range(3):
        file.look()
    assert taken == [b"0", b"1", b"2", b"3"]


def test_a_content_that_is_being_written_is_not_taken(tmp_path: Path) -> None:
    path, taken = tmp_path / "file", Taken()
    path.write_bytes(b"old")
    file = WatchedFile(path, taken)
    for written in (b"", b"n", b"ne", b"new"):
        path.write_bytes(written)
        file.look()
    assert taken == []
    file.look()
    assert taken == [b"new"]


def removed(path: Path) -> None:
    path.unlink()


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def made_too_large(path: Path) -> None:
    path.write_bytes(b"x" * (2 << 20))


def made_bad(path: Path) -> None:
    path.write_bytes(b"bad")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (removed, "no such file"),
        (made_a_folder, "is a directory where a file is expected"),
        (made_a_dangling_link, "is a link to nowhere, which is not there"),
        (made_too_large, "it has more than 1,048,576 bytes"),
        (made_bad, "it is bad"),
    ],
)
def test_a_file_that_gives_nothing_is_told_once_and_again_when_it_is_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], says: str
) -> None:
    path, taken = tmp_path / "file", Taken()
    path.write_bytes(b"old")
    file = WatchedFile(path, taken)
    file.look()
    file.look()
    caplog.set_level(logging.INFO)
    spoil(path)
    for _ in range(5):
        file.look()
    (line,) = caplog.messages
    assert line.startswith(f"{path} is not read again, and what it held before stays in force: {says}")
    (told,) = map(vars, caplog.records)  # a log in JSON has the fields in place of the sentence
    assert (told["event"], told["path"]) == ("file_refused", str(path))
    assert told["error"].startswith(says)
    if path.is_dir():
        path.rmdir()
    by_rename(path, b"old")
    for _ in range(5):
        file.look()
    assert caplog.messages[1:] == [f"{path} is read again"]
    assert taken == [b"old", b"old"]


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Callable[[Path, Callable[[bytes], None]], WatchedFile]]:
    started: list[WatchedFile] = []

    def start(path: Path, take: Callable[[bytes], None]) -> WatchedFile:
        file = WatchedFile(path, take)
        file.start()
        started.append(file)
        return file

    yield start
    for file in started:
        file.stop()


def test_a_thread_looks_until_it_is_stopped(
    tmp_path: Path, watching: Callable[[Path, Callable[[bytes], None]], WatchedFile]
) -> None:
    path, came = tmp_path / "file", threading.Event()
    path.write_bytes(b"x")
    others = set(threading.enumerate())
    file = watching(path, lambda _: came.set())
    assert came.wait(60)
    file.stop()  # which waits for no look that hangs
    wait_for(lambda: set(threading.enumerate()) <= others)


def test_an_unforeseen_error_is_told_once_and_the_next_looks_go_on(
    tmp_path: Path,
    watching: Callable[[Path, Callable[[bytes], None]], WatchedFile],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, tries, taken = tmp_path / "file", [MemoryError(), MemoryError("canary")], threading.Event()
    path.write_bytes(b"canary")

    def take(content: bytes) -> None:
        if tries:
            raise tries.pop()
        taken.set()

    caplog.set_level(logging.INFO)
    file = watching(path, take)
    assert taken.wait(60)
    wait_for(lambda: len(caplog.messages) > 1)  # the second is told behind the taking
    file.stop()
    refused, well = caplog.messages
    assert refused.startswith(
        f"{path} is not read again, and what it held before stays in force: MemoryError"
    )
    assert well == f"{path} is read again"
    assert "canary" not in caplog.text


def test_a_pipe_gives_its_content_once_and_is_not_watched(
    tmp_path: Path, watching: Callable[[Path, Callable[[bytes], None]], WatchedFile]
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    others = set(threading.enumerate())
    watching(path, Taken())
    assert set(threading.enumerate()) <= others


def test_a_pipe_in_the_files_place_blocks_nothing(tmp_path: Path) -> None:
    path, taken = tmp_path / "file", Taken()
    path.write_bytes(b"old")
    file = WatchedFile(path, taken)
    path.unlink()
    os.mkfifo(path)
    file.look()
    assert taken == []


def test_two_looks_are_within_two_seconds() -> None:
    assert 3 * LOOK_SECONDS <= 2


class Fitting(list[tuple[bytes, ...]]):
    """The contents of two files that were taken; those that are not the same seem to be on their way."""

    def __call__(self, contents: Sequence[bytes]) -> None:
        if contents[0] != contents[1]:
            raise Unfinished("they do not fit")
        self.append(tuple(contents))


def test_files_that_belong_together_are_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    one, two, objections = tmp_path / "one", tmp_path / "two", list[str]()
    in_place(one, b"old")
    in_place(two, b"old")
    taken = Fitting()
    files = WatchedFiles([one, two], taken, lambda: objections.append("refused"))

    def look(times: int = 2) -> None:
        for _ in range(times):
            files.look()

    look()
    by_rename(one, b"new")
    look(20)
    assert (taken, objections, caplog.messages) == ([(b"old", b"old")], [], [])
    by_rename(two, b"new")
    look()
    assert taken.pop() == (b"new", b"new")
    by_rename(one, b"newer")
    look()
    monkeypatch.setattr(watched, "UNFINISHED_SECONDS", 0.0)
    look()
    assert objections == ["refused"]
    assert caplog.messages == [
        f"{one} and {two} is not read again, and what it held before stays in force: they do not fit"
    ]
    two.unlink()
    look()
    assert objections == ["refused"] * 2
    assert f": {two}: no such file or directory" in caplog.messages[1]
    in_place(two, b"newer")
    look()
    assert taken.pop() == (b"newer", b"newer")
