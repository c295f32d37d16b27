"""Conversions keep the scores, run nothing that a checkpoint says, and leave alone what they cannot do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file, save_file

from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.checkpoints.checkpoint import read_config
from rerank_grpc.checkpoints.convert import convert, is_needed
from rerank_grpc.checkpoints.described import find_prompted, template_of
from rerank_grpc.errors import ConfigurationError, ModelLoadError
from tests import random_models
from tests.checkpoints import remote_models
from tests.command import run
from tests.conftest import load
from tests.models.test_parity import QUERY, documents, score


@pytest.fixture
def old(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A clone from before safetensors."""
    path = Path(shutil.copytree(directories["bert"], tmp_path / "old"))
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def test_the_command_that_the_refusal_names_does_it(old: Path, directories: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError) as refused:
        load(old)
    command = str(refused.value).partition("'")[2].partition("'")[0]
    done = run(*command.split()[1:], HF_HUB_OFFLINE="1")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "can be served" in done.stdout
    assert (old / "pytorch_model.bin").is_file(), "the old file stays"
    assert torch.equal(score(load(old), documents()), score(load(directories["bert"]), documents()))
    assert "nothing to convert" in run("convert", str(old)).stdout


def test_shards_and_weights_that_share_memory_are_converted(old: Path, directories: dict[str, Path]) -> None:
    weights = load_file(directories["bert"] / "model.safetensors")
    (old / "pytorch_model.bin").unlink()
    shared = torch.zeros(4)
    halves: list[dict[str, Any]] = [{"tied.a": shared, "tied.b": shared[:]}, {}]
    for place, (name, weight) in enumerate(sorted(weights.items())):
        halves[place % 2][name] = weight
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, old / name)
    mapping = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": mapping}))
    made = [path.name for path in convert(old)]
    assert made == [*(f"model-0000{n}-of-00002.safetensors" for n in (1, 2)), "model.safetensors.index.json"]
    assert torch.equal(score(load(old), documents()), score(load(directories["bert"]), documents()))


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00001.bin", "weights.pt"])
def test_a_single_shard_of_any_name_is_kept_and_what_is_made_of_it_can_be_served(
    old: Path, directories: dict[str, Path], name: str
) -> None:
    (old / "pytorch_model.bin").rename(old / name)
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    pickled = (old / name).read_bytes()
    convert(old)
    assert (old / name).read_bytes() == pickled
    assert torch.equal(score(load(old), documents()), score(load(directories["bert"]), documents()))


def test_a_tokenizer_json_is_made_of_an_older_tokenizer(old: Path) -> None:
    vocabulary = json.loads((old / "tokenizer.json").read_text())["model"]["vocab"]
    (old / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    (old / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "model_max_length": 128}'
    )
    (old / "tokenizer.json").unlink()
    convert(old)
    assert json.loads((old / "tokenizer.json").read_text())["model"]["vocab"] == vocabulary
    load(old)


class Evil:
    """What a hostile pickle holds: a command to run."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_r27_a_pickle_that_would_run_code_is_refused_and_does_not(old: Path, tmp_path: Path, by: str) -> None:
    marker = tmp_path / "ran"
    if by == "torch":
        torch.save({"weight": Evil(marker)}, old / "pytorch_model.bin")
    else:
        (old / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker)))
    done = run("convert", str(old))
    assert done.returncode == 1
    assert "holds more than weights" in done.stderr.splitlines()[-1]
    assert not marker.exists()
    assert not (old / "model.safetensors").exists()


@pytest.mark.parametrize("length", [0, 10, 5_000])
def test_a_damaged_pickle_leaves_nothing_behind(old: Path, length: int) -> None:
    path = old / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:length])
    before = set(old.iterdir())
    with pytest.raises(ModelLoadError):
        convert(old)
    assert set(old.iterdir()) == before


def test_an_index_that_leads_out_of_the_directory_is_refused(old: Path) -> None:
    (old / "pytorch_model.bin").rename(old.parent / "outside.bin")
    (old / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../outside.bin"}}')
    with pytest.raises(ModelLoadError, match="no file of this directory"):
        convert(old)


def test_a_config_that_asks_for_unknown_code_is_refused(old: Path) -> None:
    _change(old, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ModelLoadError, match="runs code"):
        convert(old)


def test_the_pickles_of_modules_are_converted_too(directories: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(directories["bert"], tmp_path / "modules"))
    (path / "2_Dense").mkdir()
    weights = {"linear.weight": torch.randn(1, 64)}
    torch.save(weights, path / "2_Dense" / "pytorch_model.bin")
    assert is_needed(path)
    assert convert(path) == [path / "2_Dense" / "model.safetensors"]
    assert torch.equal(
        load_file(path / "2_Dense" / "model.safetensors")["linear.weight"], weights["linear.weight"]
    )
    assert not is_needed(path)


# Classes that are not transformers'


GTE: dict[str, dict[str, Any]] = {
    "as published": {},
    "projections apart": {"packed": False},
    "scaled positions": {"rope_scaling": {"type": "ntk", "factor": 2.0}},
}


def _assert_converted(path: Path, logits_of: Callable[..., torch.Tensor]) -> None:
    """Converts a checkpoint, which then scores as `logits_of`, its own code's way, did before."""
    config, weights = _config(path), remote_models.weights_of(path)
    pairs = [remote_models.pair_ids(path, QUERY, text) for text in _few()]
    expected = torch.cat([logits_of(weights, ids, config) for ids in pairs])
    convert(path)
    _assert_close(expected, _logits_by_the_reference(path))
    _assert_close(expected, score(load(path), _few()).flatten())


