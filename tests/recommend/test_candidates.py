"""The models that are asked about, and the constraints."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.checkpoints.catalogue import KnownModel, builtin
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.recommend.candidates import Constraints, find_candidates

NOWHERE = ServerSettings(models_dir=Path("no directory"))


def test_without_names_those_at_hand_come_first_and_then_the_smaller_before_the_larger() -> None:
    found = find_candidates([], builtin(), NOWHERE)
    assert found[0].name == "embedded"
    sizes = [each.known.parameters for each in found if each.directory is None]
    assert sizes == sorted(sizes)
    assert not any(each.known.unsupported for each in found)


def test_a_directory_of_the_models_folder_is_at_hand(tmp_path: Path) -> None:
    (tmp_path / "bge-reranker-base").mkdir()
    (found,) = find_candidates(["bge-reranker-base"], builtin(), ServerSettings(models_dir=tmp_path))
    assert found.directory == tmp_path / "bge-reranker-base"
    assert found.known.id == "BAAI/bge-reranker-base"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/unknown", "neither on this machine nor in the catalogue"),
        ("jina-reranker-v3", "is not supported"),
    ],
)
def test_a_name_that_cannot_be_measured_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        find_candidates([name], builtin(), NOWHERE)


def test_models_of_the_same_layers_have_one_key() -> None:
    base, bce, large = find_candidates(
        ["bge-reranker-base", "bce-reranker-base_v1", "bge-reranker-large"], builtin(), NOWHERE
    )
    assert base.shape_key == bce.shape_key != large.shape_key
    (unknown,) = find_candidates(["ctxl-rerank-v2-instruct-multilingual-1b"], builtin(), NOWHERE)
    assert unknown.shape_key is None


@pytest.mark.parametrize(
    ("constraints", "languages", "licence", "said"),
    [
        (Constraints(), (), "", ""),
        (Constraints(("zh", "en")), ("zh", "en"), "MIT", ""),
        (Constraints(("zh", "en")), ("multilingual",), "MIT", ""),
        (Constraints(("zh", "en")), ("en",), "MIT", "it is not said to know zh"),
        (Constraints(licences=("mit",)), (), "MIT", ""),
        (Constraints(licences=("MIT",)), (), "Apache-2.0", "its licence is Apache-2.0"),
        (Constraints(commercial=True), (), "Apache-2.0", ""),
        (Constraints(commercial=True), (), "CC-BY-NC-4.0", "does not allow commercial use"),
        (Constraints(commercial=True), (), "", "none stated, does not allow commercial use"),
    ],
)
def test_a_constraint_says_what_a_model_lacks(
    constraints: Constraints, languages: tuple[str, ...], licence: str, said: str
) -> None:
    reason = constraints.refuse(KnownModel("acme/model", languages=languages, licence=licence))
    assert (said in reason) if said else reason == ""
