"""The best library that is right and allowed is loaded, and no other; one line says which."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_grpc.cli import main
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.kernels import compiler, device, library, native
from rerank_grpc.kernels.levels import LEVELS, Level, levels_of, processor_features
from rerank_grpc.registry.loading import ModelLoader

HERE = levels_of(platform.machine(), processor_features())
GCC = shutil.which("gcc")
ROOT = Path(__file__).parents[2]

runs = pytest.mark.skipif(not HERE or GCC is None, reason="needs gcc, and a processor with a level")
Lines = Callable[[], list[str]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Lines:
    """Lists the log of a search for a library as at a first start: nothing is kept, and nothing built in."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(library, "BUILT", tmp_path / "built")
    monkeypatch.setattr(library, "_library", library._library.__wrapped__)
    (tmp_path / "built").mkdir()
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.c").write_text(
        '#include "one.h"\n__attribute__((visibility("default"))) int one(void) { return ONE; }\n'
    )
    (sources / "one.h").write_text("#define ONE 1\n")
    monkeypatch.setattr(compiler, "FOLDER", sources)
    if HERE:
        monkeypatch.setenv("RERANK_KERNELS", HERE[0].name)
    caplog.set_level(logging.INFO, "rerank_grpc.kernels")
    return lambda: [record.getMessage() for record in caplog.records if record.name == library.__name__]


def build(level: Level, tmp_path: Path) -> Path:
    assert GCC is not None
    path = tmp_path / "built" / compiler.file_name(level)
    compiler.compile_library(GCC, level, path)
    return path


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home").rglob("*.so"))


