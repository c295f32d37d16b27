"""The catalogue: what it says is complete, what it refuses has a reason, and an operator can add to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.checkpoints.catalogue import KnownModel, builtin, read_catalogue
from rerank_grpc.checkpoints.lookup import Source
from rerank_grpc.errors import ConfigurationError, ModelLoadError
from rerank_grpc.types import Scoring

PROMISED = (
    "BAAI/bge-reranker-base",
    "BAAI/bge-reranker-large",
    "BAAI/bge-reranker-v2-m3",
    "cross-encoder/ms-marco-MiniLM-L-6-v2",
    "cross-encoder/ms-marco-MiniLM-L-12-v2",
    "Alibaba-NLP/gte-reranker-modernbert-base",
    "maidalun1020/bce-reranker-base_v1",
    "mixedbread-ai/mxbai-rerank-base-v1",
    "sentence-transformers/all-MiniLM-L6-v2",
)
OWN = """
[[model]]
id = "acme/reranker"
kind = "cross-encoder"
family = "bert"
max_tokens = 256
pooling = "first"
scoring = "sigmoid"
scale = 2
offset = -1.5
prompt = { segments = ["{query} {document}"], answers = ["yes", "no"] }

[[model]]
id = "BAAI/bge-reranker-base"
unsupported = "acme forbids it"
licence = "MIT"
"""


@pytest.mark.parametrize("name", PROMISED)
def test_what_is_promised_is_there_and_complete(name: str) -> None:
    entry = builtin().find(name)
    assert entry is not None
    assert entry is builtin().find(entry.short.upper())
    assert not entry.unsupported
    assert entry.licence
    assert entry.languages
    assert entry.memory_mib["fp32"] >= 2 * entry.memory_mib["bf16"] - 2
    assert entry.max_tokens in (128, 256, 512, 8192)


def test_every_entry_says_how_it_is_served_and_told_or_why_not() -> None:
    for entry in builtin():
        assert bool(entry.unsupported) != bool(entry.served)
        assert bool(entry.unsupported) != bool(entry.evidence)
        assert entry.unsupported or (entry.kind and entry.family and entry.good_for and entry.parameters)
        assert len(entry.revision) == 40 or entry.revision == "main"


def test_the_fields_rerankers_are_known() -> None:
    served = [entry for entry in builtin() if not entry.unsupported]
    assert len(served) >= 30
    assert len(list(builtin())) == len({entry.id.lower() for entry in builtin()})
    assert {entry.kind for entry in served} == {"cross-encoder", "bi-encoder", "late interaction"}


def test_a_refusal_names_a_model_that_is_served_instead() -> None:
    for entry in builtin():
        if entry.unsupported:
            instead = builtin().find(entry.unsupported.rpartition(": use ")[2])
            assert instead is not None, entry.id
            assert not instead.unsupported, entry.id


def test_models_of_one_family_are_asked_the_same() -> None:
    prompts = [entry.prompt for entry in builtin() if entry.id.startswith("Qwen/Qwen3-Reranker")]
    assert prompts == [prompts[0]] * 3
    one, small = builtin().find("zerank-1"), builtin().find("zerank-1-small")
    assert one is not None
    assert small is not None
    assert one.prompt == small.prompt
    assert (one.scale, one.offset, one.noncommercial, small.noncommercial) == (0.2, 0.0, True, False)


@pytest.mark.parametrize(
    ("licence", "noncommercial"),
    [
        *(("CC-BY-NC-4.0", True), ("cc-by-nc-sa-4.0", True), ("ACME Non-Commercial", True)),
        *(("Apache-2.0", False), ("NCSA", False), ("", False)),
    ],
)
def test_a_licence_that_forbids_commercial_use_is_told_by_its_name(licence: str, noncommercial: bool) -> None:
    entry = KnownModel("acme/reranker", licence=licence)
    assert entry.noncommercial is noncommercial
    assert bool(entry.caution) is noncommercial


def test_only_what_an_entry_states_is_compared(tmp_path: Path) -> None:
    found: dict[str, Any] = {
        "kind": "late interaction",
        "family": "bert",
        "pooling": "first",
        "directory": tmp_path,
    }
    KnownModel("acme/reranker").check(**found)
    KnownModel("acme/reranker", kind="late interaction", family="bert").check(**found)
    with pytest.raises(
        ModelLoadError, match="its kind is late interaction, and acme/reranker has bi-encoder"
    ):
        KnownModel("acme/reranker", kind="bi-encoder").check(**found)


def test_the_known_scores_of_the_dialects_are_there() -> None:
    entry = builtin().find("bge-reranker-base")
    assert entry is not None
    assert len(entry.known) == 11
    assert {pair.logit for pair in entry.known} >= {-8.154394149780273, 6.182112216949463}
    small = builtin().find("ms-marco-MiniLM-L-6-v2")
    assert small is not None
    assert [pair.logit for pair in small.known] == [8.607138, -4.320078]


def test_a_refused_model_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ModelLoadError, match="needs code out of its own repository"):
        Source.of("jina-reranker-v1-turbo-en", builtin())


def test_an_operators_file_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    catalogue = read_catalogue(path)
    entry = catalogue.find("reranker")
    assert entry is not None
    assert (entry.max_tokens, entry.scoring) == (256, Scoring.SIGMOID)
    assert (entry.scale, entry.offset) == (2, -1.5)
    assert entry.prompt == {"segments": ["{query} {document}"], "answers": ["yes", "no"]}
    assert catalogue.find("bge-reranker-large") is not None
    with pytest.raises(ModelLoadError, match="acme forbids it"):
        Source.of("bge-reranker-base", catalogue)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[model]", "not TOML"),
        ("[models]", r"more than \[\[model\]\]"),
        ('[[model]]\nid = "nobody"', "ORG/NAME"),
        (OWN.replace("family", "famly"), "unknown key 'famly'"),
        (OWN.replace('family = "bert"', ""), "family is missing"),
        (OWN.replace('"first"', '"middle"'), "none of first, mean"),
        (OWN.replace("256", '"256"'), "wrong type"),
        (OWN.replace("256", "true"), "max_tokens is True, which is of the wrong type"),
        (
            OWN.replace("offset = -1.5", 'served = "fast"'),
            "served is 'fast', which is none of packed, padded",
        ),
        (OWN.replace("offset = -1.5", "languages = [1]"), r"languages is \[1\], which is of the wrong type"),
        (OWN.replace("answers =", "answer ="), "unknown key 'prompt.answer'"),
        (OWN.replace('["yes", "no"]', '"yes"'), "prompt.answers is 'yes', which is of the wrong type"),
        (OWN.replace('["yes", "no"]', '["a", "b", "c"]'), "one word or two"),
        (OWN.replace('["{query} {document}"]', "[]"), "prompt.segments is missing"),
        (OWN.replace("segments =", "instruction = 3, segments ="), "prompt.instruction is 3"),
        (OWN.replace('"sigmoid"', '"sigmoid"\nknown = [{query = "q", document = "d"}]'), "known pair"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        read_catalogue(path)
    assert "own.toml" in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--catalogue: cannot read"):
        read_catalogue(tmp_path / "none.toml")


def test_a_revision_is_the_catalogues_unless_another_is_named() -> None:
    for source, revision in (
        ("bge-reranker-base", "2cfc18c9415c912f9d8155881c133215df768a70"),
        ("BAAI/bge-reranker-base@main", "main"),
        ("acme/other", "main"),
        ("acme/other@v1.0", "v1.0"),
    ):
        found = Source.of(source, builtin())
        assert found.hub_id
        assert found.revision == revision
    with pytest.raises(ModelLoadError, match="no revision"):
        Source.of("acme/other@../..", builtin())


@pytest.mark.parametrize("name", ["bge-reranker-base", "other", "bge-reranker-base-tuned"])
def test_a_directory_is_known_by_its_own_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    source = Source.of(str(tmp_path / name), builtin())
    assert not source.hub_id
    known = builtin().find("bge-reranker-base") if name == "bge-reranker-base" else None
    assert source.find(tmp_path / "none") == (tmp_path / name, known)
