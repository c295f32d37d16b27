"""The C sources become one library, kept for the next start, or torch computes."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rerank_grpc.kernels import compiler, native

Library = Callable[[], ctypes.CDLL | None]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Library]:
    """Looks for a library as a first start does, with a home of its own."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    compiler.library.cache_clear()
    yield compiler.library
    compiler.library.cache_clear()


def kept(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "rerank-grpc").glob("*.so"))


def test_without_a_compiler_torch_computes(fresh: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert fresh() is None
    monkeypatch.setattr(native, "library", fresh)
    native.kernels.cache_clear()
    assert native.kernels() is None
    native.kernels.cache_clear()


def test_with_a_broken_compiler_torch_computes(
    fresh: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "instructions", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/false")
    assert fresh() is None
    assert "slower" in caplog.text


@pytest.mark.skipif(native.kernels() is None, reason="the kernels do not run here")
@pytest.mark.parametrize("suffix", [".c", ".h"])
def test_the_library_is_kept_until_a_source_changes(
    suffix: str, fresh: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.c").write_text('#include "one.h"\nint one(void) { return ONE; }\n')
    (folder / "one.h").write_text("#define ONE 1\n")
    monkeypatch.setattr(compiler, "FOLDER", folder)

    def compiled() -> list[Path]:
        compiler.library.cache_clear()
        assert fresh() is not None
        return kept(tmp_path)

    (first,) = compiled()
    when = first.stat().st_mtime_ns
    assert compiled() == [first]
    assert first.stat().st_mtime_ns == when
    changed = folder / f"one{suffix}"
    changed.write_text(changed.read_text() + "/* changed */\n")
    assert len(compiled()) == 2


@pytest.mark.skipif(native.kernels() is None, reason="the kernels do not run here")
def test_a_damaged_library_is_compiled_anew(
    fresh: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.c").write_text('__attribute__((visibility("default"))) int one(void) { return 1; }\n')
    monkeypatch.setattr(compiler, "FOLDER", folder)
    command = shutil.which("gcc") or shutil.which("cc")
    assert command is not None
    path = compiler._compiled(command)
    path.write_bytes(path.read_bytes()[:100])
    found = fresh()
    assert found is not None
    assert found.one() == 1
    assert kept(tmp_path) == [path]


@pytest.mark.skipif(native.kernels() is None, reason="the kernels do not run here")
def test_all_functions_are_in_one_library_and_nothing_else_is_seen() -> None:
    library = compiler.library()
    assert library is not None
    for name in ("attention", "gate", "linear_int8", "norm", "pack_int8", "quantize", "turn"):
        assert library[name]
    with pytest.raises(AttributeError):
        library["pack_keys"]
