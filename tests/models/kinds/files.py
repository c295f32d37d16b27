"""The JSON files beside a checkpoint's weights, in the forms that sentence-transformers saves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

TYPES: Mapping[str, str] = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "LogitScore": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    "MultiVectorMask": "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
}
OUTPUTS: Mapping[str, tuple[str, str]] = {  # by task: that of the network, and that of the module
    "sequence-classification": ("logits", "scores"),
    "text-generation": ("logits", "causal_logits"),
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
}
ACTIVATIONS: Mapping[str, str] = {
    "Identity": "torch.nn.modules.linear.Identity",
    "Sigmoid": "torch.nn.modules.activation.Sigmoid",
    "Tanh": "torch.nn.modules.activation.Tanh",
    "GELU": "torch.nn.modules.activation.GELU",
    "Softplus": "torch.nn.modules.activation.Softplus",
}


class Part(NamedTuple):
    """A module behind the transformer: its type, its config.json, and its weights if it has any."""

    type: str  # a name of TYPES, or a whole path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor] | None = None


def edit(path: Path, file: str, **changes: Any) -> Path:
    """Changes keys of a checkpoint's JSON file, which it makes if need be; returns the checkpoint."""
    target = path / file
    found = json.loads(target.read_text()) if target.exists() else {}
    target.write_text(json.dumps(found | changes, indent=2))
    return path


def save_modules(path: Path, *parts: Part, old: bool = False) -> Path:
    """Writes modules.json and the parts' directories; `old`: with the paths of older releases."""
    listed = [_entry(0, "Transformer", "", old)]
    for place, part in enumerate(parts, 1):
        folder = path / f"{place}_{part.type.rpartition('.')[2]}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(part.config, indent=4))
        if part.weights is not None:
            save_file(dict(part.weights), folder / "model.safetensors")
        listed.append(_entry(place, part.type, folder.name, old))
    (path / "modules.json").write_text(json.dumps(listed, indent=2))
    return path


def _entry(place: int, type_: str, folder: str, old: bool) -> dict[str, Any]:
    whole = f"sentence_transformers.models.{type_}" if old and type_ in TYPES else TYPES.get(type_, type_)
    return {"idx": place, "name": str(place), "path": folder, "type": whole}


def save_transformer(path: Path, task: str, *, message: str = "", **settings: Any) -> Path:
    """Writes sentence_bert_config.json; `message`: the form of a chat template's messages, "" for texts."""
    method, output = OUTPUTS[task]
    forward = {"method": "forward", "method_output_name": method}
    modalities: dict[str, Any] = {"text": forward}
    if message:
        modalities["message"] = forward | {"format": message}
    found = {"transformer_task": task, "modality_config": modalities, "module_output_name": output}
    return edit(path, "sentence_bert_config.json", **found, **settings)


def save_settings(
    path: Path,
    model_type: str = "CrossEncoder",
    *,
    prompts: Mapping[str, str] | None = None,
    default: str | None = None,
    **settings: Any,
) -> Path:
    """Writes config_sentence_transformers.json, with the name of its default prompt."""
    versions = {"pytorch": "2.13.0", "sentence_transformers": "6.2.0", "transformers": "5.23.0"}
    return edit(
        path,
        "config_sentence_transformers.json",
        __version__=versions,
        default_prompt_name=default,
        model_type=model_type,
        prompts=dict(prompts or {}),
        **settings,
    )


def save_cross_encoder(
    path: Path,
    task: str,
    parts: Sequence[Part] = (),
    *,
    message: str = "",
    activation: str = "Identity",
    prompts: Mapping[str, str] | None = None,
    default: str | None = None,
    **settings: Any,
) -> Path:
    """Writes all that CrossEncoder.save_pretrained writes beside the network and the tokenizer."""
    save_modules(path, *parts)
    save_transformer(path, task, message=message, **settings)
    return save_settings(path, activation_fn=ACTIVATIONS[activation], prompts=prompts, default=default)
