"""The files of late interaction say how texts become rows; contradictions and unknown wishes are refused."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Chain, Evidence, Kind, LateInteraction, Reading
from rerank_grpc.evidence.late import is_late, read_late
from rerank_grpc.evidence.modules import read_saved_model
from tests import late_models

SETTINGS, TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
MASK, NORM, DENSE = "2_MultiVectorMask/config.json", "3_Normalize/config.json", "1_Dense/config.json"
PUNCTUATION = tuple(string.punctuation)


def read(directory: Path) -> Evidence:
    return read_late(open_checkpoint(str(directory), directory), read_saved_model(directory))


def change(path: Path, **changes: Any) -> None:
    late_models.write_json(path, json.loads(path.read_text()) | changes)


def types_of(evidence: Evidence) -> list[str]:
    assert isinstance(evidence.head, Chain)
    return [module.type for module in evidence.head.modules]


def test_stanfords_files_are_read(tmp_path: Path) -> None:
    evidence = read(late_models.stanford(tmp_path, query_token_id="[unused5]"))
    assert (evidence.kind, evidence.family, evidence.max_tokens) == (Kind.LATE_INTERACTION, "bert", 40)
    assert evidence.reading == Reading(query_prefix="[unused5] ", document_prefix="[unused1] ")
    assert evidence.late == LateInteraction(12, 40, 12, skipped=PUNCTUATION, inserts_prefixes=True)
    assert types_of(evidence) == ["Dense", "Normalize"]


def test_stanfords_defaults_hold_without_its_metadata(tmp_path: Path) -> None:
    late_models.stanford(tmp_path)
    (tmp_path / "artifact.metadata").unlink()
    evidence = read(tmp_path)
    assert evidence.reading.query_prefix == "[unused0] "
    assert evidence.late is not None
    assert (evidence.late.expanded_tokens, evidence.late.document_tokens) == (32, 128)


@pytest.mark.parametrize("model_type", ["ColBERT", None])
def test_pylates_files_are_read(tmp_path: Path, model_type: str | None) -> None:
    evidence = read(late_models.pylate(tmp_path, dense=2, model_type=model_type))
    assert evidence.reading == Reading(query_prefix="[Q] ", document_prefix="[D] ")
    assert evidence.late == LateInteraction(12, 40, 12, skipped=PUNCTUATION, inserts_prefixes=True)
    assert types_of(evidence) == ["Dense", "Dense", "Normalize"]


def test_pylates_own_defaults_hold(tmp_path: Path) -> None:
    evidence = read(
        late_models.pylate(tmp_path, skiplist_words=None, query_length=None, document_length=None)
    )
    assert evidence.late == LateInteraction(32, 39, 32, skipped=PUNCTUATION, inserts_prefixes=True)


def test_pylates_prompt_stands_behind_its_prefix(tmp_path: Path) -> None:
    evidence = read(late_models.pylate(tmp_path, prompts={"query": "[Q] find: ", "document": "text: "}))
    assert evidence.reading == Reading(query_prefix="[Q] find: ", document_prefix="[D] text: ")


def test_queries_need_not_be_expanded(tmp_path: Path) -> None:
    evidence = read(late_models.pylate(tmp_path, do_query_expansion=False))
    assert evidence.late is not None
    assert (evidence.late.query_tokens, evidence.late.expanded_tokens) == (12, 0)


def test_sentence_transformers_files_are_read(tmp_path: Path) -> None:
    evidence = read(late_models.native(tmp_path))
    assert evidence.reading == Reading(query_prefix="query: ", document_prefix="text: ")
    expected = LateInteraction(30, 50, 10, attends_expansion=True, skipped=(".", ",", "the"))
    assert evidence.late == expected
    assert (evidence.max_tokens, evidence.activation) == (50, "maxsim")
    assert types_of(evidence) == ["Dense", "Normalize"]
    change(tmp_path / SETTINGS, similarity_fn_name="meanmaxsim")
    late = read(tmp_path).late
    assert late is not None
    assert late.mean
    assert read(tmp_path).activation == "meanmaxsim"


def test_a_fixed_query_has_the_length_of_its_expansion(tmp_path: Path) -> None:
    fixed = {"strategy": "fixed", "length": 10, "token": "[SEP]"}
    late = read(late_models.native(tmp_path, query_expansion=fixed)).late
    assert late is not None
    assert (late.query_tokens, late.expanded_tokens, late.expansion_token) == (10, 10, "[SEP]")
    assert not late.attends_expansion


def test_other_kinds_are_not_taken_for_late_interaction(tmp_path: Path) -> None:
    late_models.native(tmp_path)
    checkpoint = open_checkpoint("model", tmp_path)
    assert is_late(checkpoint, read_saved_model(tmp_path))
    for model_type in ("CrossEncoder", "SparseEncoder", "SentenceTransformer", None):
        change(tmp_path / SETTINGS, model_type=model_type)
        assert not is_late(checkpoint, read_saved_model(tmp_path))
    change(tmp_path / SETTINGS, query_prefix="[Q] ")
    assert is_late(checkpoint, read_saved_model(tmp_path))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (MASK, {"skiplist_tasks": ["query", "document"]}, "skiplist_tasks"),
    (MASK, {"keep_only_token_ids": [3]}, "keep_only_token_ids"),
    (MASK, {"skiplist_words": "..."}, "skiplist_words is no list"),
    (NORM, {"module_input_name": "sentence_embedding", "module_output_name": None}, "late interaction has"),
    (NORM, {"module_input_name": None, "module_output_name": None}, "late interaction has"),
    (DENSE, {"module_output_name": "scores"}, "late interaction has"),
    (TRANSFORMER, {"query_expansion": {"strategy": "most", "length": 9}}, "incomplete or unknown"),
    (TRANSFORMER, {"query_expansion": {"strategy": "min"}}, "incomplete or unknown"),
    (TRANSFORMER, {"query_expansion": {"strategy": "min", "length": 9, "step": 2}}, "does not know"),
    (
        TRANSFORMER,
        {"query_expansion": {"strategy": "min", "length": 31}},
        "query_length 30 is less than the 31",
    ),
    (TRANSFORMER, {"document_length": 0}, "document_length '0' is no number"),
    (TRANSFORMER, {"transformer_task": "fill-mask"}, "another task"),
    (TRANSFORMER, {"modality_config": {"message": {}}}, "a chat template"),
    (
        TRANSFORMER,
        {"modality_config": {"text": {"method_output_name": "pooler_output"}}},
        "'pooler_output' of",
    ),
    (TRANSFORMER, {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs"),
    (SETTINGS, {"model_type": "ColBERT"}, "does not end in a Dense"),
    (SETTINGS, {"prompts": {"query": 3}}, "'query' is 3"),
]


def refusal(directory: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        read(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(directory))
    return text


@pytest.mark.parametrize(("file", "changes", "reason"), REFUSED)
def test_what_this_version_does_not_do_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    change(late_models.native(tmp_path) / file, **changes)
    text = refusal(tmp_path)
    assert reason in text


@pytest.mark.parametrize(
    ("kept", "reason"),
    [([0, 1, 2], "does not end in Normalize"), ([0, 1, 3], "has 0 of MultiVectorMask")],
)
def test_a_missing_module_is_refused(tmp_path: Path, kept: list[int], reason: str) -> None:
    path = late_models.native(tmp_path) / "modules.json"
    modules = json.loads(path.read_text())
    late_models.write_json(path, [modules[index] for index in kept])
    assert reason in refusal(tmp_path)


def test_a_pooling_among_the_modules_is_refused(tmp_path: Path) -> None:
    path = late_models.native(tmp_path) / "modules.json"
    pooling = {"idx": 4, "name": "4", "path": "4_Pooling", "type": "sentence_transformers.models.Pooling"}
    late_models.write_json(path, [*json.loads(path.read_text()), pooling])
    assert "Pooling is a module" in refusal(tmp_path)


def test_pylates_files_without_a_projection_are_refused(tmp_path: Path) -> None:
    path = late_models.pylate(tmp_path) / "modules.json"
    late_models.write_json(path, json.loads(path.read_text())[:1])
    assert "does not end in a Dense" in refusal(tmp_path)


def test_stanfords_weights_without_a_projection_are_refused(tmp_path: Path) -> None:
    late_models.stanford(tmp_path)
    late_models.drop_weight(tmp_path, "linear.weight")
    assert "no linear.weight" in refusal(tmp_path)


def test_another_similarity_of_stanfords_is_refused(tmp_path: Path) -> None:
    assert "similarity 'l2'" in refusal(late_models.stanford(tmp_path, similarity="l2"))


def test_settings_without_modules_are_refused(tmp_path: Path) -> None:
    (late_models.pylate(tmp_path) / "modules.json").unlink()
    assert "modules.json is not" in refusal(tmp_path)
