"""A model whose tokens are not those of its own tokenizer class is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from rerank_grpc import kept
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Kind, Reading
from rerank_grpc.evidence.prompt import Placeholder, Prompt
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import ModelCard
from rerank_grpc.registry import probes
from rerank_grpc.registry.probes import check_reading, checked_tokenizer
from rerank_grpc.types import Document, RerankRequest, Scoring
from tests import prompts
from tests import random_models as checkpoints

WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": checkpoints.bert,
    "roberta": checkpoints.roberta,
    "xlm-roberta": checkpoints.xlm_roberta,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("probes")
    writers = WRITERS | prompts.WRITERS
    return {family: write(root / family) for family, write in writers.items()}


def card(directory: Path, **changes: Any) -> ModelCard:
    plain = ModelCard(
        source=str(directory),
        revision="",
        family="bert",
        scoring=Scoring.SIGMOID,
        kind=Kind.CROSS_ENCODER,
        max_tokens=checkpoints.MAX_TOKENS,
        device="cpu",
        precision="fp32",
        attention=Attention.SDPA,
        tokenizer_file=directory / "tokenizer.json",
    )
    return replace(plain, **changes)


def own(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory)


def check(card: ModelCard) -> None:
    checked_tokenizer(card)


READINGS = [Reading(), Reading(lower_case=True), Reading(query_prefix="query: ", document_prefix="passage: ")]


@pytest.mark.parametrize("kind", [Kind.CROSS_ENCODER, Kind.BI_ENCODER])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", WRITERS)
def test_tokens_are_those_of_the_tokenizer_class(
    family: str, reading: Reading, kind: Kind, directories: dict[str, Path]
) -> None:
    check(card(directories[family], kind=kind, reading=reading))


@pytest.mark.parametrize("family", prompts.WRITERS)
def test_a_prompts_tokens_are_those_of_the_tokenizer_class(family: str, directories: dict[str, Path]) -> None:
    check(prompts.card(directories[family], family))
    segments = (("<|im_start|>user\n",), (Placeholder.QUERY, "\n", Placeholder.DOCUMENT), ("<|im_end|>",))
    if family == "qwen3":
        prompt = Prompt(segments, "chat_template.jinja", strips=frozenset({Placeholder.DOCUMENT}))
        check(card(directories[family], reading=Reading(prompt=prompt)))


def changed(directory: Path, tmp_path: Path, name: str, change: Callable[[Any], object]) -> Path:
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        data = json.loads((directory / file).read_text("utf-8"))
        if file == name:
            change(data)
        (tmp_path / file).write_text(json.dumps(data))
    return tmp_path


def test_a_tokenizer_without_token_types_is_read_without_them(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    path = changed(directories["bert"], tmp_path, "tokenizer_config.json", lambda data: data.update(inputs))
    for directory, has_types in ((path, False), (directories["bert"], True)):
        request = RerankRequest("a query", (Document("a document"),))
        (sequence,) = checked_tokenizer(card(directory)).tokenize(request).sequences
        assert bool(sequence.segment_start) == has_types
        with pytest.raises(ModelLoadError, match="other token types than"):
            check_reading(card(directory, reading=Reading(token_types=not has_types)), own(directory))


def test_a_class_that_reads_texts_in_another_way_is_refused(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    other = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    path = changed(directories["bert"], tmp_path, "tokenizer_config.json", lambda data: data.update(other))
    with pytest.raises(ModelLoadError, match=r"gives other tokens than .*class BertTokenizer .*: use"):
        check(card(path))


def test_another_reading_than_the_references_is_noticed(directories: dict[str, Path]) -> None:
    lowered = card(directories["roberta"], reading=READINGS[1])
    with pytest.raises(ModelLoadError, match="other tokens than"):
        check_reading(lowered, own(directories["roberta"]))


def test_a_class_that_cannot_be_read_is_refused_in_one_line(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    path = changed(directories["bert"], tmp_path, "config.json", lambda data: data.clear())
    (path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["a.OwnTokenizer", null]}}'
    )
    with pytest.raises(ModelLoadError, match="cannot read its tokenizer") as caught:
        check(card(path))
    assert "\n" not in str(caught.value)


def test_a_comparison_is_kept_until_something_that_it_depends_on_changes(
    directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "kept")
    made: list[ModelCard] = []

    def noticed(read: Callable[[ModelCard], bool], card: ModelCard) -> bool:
        made.append(card)
        return read(card)

    monkeypatch.setattr(probes, "aside", noticed)
    (tmp_path / "model").mkdir()
    path = changed(directories["bert"], tmp_path / "model", "", lambda data: data)
    plain, lowered = card(path), card(path, reading=Reading(lower_case=True))
    for each in (plain, plain, lowered, lowered, plain):
        check(each)
    assert made == [plain, lowered]
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    changed(directories["bert"], path, "tokenizer_config.json", lambda data: data.update(inputs))
    check(plain)
    assert len(made) == 3


@pytest.mark.parametrize("pattern", probes.SOURCES)
def test_a_comparison_depends_on_all_that_makes_tokens(
    pattern: str, directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = card(directories["bert"])
    before = probes._key(plain)
    shutil.copytree(probes.PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(probes, "PACKAGE", tmp_path / "package")
    assert probes._key(plain) == before
    path = next((tmp_path / "package").glob(pattern))
    path.write_text(path.read_text("utf-8") + "# changed\n", "utf-8")
    assert probes._key(plain) != before


def test_another_version_of_this_package_compares_again(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = probes._key(card(directories["bert"]))
    monkeypatch.setattr(probes, "__version__", "another")
    assert probes._key(card(directories["bert"])) != before


def test_a_comparison_that_fails_is_not_kept(
    directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "kept")
    other = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "model").mkdir()
    target = tmp_path / "model"
    path = changed(directories["bert"], target, "tokenizer_config.json", lambda data: data.update(other))
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="gives other tokens than"):
            check(card(path))
    assert not (tmp_path / "kept").exists()