@pytest.mark.parametrize("case", GTE)
def test_gte_is_scored_as_its_own_code_does(case: str, tmp_path: Path) -> None:
    path = remote_models.gte(tmp_path / "gte", **GTE[case])
    _assert_converted(path, remote_models.gte_logits)


@pytest.mark.parametrize("act", ["gelu", "gelu_fast"])
def test_jina_is_scored_as_its_own_code_does(act: str, tmp_path: Path) -> None:
    path = remote_models.jina(tmp_path / "jina", hidden_act=act)
    _assert_converted(path, remote_models.jina_logits)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_nemotron_is_scored_as_its_own_code_does(temperature: float, tmp_path: Path) -> None:
    path = remote_models.nemotron(tmp_path / "nemotron", temperature=temperature)
    expected = remote_models.nemotron_logits(path, QUERY, _few(), temperature)
    convert(path)
    _assert_close(expected, _logits_by_the_reference(path))
    assert "auto_map" not in read_config(path)


def test_the_command_rewrites_what_the_refusal_names(tmp_path: Path) -> None:
    path = remote_models.gte(tmp_path / "gte")
    before = (path / "config.json").read_bytes()
    assert is_needed(path)
    with pytest.raises(ModelLoadError) as refused:
        load(path)
    command = str(refused.value).partition("'")[2].partition("'")[0]
    done = run(*command.split()[1:], HF_HUB_OFFLINE="1")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert (path / "config.json.original").read_bytes() == before
    assert "nothing to convert" in run("convert", str(path)).stdout
    assert not is_needed(path)


def test_weights_in_several_files_keep_their_places(tmp_path: Path) -> None:
    path, whole = remote_models.gte(tmp_path / "gte"), remote_models.gte(tmp_path / "whole")
    weights = remote_models.weights_of(path)
    (path / "model.safetensors").unlink()
    file_of = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = dict(sorted(weights.items())[number - 1 :: 2])
        save_file(part, path / name)
        file_of.update(dict.fromkeys(part, name))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    convert(path)
    convert(whole)
    assert (score(load(path), _few()) - score(load(whole), _few())).abs().max() < 1e-5


def test_a_conversion_that_was_killed_before_its_end_can_be_done_again(tmp_path: Path) -> None:
    path, whole = remote_models.gte(tmp_path / "gte"), remote_models.gte(tmp_path / "whole")
    convert(whole)
    convert(path)
    (path / "config.json.original").replace(path / "config.json")  # it would have come last
    (path / ".convert").mkdir()
    (path / ".convert" / "half.safetensors").touch()
    convert(path)
    assert _contents(path) == _contents(whole)


REFUSED: dict[str, tuple[Any, str]] = {
    "positions": (lambda path: remote_models.gte(path, position_embedding_type="absolute"), "'rope' only"),
    "attention": (lambda path: remote_models.gte(path, logn_attention_scale=True), "logn_attention_scale"),
    "norm": (lambda path: remote_models.gte(path, layer_norm_type="rms_norm"), "layer_norm_type"),
    "scaling": (
        lambda path: remote_models.gte(path, rope_scaling={"type": "yarn", "factor": 2}),
        "rope_scaling",
    ),
    "shape": (lambda path: remote_models.gte(path, intermediate_size=64), "weights, 'gte.layers.0.mlp"),
    "nonsense": (lambda path: remote_models.gte(path, num_attention_heads="many"), "describes no gte"),
    "adapters": (lambda path: remote_models.jina(path, lora_adaptations=["a"]), "lora_adaptations"),
    "rotary": (lambda path: remote_models.jina(path, position_embedding_type="rotary"), "'absolute' only"),
    "layers": (
        lambda path: remote_models.jina(path, num_hidden_layers=4),
        "weights, 'roberta.encoder.layer.3",
    ),
    "pooling": (lambda path: remote_models.nemotron(path, pooling="last"), "pooling"),
    "temperature": (lambda path: remote_models.nemotron(path, temperature=0), "divides nothing"),
    "words": (lambda path: remote_models.nemotron(path, temperature="hot"), "ValueError"),
    "causal": (lambda path: remote_models.nemotron(path, is_causal=True), "is_causal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_transformers_would_compute_differently_is_refused_and_left_as_it_was(
    case: str, tmp_path: Path
) -> None:
    write, reason = REFUSED[case]
    path = write(tmp_path / "remote")
    before = _contents(path)
    with pytest.raises(ModelLoadError, match=reason) as refused:
        convert(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert _contents(path) == before


# A left-over auto_map


MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]


def test_an_auto_map_is_allowed_where_modules_and_class_are_known(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(directories["bert"], tmp_path / "left"))
    _change(path, auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(ModelLoadError, match="runs code"):
        read_config(path)
    (path / "modules.json").write_text(json.dumps(MODULES))
    assert read_config(path)["model_type"] == "bert"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"architectures": ["BertForRanking"]}, MODULES[0]["type"]),
        ({"model_type": "zebra"}, MODULES[0]["type"]),
        ({}, "modeling.Head"),
        ({}, "sentence_transformers"),
    ],
)
def test_an_auto_map_is_refused_where_modules_or_class_are_unknown(
    changes: dict[str, Any], kind: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(directories["bert"], tmp_path / "left"))
    _change(path, auto_map={"AutoModel": "modeling.Model"}, **changes)
    (path / "modules.json").write_text(json.dumps([MODULES[0] | {"type": kind}]))
    with pytest.raises(ModelLoadError, match="runs code"):
        read_config(path)


