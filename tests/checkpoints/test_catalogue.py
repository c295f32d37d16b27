"""The catalogue: what it says is complete, what it refuses has a reason, and an operator can add to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.checkpoints.catalogue import builtin, read_catalogue
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

[[model]]
id = "BAAI/bge-reranker-base"
unsupported = "acme forbids it"
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


def test_every_entry_is_complete_or_has_a_reason() -> None:
    for entry in builtin():
        assert bool(entry.unsupported) != bool(entry.family)
        assert len(entry.revision) == 40 or entry.revision == "main"


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
        Source.of("jina-reranker-v2-base-multilingual", builtin())


def test_an_operators_file_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    catalogue = read_catalogue(path)
    entry = catalogue.find("reranker")
    assert entry is not None
    assert (entry.max_tokens, entry.scoring) == (256, Scoring.SIGMOID)
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
    assert not Source.of("/srv/models/bge-reranker-base", builtin()).hub_id
    with pytest.raises(ModelLoadError, match="no revision"):
        Source.of("acme/other@../..", builtin())
