"""The kernels in C neither read nor write beside their arrays, and nothing in them is undefined."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rerank_grpc.kernels import compiler
from rerank_grpc.kernels.levels import Level
from tests.kernels.at_level import HERE

DRIVER = Path(__file__).with_name("sanitized.c")
FLAGS = (
    *("-Wall", "-Wextra", "-Werror", "-g", "-O0", "-fopenmp"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)

has_a_level = pytest.mark.skipif(not HERE, reason="the processor has no level")


def gcc(level: Level, *arguments: object) -> None:
    """Compiles for a level, under the sanitizers for addresses and undefined behaviour."""
    found = shutil.which("gcc")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is missing")
        pytest.skip("needs gcc")
    subprocess.run([found, *FLAGS, *level.flags, *map(str, arguments)], check=True, timeout=200)


def compile_kernels(level: Level, folder: Path) -> Path:
    path = folder / "kernels.o"
    gcc(level, "-r", *(each for each in compiler.sources() if each.suffix == ".c"), "-o", path)
    return path


def run(level: Level, driver: Path, kernels: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    gcc(level, f"-I{compiler.FOLDER}", driver, kernels, "-lm", "-o", folder / "driver")
    return subprocess.run([folder / "driver"], capture_output=True, text=True, timeout=200)


@has_a_level
@pytest.mark.parametrize("level", HERE, ids=[level.name for level in HERE])
def test_random_shapes_pass_under_sanitizers(level: Level, tmp_path: Path) -> None:
    done = run(level, DRIVER, compile_kernels(level, tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"


@has_a_level
def test_the_sanitizers_see_an_array_that_is_one_number_short(tmp_path: Path) -> None:
    driver = tmp_path / "short.c"
    whole = "numbers(count * 2 * size)"
    text = DRIVER.read_text()
    assert text.count(whole) == 1
    driver.write_text(text.replace(whole, "numbers(count * 2 * size - !!count)"))
    done = run(HERE[-1], driver, compile_kernels(HERE[-1], tmp_path), tmp_path)
    assert done.returncode
    assert "AddressSanitizer" in done.stderr
    assert " gate_row " in done.stderr