# Classifiers made of language models


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.qwen3_reranker(tmp_path_factory.mktemp("causal"))


@pytest.mark.parametrize("pad_token_id", [None, 0])
def test_a_classifier_made_of_qwen3_is_scored_as_the_language_model(
    pad_token_id: int | None, causal: Path, tmp_path: Path
) -> None:
    path = remote_models.qwen3_classifier(tmp_path / "seq-cls", causal)
    _change(path, pad_token_id=pad_token_id)
    done = run("convert", "--prompt", "Qwen/qwen3-reranker-0.6B", str(path), HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    _assert_close(remote_models.qwen3_logits(causal, QUERY, _few()), _logits_by_the_reference(path))
    task = "Find what contradicts the claim"
    asked = remote_models.qwen3_logits(causal, QUERY, _few(), task)
    _assert_close(asked, _logits_by_the_reference(path, prompt=task))
    assert "messages[0]" in (path / "chat_template.jinja.original").read_text()


def test_a_prompt_is_not_written_where_another_stands_or_to_another_model(
    causal: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    prompted = find_prompted("Qwen3-Reranker-4B", builtin())
    path = remote_models.qwen3_classifier(tmp_path / "seq-cls", causal)
    convert(path, prompted=prompted)
    for directory, reason in [
        (path, "says already"),
        (causal, "no classifier"),
        (directories["bert"], "no classifier"),
    ]:
        before = _contents(directory)
        with pytest.raises(ModelLoadError, match=reason):
            convert(directory, prompted=prompted)
        assert _contents(directory) == before


def test_a_classifier_of_two_labels_gets_no_prompt(causal: Path, tmp_path: Path) -> None:
    path = remote_models.qwen3_classifier(tmp_path / "seq-cls", causal)
    _change(path, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ModelLoadError, match="2 labels"):
        convert(path, prompted=find_prompted("Qwen3-Reranker-4B", builtin()))


def test_an_unknown_prompt_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'bge-reranker-base'.*Qwen3-Reranker"):
        find_prompted("bge-reranker-base", builtin())


def test_a_template_pastes_whatever_a_prompt_holds() -> None:
    """Braces and line breaks, which mean something in templates, and texts that lose their white space."""
    prompt = {"segments": ["{{ a }}", "{query}{# b #}", "{document}", '\n"\\\n'], "strips": ["query"]}
    messages = [{"role": "query", "content": " q{{ 1 }} "}, {"role": "document", "content": " d "}]
    rendered = ImmutableSandboxedEnvironment(trim_blocks=True).from_string(template_of(prompt))
    assert rendered.render(messages=messages) == '{{ a }}q{{ 1 }}{# b #} d \n"\\\n'


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def _change(path: Path, **changes: Any) -> None:
    (path / "config.json").write_text(json.dumps(_config(path) | changes))


def _contents(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def _few() -> list[str]:
    """Documents that fit, some of which are of one token or none."""
    return [text[:160] for text in documents()[:6]]


def _logits_by_the_reference(path: Path, prompt: str | None = None) -> torch.Tensor:
    """The logits of sentence-transformers, padded together, without code of the checkpoint's own."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(path), device="cpu", local_files_only=True, trust_remote_code=False)
    pairs = [(QUERY, text) for text in _few()]
    identity = torch.nn.Identity()
    logits: torch.Tensor = encoder.predict(
        pairs, prompt=prompt, activation_fn=identity, convert_to_tensor=True
    )
    return logits


def _assert_close(expected: torch.Tensor, found: torch.Tensor) -> None:
    expected = expected.detach().flatten()
    assert expected.std() > 0.1, "random weights that tell texts apart"
    assert (found.cpu() - expected).abs().max() < 1e-4 * expected.std().clamp(min=1)
