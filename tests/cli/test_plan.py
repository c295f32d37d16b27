"""`rerank-grpc plan`: the need of a model, told without loading it, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rerank_grpc.cli import main
from rerank_grpc.config.allowance import MemoryLimit
from rerank_grpc.kernels import library
from rerank_grpc.kernels.device import int8_by_features
from rerank_grpc.registry import needs
from tests import random_models

MIB, GIB = 1 << 20, 1 << 30


def limited(monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    limit = None if most is None else MemoryLimit(most, most, "this container")
    monkeypatch.setattr(needs, "memory_limit", lambda: limit)


def test_a_model_that_fits_is_told_with_its_parts(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limited(monkeypatch, 4 * GIB)
    assert main(["plan", str(directories["bert"]), "--device", "cpu", "--precision", "fp32"]) == 0
    told = capsys.readouterr().out
    assert "in fp32 on cpu" in told
    assert [line.split()[0] for line in told.splitlines() if line[:2] in ("fi", "at", "un")] == [
        "first",
        "at",
        "under",
    ]
    assert told.endswith("It fits: this container may use 4.0 GiB.\n")


def test_a_model_that_does_not_fit_ends_with_status_1(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limited(monkeypatch, 256 * MIB)
    assert main(["plan", str(directories["bert"]), "--device", "cpu"]) == 1
    assert "It does not fit: this container may use 256.0 MiB." in capsys.readouterr().out


def test_machines_get_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limited(monkeypatch, None)
    given = [
        "plan",
        str(random_models.qwen3_reranker(tmp_path)),
        "--device=cpu",
        "--precision=int8",
        "--json",
    ]
    assert main([*given, "--max-batch-tokens=512"]) == 0
    told = json.loads(capsys.readouterr().out)
    parts = told["parts"]
    assert (told["precision"], told["device"], told["limit"], told["fits"]) == ("int8", "cpu", None, True)
    assert told["rest"] == parts["process"] + parts["weights"] + parts["heap"]
    assert told["peak"] == told["rest"] + parts["prefixes"] + parts["batch"] + parts["queued"]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["batch"] > parts["batch"]


def test_the_kernels_are_neither_compiled_nor_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loads(allowed: str) -> None:
        raise AssertionError(allowed)

    monkeypatch.setattr(library, "_library", loads)
    given = ["plan", str(random_models.qwen3_reranker(tmp_path)), "--device=cpu", "--precision=int8"]
    status = main(given)
    if int8_by_features("auto"):
        assert status == 0
        assert "in int8 on cpu" in capsys.readouterr().out
    else:
        assert "use fp32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["no-such-model"], 1, "no-such-model: no such directory"),
        (["acme/absent"], 1, "its files are not on this machine: 'rerank-grpc download acme/absent'"),
        (["embedded", "--precision", "fp64"], 2, "--precision"),
        ([], 2, "MODEL"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_damaged_weights_are_named(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in directories["bert"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["plan", str(tmp_path), "--device=cpu"]) == 1
    assert f"{weights}: has" in capsys.readouterr().err
