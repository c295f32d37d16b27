"""The kernels in C neither read nor write beside their arrays, and nothing in them is undefined."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from rerank_grpc.kernels import compiler

DRIVER = Path(__file__).with_name("sanitized.c")
FLAGS = (
    *(
        "-Wall",
        "-Wextra",
        "-Werror",
        "-g",
        "-O0",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ),
    *(flag for flag in compiler.FLAGS if flag.startswith("-m") or flag == "-fopenmp"),
)

has_instructions = pytest.mark.skipif(
    not (torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()),
    reason="the CPU lacks the instructions",
)


def gcc(*arguments: object) -> None:
    """Compiles under the sanitizers for addresses and undefined behaviour."""
    found = shutil.which("gcc")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is missing")
        pytest.skip("needs gcc")
    subprocess.run([found, *FLAGS, *map(str, arguments)], check=True, timeout=200)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, compiled for both tests."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.o"
    gcc("-r", *(each for each in compiler.sources() if each.suffix == ".c"), "-o", path)
    return path


def run(driver: Path, kernels: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    gcc(f"-I{compiler.FOLDER}", driver, kernels, "-lm", "-o", folder / "driver")
    return subprocess.run([folder / "driver"], capture_output=True, text=True, timeout=200)


@has_instructions
def test_random_shapes_pass_under_sanitizers(kernels: Path, tmp_path: Path) -> None:
    done = run(DRIVER, kernels, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"


@has_instructions
def test_the_sanitizers_see_an_array_that_is_one_number_short(kernels: Path, tmp_path: Path) -> None:
    driver = tmp_path / "short.c"
    whole = "numbers(count * 2 * size)"
    text = DRIVER.read_text()
    assert text.count(whole) == 1
    driver.write_text(text.replace(whole, "numbers(count * 2 * size - !!count)"))
    done = run(driver, kernels, tmp_path)
    assert done.returncode
    assert "AddressSanitizer" in done.stderr
    assert " gate_row " in done.stderr