@runs
def test_what_is_built_in_needs_no_compiler_no_home_and_no_temporary_folder(
    lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(HERE[0], tmp_path)

    def refused(*_: object, **__: object) -> str:
        raise OSError("there is none")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    monkeypatch.setattr(Path, "home", refused)
    monkeypatch.setenv("PATH", "")
    found = library.library()
    assert found is not None
    assert (found.level, found.functions.one()) == (HERE[0].name, 1)
    assert lines() == [f"kernels {HERE[0].name} (built in)"]


@runs
@pytest.mark.parametrize("wrong", ["version", "level", "machine", "cut", "flipped", "text", "folder"])
def test_what_is_not_right_is_ignored_in_a_line_and_never_loaded(
    wrong: str, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(HERE[0], tmp_path)
    contents = path.read_bytes()
    changes = {
        "version": contents.replace(compiler.digest_of(HERE[0]).encode(), b"0" * 16),
        "level": contents.replace(f" {HERE[0].name} ".encode(), b" other "),
        "machine": contents.replace(f" {HERE[0].machine} ".encode(), b" other "),
        "cut": contents[: len(contents) // 2],
        "flipped": contents.replace(b"ELF", b"ELG"),
        "text": b"no library\n",
    }
    if wrong == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(changes[wrong])
    loaded: list[str] = []
    real = ctypes.CDLL

    class Recording(real):  # type: ignore[misc, valid-type]
        def __init__(self, name: str | None, *arguments: int, **options: int) -> None:
            loaded.append(str(name))
            super().__init__(name, *arguments, **options)

    monkeypatch.setattr(ctypes, "CDLL", Recording)
    found = library.library()
    assert found is not None
    assert found.functions.one() == 1
    assert str(path) not in loaded
    ignored, told = lines()
    assert ignored.startswith(f"{path} ")
    assert ignored.endswith(", and is ignored")
    assert told == f"kernels {HERE[0].name} (compiled)"


@runs
@pytest.mark.parametrize("suffix", [".c", ".h"])
def test_what_is_compiled_is_kept_until_a_source_changes(suffix: str, lines: Lines, tmp_path: Path) -> None:
    assert library.library() is not None
    (first,) = kept(tmp_path)
    when = first.stat().st_mtime_ns
    assert library.library() is not None
    assert [path.stat().st_mtime_ns for path in kept(tmp_path)] == [when]
    changed = compiler.FOLDER / f"one{suffix}"
    changed.write_text(changed.read_text() + "/* changed */\n")
    assert library.library() is not None
    assert len(kept(tmp_path)) == 2
    assert lines() == [f"kernels {HERE[0].name} (compiled)"] * 3


@runs
def test_a_damaged_one_that_was_kept_is_compiled_anew(lines: Lines, tmp_path: Path) -> None:
    assert library.library() is not None
    (path,) = kept(tmp_path)
    # Under another name: the first one is mapped.
    damaged = path.read_bytes()[:100]
    path.unlink()
    path.write_bytes(damaged)
    found = library.library()
    assert found is not None
    assert found.functions.one() == 1
    assert kept(tmp_path) == [path]


@runs
def test_without_a_compiler_a_line_says_what_the_processor_could(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert library.library() is None
    assert native.kernels() is None
    assert lines()[0] == (
        f"no kernels: {HERE[0].name}, which the processor has, is not used "
        f"(no library of it is built in, and there is no C compiler): {library.consequence()}"
    )


@runs
def test_a_broken_compiler_or_source_is_told_in_a_line(
    lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (compiler.FOLDER / "one.c").write_text("this is no C\n")
    assert library.library() is None
    (tmp_path / "gcc").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.library() is None
    broken, failed = lines()
    assert "error: " in broken
    assert "gcc failed" in failed
    assert all(line.endswith(library.consequence()) and "\n" not in line for line in (broken, failed))


@pytest.mark.skipif(len(HERE) < 2 or GCC is None, reason="needs gcc, and a processor with two levels")
def test_a_lower_level_that_is_built_in_stands_in_for_the_best(
    lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(HERE[1], tmp_path)
    monkeypatch.setenv("PATH", "")
    found = library.library()
    assert found is not None
    assert found.level == HERE[1].name
    (line,) = lines()
    assert line.startswith(
        f"kernels {HERE[1].name} (built in): {HERE[0].name}, which the processor has, is not used"
    )


OLDER_GCC = """#!/bin/sh
case " $* " in *" -mamx-int8 "*)
  echo "gcc: error: unrecognized command-line option '-mamx-int8'" >&2
  exit 1
esac
exec {gcc} "$@"
"""


@pytest.mark.skipif(not HERE or HERE[0].name != "amx" or GCC is None, reason="needs gcc, and AMX")
def test_a_compiler_that_does_not_know_the_best_level_compiles_the_next(
    lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gcc").write_text(OLDER_GCC.format(gcc=GCC))
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = library.library()
    assert found is not None
    assert (found.level, found.functions.one()) == (HERE[1].name, 1)
    assert lines() == [
        f"kernels {HERE[1].name} (compiled): {HERE[0].name}, which the processor has, is not used "
        "(gcc: error: unrecognized command-line option '-mamx-int8'): bf16 and int8 run slower"
    ]


@runs
@pytest.mark.parametrize("level", HERE, ids=lambda level: level.name)
def test_the_setting_masks_the_levels_above(
    level: Level, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_KERNELS", level.name)
    found = library.library()
    assert found is not None
    assert found.level == level.name


@runs
def test_a_level_that_the_processor_lacks_is_the_next_lower_one(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = HERE[-1]
    monkeypatch.setattr(library, "processor_features", lambda: lowest.needs)
    monkeypatch.setattr(library, "LEVELS", (LEVELS[0]._replace(name="best"), lowest))
    assert library._levels("best") == (lowest,)
    monkeypatch.setattr(library, "processor_features", frozenset)
    assert library._levels("best") == ()
    assert lines() == [
        f"kernels best are not for this processor, which takes {lowest.name}",
        f"kernels best are not for this processor, which runs without kernels: {library.consequence()}",
    ]


def test_none_means_torchs_operations(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_KERNELS", "none")
    assert native.kernels() is None
    assert lines() == [f"no kernels, as RERANK_KERNELS says: {library.consequence()}"]


def test_another_word_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_KERNELS", "avx9000")
    with pytest.raises(OptionError, match=rf"^RERANK_KERNELS: 'avx9000' is none of .*{LEVELS[-1].name}"):
        native.kernels()


def test_a_processor_without_a_level_is_told_so(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_KERNELS", "auto")
    monkeypatch.setattr(library, "processor_features", frozenset)
    assert library.library() is None
    assert lines() == [f"no kernels: there are none for this processor: {library.consequence()}"]


@pytest.mark.parametrize(
    ("bf16", "int8", "told"),
    [
        (True, True, "bf16 and int8 run slower"),
        (False, True, "int8 runs slower, and bf16 is refused"),
        (True, False, "bf16 runs slower, and int8 is refused"),
        (False, False, "bf16 and int8 are refused"),
    ],
)
def test_what_a_processor_comes_to_without_its_kernels_is_told(
    bf16: bool, int8: bool, told: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "runs_bf16", lambda: bf16)
    monkeypatch.setattr(device, "onednn_int8", lambda: int8)
    monkeypatch.setenv("RERANK_KERNELS", "none")
    assert library.library() is None
    assert lines() == [f"no kernels, as RERANK_KERNELS says: {told}"]


def test_what_loads_models_passes_the_setting_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_KERNELS", LEVELS[0].name)
    ModelLoader(ServerSettings())
    assert os.environ["RERANK_KERNELS"] == LEVELS[0].name
    ModelLoader(ServerSettings(kernels="none"))
    assert native.kernels() is None


LOADING = """
import ctypes, pathlib, sys, torch
def mapped():
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "gomp" in line or "iomp" in line or "/libomp" in line}
before = mapped()
from rerank_grpc.kernels.native import kernels
assert kernels() is not None and len(before) == 1, before
print(*(mapped() - before))
torch.set_num_threads(2)
"""


@runs
def test_the_kernels_share_the_threads_of_torchs_openmp() -> None:
    environment = os.environ | {"RERANK_KERNELS": HERE[0].name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=100, env=environment
    )
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


WITHOUT_BUILT = """
import logging, pathlib, sys
logging.basicConfig(level=logging.INFO)
from rerank_grpc.kernels import compiler, library, native
library.BUILT, compiler.FOLDER = pathlib.Path("/none"), pathlib.Path(sys.argv[1])
print(native.kernels())
"""
NOEXEC = 'mount -t tmpfs -o noexec none "$1" && shift && exec "$@"'


@runs
def test_a_folder_that_runs_nothing_is_told_in_a_line(lines: Lines, tmp_path: Path) -> None:
    namespace = ["unshare", "-rm", "sh", "-c", NOEXEC, "sh"]
    home = tmp_path / "home"
    home.mkdir()
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, home, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs a mount of its own")
    environment = os.environ | {"RERANK_KERNELS": HERE[0].name, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    command = [*namespace, str(home), sys.executable, "-c", WITHOUT_BUILT, str(compiler.FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout == "None\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert "failed to map segment" in line
    assert "noexec" in line


def test_the_flag_wins_over_the_variable_for_the_whole_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RERANK_KERNELS", LEVELS[0].name)
    assert main(["config", "--kernels", "auto"]) == 0
    assert os.environ["RERANK_KERNELS"] == "auto"
    assert main(["serve", "--kernels", "avx9000"]) == 2
    assert "--kernels: 'avx9000' is none of" in capsys.readouterr().err
