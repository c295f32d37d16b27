"""Lower precisions are compared with fp32 by order and by logits, and the texts for it are read with care."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_grpc.cli import compare, verify
from rerank_grpc.cli.compare import Ranking
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError, ModelLoadError
from rerank_grpc.kernels import device
from rerank_grpc.kernels.device import fast_bf16, fast_int8
from rerank_grpc.models import loader
from rerank_grpc.registry import loading, memory
from tests import random_models as checkpoints
from tests.command import run

has_int8 = pytest.mark.skipif(not (fast_bf16() and fast_int8()), reason="the CPU has no bf16 or no int8")


def test_equal_logits_differ_in_nothing() -> None:
    logits = [[3.0, 1.0, 2.0], [0.5, -0.5]]
    assert compare.compare(logits, logits) == (1.0, 1.0, 2, 2, 0.0, 0.0)


def test_a_reversed_order_is_told() -> None:
    found = compare.compare([[3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0]])
    assert (found.tau, found.top, found.firsts, found.queries) == (-1.0, 1.0, 0, 1)
    assert found.largest == pytest.approx(2.0)  # the deviation of 1, 2, 3 is 1
    assert found.rms == pytest.approx(math.sqrt(8 / 3))
    assert not found.holds("int8")


def test_pairs_that_become_ties_count_for_neither_side() -> None:
    assert compare.kendall_tau([3.0, 2.0, 1.0], [2.0, 2.0, 1.0]) == pytest.approx(2 / 3)
    assert compare.kendall_tau([3.0, 2.0, 2.0], [3.0, 2.0, 9.0]) == 0.0  # one kept, one changed, one tied


def test_the_first_ten_are_compared_as_sets() -> None:
    expected = [float(-place) for place in range(20)]
    found = [*expected]
    found[3], found[15] = found[15], found[3]
    assert compare.top_overlap(expected, found) == 0.9
    assert compare.top_overlap(expected[:10], found[:10]) == 1.0


def test_the_deviation_is_that_within_queries() -> None:
    """A query whose logits all lie elsewhere makes no other difference look small."""
    near = compare.compare([[1.0, -1.0]], [[1.1, -1.0]])
    far = compare.compare([[1.0, -1.0], [101.0, 99.0]], [[1.1, -1.0], [101.1, 99.0]])
    assert far.rms == pytest.approx(near.rms)


def test_a_logit_that_is_no_number_never_holds() -> None:
    found = compare.compare([[1.0, 2.0]], [[1.0, math.nan]])
    assert math.isnan(found.largest)
    assert not found.holds("int8")


def test_documents_that_all_score_alike_prove_nothing() -> None:
    with pytest.raises(ConfigurationError, match="score alike in fp32: give other --texts"):
        compare.compare([[1.0, 1.0], [2.0]], [[1.0, 1.0], [2.0]])


def test_the_built_in_texts_are_many_and_differ() -> None:
    questions = compare.built_in_questions()
    assert len(questions) >= 4
    assert all(len(set(question.documents)) >= 16 for question in questions)


@pytest.mark.parametrize("chapters", [{}, {"with": "a paragraph of the manual " * 9}])
def test_a_python_without_the_chapters_is_told_to_name_texts(
    chapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pydoc_data.topics.topics", chapters)
    with pytest.raises(ConfigurationError, match=r"^this Python has no texts to compare: give --texts FILE$"):
        compare.built_in_questions()


def test_a_python_without_the_manual_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigurationError, match=r"^this Python has no texts to compare: give --texts FILE$"):
        compare.built_in_questions()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("q\na\n\nb\n", [Ranking("q", ("a", "b"))]),
        ('{"query": "q", "documents": ["a", "{b"]}\n', [Ranking("q", ("a", "{b"))]),
        (
            '\n{"query": "q", "documents": ["a", "b"]}\n{"query": "r", "documents": ["c"], "more": 1}',
            [Ranking("q", ("a", "b")), Ranking("r", ("c",))],
        ),
    ],
)
def test_texts_are_read_as_lines_or_as_json(content: str, expected: list[Ranking], tmp_path: Path) -> None:
    (tmp_path / "texts").write_text(content)
    assert compare.read_questions(str(tmp_path / "texts")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no texts: every line is empty"),
        (" \n\n", "no texts: every line is empty"),
        ("only a query\n", "no query has two documents, so none has an order to compare"),
        ('{"query": "q", "documents": []}', "no query has two documents, so none has an order to compare"),
        ('{"query": "q", "documents": ["a", "b"]}\n{"query": ', "line 2: is not JSON"),
        ("{" + "[" * 100_000, "line 1: is not JSON"),
        ('{"query": "q"}', 'line 1: is not {"query": "...", "documents": ["...", ...]}'),
        ('{"query": "q", "documents": ["a", "b"]}\n[1]', "line 2: is not {"),
        ('{"query": "q", "documents": ["a", {"text": "b"}]}', "line 1: documents[1]: is not a string"),
        ('{"query": "", "documents": ["a", "b"]}', "query 1: query: must not be empty"),
        ("q\n" + "a\n" * 1_001, "query 1: documents: holds more than the 1,000 that are allowed"),
        ("q\na\n" + "b" * 100_001, "query 1: documents[1].text: has 100,001 characters, at most 100,000"),
    ],
)
def test_a_file_that_cannot_be_compared_on_is_told_in_one_line(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "texts"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as failure:
        compare.read_questions(str(path))
    assert str(failure.value).startswith(f"{path}: ")
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


@has_int8
def test_the_command_compares_on_the_operators_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    # Weights as wide as those of the parity tests amplify rounding up to the very bound.
    model = str(checkpoints.bert(tmp_path / "bert", initializer_range=0.1))
    settings = ServerSettings(device="cpu", precision="bf16")
    documents = [text[:300] for text in checkpoints.texts()[:24]]
    questions = [Ranking("how does a coroutine wait?", tuple(documents))]
    assert verify._compare(model, settings, questions, required=True)
    printed = capsys.readouterr().out
    assert "bf16 against fp32, queries: 1, documents: 24" in printed
    assert "1 of 1" in printed
    assert "  ok\n" in printed
    assert "int8-all" not in printed
    monkeypatch.setitem(compare.RMS_BOUNDS, "bf16", 1e-9)
    assert not verify._compare(model, settings, questions, required=True)
    assert "TOO FAR" in capsys.readouterr().out


@has_int8
def test_of_a_language_model_int8_all_is_compared_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(checkpoints.qwen3_reranker(tmp_path / "model", initializer_range=0.1))
    documents = [text[:200] for text in checkpoints.texts()[:16]]
    questions = [Ranking("how does a coroutine wait?", tuple(documents))]
    settings = ServerSettings(device="cpu", precision="int8")
    verify._compare(source, settings, questions, required=True)
    partly, wholly = (line.split() for line in capsys.readouterr().out.splitlines() if " of 1 " in line)
    assert (partly[0], wholly[0]) == ("int8", "int8-all")
    assert partly[1:] != wholly[1:], "the down projection was the same in both"


def verify_embedded(texts: Path | None) -> int:
    """Runs `verify embedded --precision bf16` in this process."""
    flags = {"device": "cpu", "precision": "bf16"}
    return verify.run(argparse.Namespace(flags=flags, models=["embedded"], texts=texts and str(texts)))


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every load in fp32 fail as it does where the memory is too small."""
    right = loader.load_model

    def load_model(checkpoint: Any, device: torch.device, precision: str) -> Any:
        if precision == "fp32":
            raise ModelLoadError("embedded takes about 9.0 GiB in fp32")
        return right(checkpoint, device, precision)

    monkeypatch.setattr(loading, "load_model", load_model)


