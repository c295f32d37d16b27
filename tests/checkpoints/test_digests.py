"""The digest of a file is made again when the file has changed, and only then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_grpc import kept
from rerank_grpc.checkpoints import disk
from rerank_grpc.checkpoints.disk import digest_of, sha256_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(disk, "SETTLED_NS", 0)
    return tmp_path / "kept" / "digests"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []

    def reading(path: Path) -> str:
        found.append(path)
        return digest_of(path)

    monkeypatch.setattr(disk, "digest_of", reading)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def rewritten(path: Path) -> None:
    """Writes at a later time, as the file system counts it; what is read earlier is not kept."""
    other = path.with_name("clock")
    while not other.exists() or other.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        other.write_bytes(b"tick")
    path.write_bytes(b"another")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"another")
    other.replace(path)


def test_an_unchanged_file_is_read_once(file: Path, read: list[Path]) -> None:
    assert sha256_of(file) == sha256_of(file) == digest_of(file)
    assert read == [file]


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_a_change_is_noticed_though_size_and_time_are_the_same(
    change: Callable[[Path], None], file: Path, read: list[Path]
) -> None:
    before, times = sha256_of(file), file.stat()
    change(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert sha256_of(file) == digest_of(file) != before
    assert read == [file, file]


def test_a_file_that_has_just_changed_is_read_again(
    file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change might have the same time."""
    monkeypatch.setattr(disk, "SETTLED_NS", 3_600 * 10**9)
    assert sha256_of(file) == sha256_of(file)
    assert read == [file, file]


def test_a_file_that_changes_while_it_is_read_is_not_kept(file: Path, folder: Path) -> None:
    def changing() -> str:
        rewritten(file)
        return "of which half is old"

    disk.kept_digest("sha256", [file], changing)
    assert not folder.exists()
    assert sha256_of(file) == digest_of(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1, "value": {"digest": "0"}}', '{"key"'])
def test_a_damaged_fact_is_ignored_and_written_anew(text: str, file: Path, folder: Path) -> None:
    found = sha256_of(file)
    (fact,) = folder.iterdir()
    whole = fact.read_text()
    for damaged in (text, whole.replace(found, "0" * 64)):
        fact.write_text(damaged)
        assert sha256_of(file) == found
        assert fact.read_text() == whole
