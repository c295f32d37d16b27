"""`rerank-grpc verify`: right scores are green and exit 0, wrong ones are red and exit 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rerank_grpc.checkpoints.catalogue import KnownPair
from rerank_grpc.cli import verify
from rerank_grpc.cli.terminal import Screen, cells
from tests.command import run
from tests.conftest import load
from tests.models.test_modernbert import write


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta", "deberta"])
def test_each_family_agrees_with_its_padded_pass(family: str, directories: dict[str, Path]) -> None:
    checks = list(verify.padded(load(directories[family], precision="fp32")))
    assert len(checks) == len(verify.WORDS)
    assert all(check.passed for check in checks)
    assert len({round(check.expected, 3) for check in checks}) >= 5, "texts that score alike prove nothing"


def test_windows_and_vectors_agree_too(tmp_path: Path) -> None:
    assert all(check.passed for check in verify.padded(load(write(tmp_path, "mean"), precision="fp32")))
    assert all(check.passed for check in verify.padded(load("embedded")))


def test_a_pass_that_is_wrong_is_noticed(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = verify.logits
    monkeypatch.setattr(verify, "logits", lambda *given: [logit + 0.01 for logit in right(*given)])
    checks = list(verify.padded(load(directories["bert"], precision="fp32")))
    assert not any(check.passed for check in checks)


def test_a_known_pair_is_compared_by_logit_or_by_score(directories: dict[str, Path]) -> None:
    model = load(directories["bert"], precision="fp32")
    (logit,) = verify.logits(model, "q", ["d"])
    pairs = [
        KnownPair("q", "d", logit=logit),
        KnownPair("q", "d", logit=logit + 0.1),
        KnownPair("q", "d", score=2),
    ]
    assert [check.passed for check in verify.known(model, pairs)] == [True, False, False]


def test_the_command_says_each_difference_and_its_status_says_the_verdict(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "ms-marco-MiniLM-L-6-v2").symlink_to(directories["bert"])
    wrong = run("verify", str(tmp_path / "ms-marco-MiniLM-L-6-v2"), "--precision", "fp32", timeout=100)
    assert wrong.returncode == 1
    assert "How many people live in Berlin? | Berlin had" in wrong.stdout
    assert "8.607138" in wrong.stdout
    assert wrong.stdout.count("WRONG") == 2
    assert wrong.stdout.count(" ok\n") == len(verify.WORDS)
    assert "\x1b" not in wrong.stdout


def test_a_terminal_sees_green_and_red() -> None:
    checks = [verify.Check("熊猫 " * 50, 1.0, 1.0, 1e-3), verify.Check("b", 1.0, float("nan"), 1e-3)]
    head, right, wrong = verify.report(checks, Screen(80, color=True))
    assert right.startswith("\x1b[32m")
    assert wrong.startswith("\x1b[31m")
    assert max(cells(re.sub(r"\x1b\[\d+m", "", line)) for line in (head, right, wrong)) <= 80
