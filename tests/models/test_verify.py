"""`rerank-grpc verify`: right scores are green and exit 0, wrong ones are red and exit 1."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rerank_grpc import scores
from rerank_grpc.checkpoints.catalogue import Catalogue, KnownPair
from rerank_grpc.cli import verify
from rerank_grpc.cli.terminal import Screen, cells
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.device import fast_bf16, fast_int8
from rerank_grpc.registry.loading import ModelLoader
from tests import late_models
from tests import random_models as checkpoints
from tests.command import run
from tests.models import test_bi_encoder, test_modernbert
from tests.support import CountingRunner, ScriptedLoader


def bi_encoder(file: str, path: Path, **changes: Any) -> Path:
    """Writes a bi-encoder of which a file says something else."""
    test_bi_encoder.write(path, "bert", "mean")
    test_bi_encoder.change(path / file, **changes)
    return path


has_int8 = pytest.mark.skipif(not (fast_bf16() and fast_int8()), reason="the CPU has no bf16 or no int8")
LOADER = ModelLoader(ServerSettings(device="cpu", precision="fp32"))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta", "deberta"])
def test_each_family_agrees_with_its_padded_pass(family: str, directories: dict[str, Path]) -> None:
    with verify.serving(str(directories[family]), LOADER) as (reranker, card):
        checks = list(verify.padded(reranker, card))
    assert len(checks) == len(verify.LENGTHS)
    assert all(check.passed for check in checks)
    assert len({round(check.expected, 3) for check in checks}) >= 5, "texts that score alike prove nothing"


@pytest.mark.parametrize(
    "write",
    [
        checkpoints.qwen3_reranker,
        late_models.native,
        partial(bi_encoder, "sentence_bert_config.json", do_lower_case=True),
        partial(bi_encoder, "config_sentence_transformers.json", prompts={"query": "query: "}),
    ],
)
def test_a_model_without_a_plain_reference_was_compared_when_it_was_loaded(
    write: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "model"))
    assert verify._verify(path, LOADER, Catalogue(()))
    printed = capsys.readouterr().out
    assert printed.count("compared with transformers' own pass when it was loaded") == 1
    assert printed.endswith(f"{path}: right when it was loaded\n\n")
    assert "WRONG" not in printed


@pytest.mark.parametrize("pooling", ["max", "lasttoken"])
def test_every_pooling_has_its_reference(pooling: str, tmp_path: Path) -> None:
    source = bi_encoder("1_Pooling/config.json", tmp_path / "model", pooling_mode=pooling)
    with verify.serving(str(source), LOADER) as (reranker, card):
        checks = list(verify.padded(reranker, card))
    assert len(checks) == len(verify.LENGTHS)
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_windows_and_vectors_agree_too(tmp_path: Path, pooling: str) -> None:
    sources = (
        test_modernbert.write(tmp_path / "modernbert", pooling),
        test_bi_encoder.write(tmp_path / "bi-encoder", "bert", pooling),
        *(["embedded"] if pooling == "mean" else []),
    )
    for source in sources:
        with verify.serving(str(source), LOADER) as (reranker, card):
            assert all(check.passed for check in verify.padded(reranker, card)), source


def shift_logits(by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every logit of the service wrong."""
    right = scores.best_chunks

    def wrong(*given: Any, **options: Any) -> list[scores.BestChunk]:
        return [best._replace(logit=best.logit + by) for best in right(*given, **options)]

    monkeypatch.setattr("rerank_grpc.reranker.best_chunks", wrong)


def test_a_pass_that_is_wrong_is_noticed(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_logits(0.01, monkeypatch)
    with verify.serving(str(directories["bert"]), LOADER) as (reranker, card):
        checks = list(verify.padded(reranker, card))
    assert not any(check.passed for check in checks)


@has_int8
def test_int8_is_held_to_the_bounds_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ModelLoader(ServerSettings(device="cpu", precision="int8"))
    with verify.serving("embedded", loader) as (reranker, card):
        assert card.precision == "int8"
        assert all(check.passed for check in verify.padded(reranker, card))
        (result,) = verify.scored(reranker, "q", ["d"])
        pairs = [
            KnownPair("q", "d", logit=result.logit + 0.15),
            KnownPair("q", "d", logit=result.logit + 0.25),
            KnownPair("q", "d", score=result.relevance_score + 0.02),
            KnownPair("q", "d", score=result.relevance_score + 0.04),
        ]
        assert [check.passed for check in verify.known(reranker, card, pairs)] == [True, False, True, False]
        shift_logits(0.15, monkeypatch)
        assert not any(check.passed for check in verify.padded(reranker, card))


def test_a_known_pair_is_compared_by_logit_or_by_score(directories: dict[str, Path]) -> None:
    with verify.serving(str(directories["bert"]), LOADER) as (reranker, card):
        (result,) = verify.scored(reranker, "q", ["d"])
        pairs = [
            KnownPair("q", "d", logit=result.logit),
            KnownPair("q", "d", logit=result.logit + 0.1),
            KnownPair("q", "d", score=result.relevance_score),
            KnownPair("q", "d", score=2),
        ]
        checks = list(verify.known(reranker, card, pairs))
    assert [check.passed for check in checks] == [True, False, True, False]


def test_finite_weights_that_overflow_fail_the_warm_up_in_one_line(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(directories["bert"], tmp_path / "model"))
    weights = load_file(directory / "model.safetensors")
    weights["bert.pooler.dense.weight"].zero_()
    weights["bert.pooler.dense.bias"].fill_(30)
    weights["classifier.weight"].fill_(1e38)  # times as many ones as the head has inputs
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError) as failure, verify.serving(str(directory), LOADER):
        pass
    reason = "transformers' own scores are not finite: check config.json, or copy the weights again"
    assert str(failure.value) == f"{directory}: {reason}"


def test_a_score_that_is_not_finite_after_the_warm_up_is_said_in_one_line() -> None:
    loader = ScriptedLoader(CountingRunner(lambda _: None))
    text = "test: a score is not finite: the weights are damaged"
    with pytest.raises(ModelLoadError, match=text), verify.serving("test", loader) as (reranker, _):
        verify.scored(reranker, "q", ["d"])


def test_the_command_says_each_difference_and_its_status_says_the_verdict(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "ms-marco-MiniLM-L-6-v2").symlink_to(directories["bert"])
    wrong = run("verify", str(tmp_path / "ms-marco-MiniLM-L-6-v2"), "--precision", "fp32", timeout=100)
    assert wrong.returncode == 1
    assert "How many people live in Berlin? | Berlin had" in wrong.stdout
    assert "8.607138" in wrong.stdout
    assert wrong.stdout.count("WRONG") == 2
    assert wrong.stdout.count(" ok\n") == len(verify.LENGTHS)
    assert "\x1b" not in wrong.stdout


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    failed = run("verify", str(tmp_path / "nowhere"), timeout=100)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"rerank-grpc: error: {tmp_path}/nowhere: no such directory")


def test_a_terminal_sees_green_and_red() -> None:
    checks = [verify.Check("熊猫 " * 50, 1.0, 1.0, 1e-3), verify.Check("b", 1.0, float("nan"), 1e-3)]
    head, right, wrong = verify.report(checks, Screen(80, color=True))
    assert right.startswith("\x1b[32m")
    assert wrong.startswith("\x1b[31m")
    assert max(cells(re.sub(r"\x1b\[\d+m", "", line)) for line in (head, right, wrong)) <= 80