@pytest.mark.skipif(not fast_bf16(), reason="the CPU has no bf16")
def test_a_model_whose_fp32_does_not_fit_is_verified_without_the_comparison(
    no_room: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_embedded(None) == 0
    assert "not compared with fp32: embedded takes about 9.0 GiB in fp32\n" in capsys.readouterr().out
    path = tmp_path / "texts"
    path.write_text("q\na\nb\n")
    with pytest.raises(ModelLoadError, match=r"^embedded takes about 9\.0 GiB in fp32$"):
        verify_embedded(path)


def test_a_card_too_small_for_fp32_is_told_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (device, loading):
        monkeypatch.setattr(module, "choose_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(memory, "memory_of", lambda _: memory.Memory(memory.RESERVE_BYTES, 0, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    path = tmp_path / "texts"
    path.write_text("q\na\nb\n")
    with pytest.raises(ModelLoadError, match=r"^embedded takes about .* in fp32 .* are free on cuda:0"):
        verify_embedded(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_texts_without_a_lower_precision_are_refused(precision: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"query": "q", "documents": ["a", "b"]}))
    failed = run("verify", "embedded", "--precision", precision, "--texts", str(path))
    assert failed.returncode != 0
    (line,) = failed.stderr.splitlines()
    assert "--texts: compares a lower precision with fp32" in line
