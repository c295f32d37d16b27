"""Libraries are compiled by bare Python and gcc, the same at every time, and say what they are."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.kernels import compiler
from rerank_grpc.kernels.levels import LEVELS, Level

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_kernels.py"
LEVEL = LEVELS[0]

has_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def build(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script with the standard library alone."""
    return subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, *arguments], capture_output=True, text=True, timeout=100, cwd=cwd
    )


def levels_for(command: str) -> list[Level]:
    machine = subprocess.check_output([command, "-dumpmachine"], text=True).partition("-")[0]
    return [level for level in LEVELS if level.machine == machine]


@has_gcc
def test_a_bare_python_builds_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    levels = levels_for("gcc")
    if not levels:
        pytest.skip("no level is for this machine")
    level, one, two = levels[-1], tmp_path / "one", tmp_path / "two" / "deeper"
    assert build("one", "--level", level.name, cwd=tmp_path).returncode == 0
    assert build(two, "--level", level.name, cwd=tmp_path).returncode == 0
    (path,) = one.iterdir()
    library = path.read_bytes()
    assert path.name == compiler.file_name(level)
    assert library == (two / path.name).read_bytes()
    assert compiler.objection(library, level) == ""
    assert b"libgomp" not in library  # torch's is taken, whatever its name
    assert str(SCRIPT.parent).encode() not in library
    assert len(library) < 200_000


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs aarch64-linux-gnu-gcc")
def test_a_cross_compiler_for_a_machine_without_levels_is_told_so(tmp_path: Path) -> None:
    done = build("out", "--compiler", "aarch64-linux-gnu-gcc", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr == "build_kernels: aarch64-linux-gnu-gcc is for aarch64: no such level\n"


def test_each_level_is_for_a_machine_whose_libraries_are_told_from_others() -> None:
    assert {level.machine for level in LEVELS} == set(compiler.ELF_MACHINES)


def test_a_compiler_that_is_missing_or_fails_is_told_in_a_line(tmp_path: Path) -> None:
    done = build("out", "--compiler", "no-such-cc", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("build_kernels: ")
    assert "no-such-cc" in done.stderr
    failing = build("out", "--compiler", "false", cwd=tmp_path)
    assert failing.returncode == 1
    assert failing.stderr.splitlines()[-1] == "build_kernels: false failed with status 1"
    assert "Traceback" not in done.stderr + failing.stderr
    assert not list(tmp_path.glob("out/*"))


def stamped(contents: bytes, level: Level = LEVEL) -> bytes:
    return compiler._stamped(contents, level)


def elf(machine: int = compiler.ELF_MACHINES[LEVEL.machine]) -> bytes:
    return b"\x7fELF\x02" + bytes(13) + machine.to_bytes(2, "little") + b"code\n" * 9


@pytest.mark.parametrize(
    ("library", "why"),
    [
        (stamped(elf()), ""),
        (b"", "has no stamp"),
        (elf(), "has no stamp"),
        (stamped(elf())[:-9], "is damaged"),
        (stamped(elf())[:40], "has no stamp"),
        (stamped(elf()).replace(b"code", b"cope", 1), "is damaged"),
        (stamped(elf(243)), "is no library for x86_64"),
        (stamped(b"#!/bin/sh\n"), "is damaged"),
        (stamped(elf(), LEVEL._replace(name="avx9")), "is for avx9 on x86_64"),
        (stamped(elf(), LEVEL._replace(machine="riscv64")), f"is for {LEVEL.name} on riscv64"),
        (stamped(elf(), LEVEL._replace(flags=("-O0",))), "is of another version"),
    ],
)
def test_a_library_that_is_not_the_right_one_is_told_from_its_bytes(library: bytes, why: str) -> None:
    assert compiler.objection(library, LEVEL) == why


def test_the_stamp_can_be_read_by_people() -> None:
    *_, line = stamped(elf()).decode("latin1").splitlines()
    digest = hashlib.sha256(elf()).hexdigest()
    assert line == f"rerank-grpc kernels {compiler.digest_of(LEVEL)} {LEVEL.machine} {LEVEL.name} {digest}"


@pytest.mark.parametrize("suffix", [".c", ".h"])
def test_another_source_is_another_version(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stamped(elf())
    for path in compiler.sources():
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiler, "FOLDER", tmp_path)
    assert compiler.objection(before, LEVEL) == ""
    changed = next(path for path in compiler.sources() if path.suffix == suffix)
    changed.write_text(changed.read_text() + "/* changed */\n")
    assert compiler.objection(before, LEVEL) == "is of another version"
