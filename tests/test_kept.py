"""What is kept is found again, in a folder that nobody else can write to, and nothing else stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rerank_grpc import kept
from rerank_grpc.kept import Kept, cache_folder
from tests.command import environment

HOMELESS = """
from rerank_grpc.kept import Kept, cache_folder
Kept("x").write({"a": 1}, {"b": 2})
print(Kept("x").read({"a": 1}), cache_folder(), sep="\\n", flush=True)
"""
SERVED = "from rerank_grpc.cli.process import Process; Process('info', 'text', 1.0).end(0)"
FULL = """
import resource, sys
from pathlib import Path
from rerank_grpc.kept import Kept
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as on a full disk
Kept("x", folder).write({"a": 1}, {"b": "c" * 1_000})
print(list((folder / "x").iterdir()))
"""


def said(program: str, *arguments: str, home: Path) -> list[str]:
    """What a program says in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env=environment(HOME=str(home)), capture_output=True, check=True, text=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("end", ["", SERVED], ids=["main", "serve"])
def test_without_a_home_a_process_finds_what_it_kept_and_leaves_nothing(end: str, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("")
    found, folder = said(HOMELESS + end, home=home)
    assert found == "{'b': 2}"
    assert home not in Path(folder).parents
    assert not Path(folder).exists()


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    assert said(FULL, str(tmp_path), home=tmp_path) == ["[]"]


@pytest.mark.parametrize("fault", ["", "owner", "mode"])
def test_the_homes_folder_is_used_only_if_nobody_else_can_write_to_it(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = tmp_path / ".cache" / "rerank-grpc"
    assert cache_folder() == folder
    user = os.geteuid()
    if fault == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    if fault == "mode":
        folder.chmod(0o770)
    monkeypatch.setattr(kept, "cache_folder", cache_folder)
    Kept("x").write({"a": 1}, {"b": 2})
    assert Kept("x").read({"a": 1}) == {"b": 2}
    assert (folder / "x").exists() == (not fault)


def test_a_process_without_a_home_has_one_folder_and_can_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(Path, "home", lambda: Path("/proc/1/no/home"))
    kept._temporary_folder.cache_clear()
    try:
        folder = cache_folder()
        assert folder == cache_folder()
        assert folder.parent == tmp_path
        kept.remove_temporary()
        assert not folder.exists()
    finally:
        kept._temporary_folder.cache_clear()


def test_a_fact_that_cannot_be_written_or_is_far_too_large_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, key = Kept("x", tmp_path), {"a": 1}
    with monkeypatch.context() as full:
        full.setattr(Path, "replace", _full)
        facts.write(key, {"b": 2})
    assert facts.read(key) is None
    assert list((tmp_path / "x").iterdir()) == []
    facts.write(key, {"b": 2})
    (path,) = (tmp_path / "x").iterdir()
    path.write_bytes(path.read_bytes() + b" " * kept.LARGEST_FACT)
    assert facts.read(key) is None


def _full(*_: object) -> None:
    raise OSError("no space left on device")


def test_a_process_says_in_one_line_that_nothing_outlives_it_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True)
    (home / ".cache" / "rerank-grpc").touch()
    monkeypatch.setattr(Path, "home", lambda: home)
    kept._temporary_folder.cache_clear()
    try:
        assert cache_folder() == cache_folder()
        (line,) = caplog.messages
        assert line.startswith(f"what is found out is kept in {tmp_path}/rerank-grpc-")
        assert f"{home}/.cache/rerank-grpc cannot be made: " in line
        assert line.endswith("every start is a first one: let HOME be a folder that the user can write to")
    finally:
        kept.remove_temporary()
        kept._temporary_folder.cache_clear()


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/proc/1/no/home"))
    monkeypatch.setattr(tempfile, "tempdir", "/proc/1/no")
    monkeypatch.setattr(kept, "cache_folder", cache_folder)
    kept._temporary_folder.cache_clear()
    try:
        Kept("x").write({"a": 1}, {"b": 2})
        assert Kept("x").read({"a": 1}) is None
        (line,) = caplog.messages
        assert "and no temporary folder either, so every start is a first one" in line
    finally:
        kept._temporary_folder.cache_clear()
