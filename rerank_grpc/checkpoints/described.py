"""The files by which sentence-transformers reads a cross-encoder with a prompt, as their contents."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from rerank_grpc.checkpoints.catalogue import Catalogue, KnownModel
from rerank_grpc.errors import ConfigurationError

# The text of a file, or what it holds as JSON, by its path in the checkpoint.
Files: TypeAlias = dict[str, Any]

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
DENSE = "sentence_transformers.base.modules.dense.Dense"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
TEMPLATE_FILE = "chat_template.jinja"
DENSE_FOLDER = "2_Dense"


_SLOT = re.compile(r"\{(query|document|instruction)\}")
_ROLES = {"instruction": "system"}  # the role of a message, where it is not the text's own name


def find_prompted(name: str, catalogue: Catalogue) -> KnownModel:
    """Finds a model of the catalogue that has a prompt; raises ConfigurationError."""
    known = catalogue.find(name)
    if known is None or not known.prompt:
        names = ", ".join(each.short for each in catalogue if each.prompt)
        raise ConfigurationError(f"--prompt: the catalogue has no prompt of {name!r}: name one of {names}")
    return known


def template_of(prompt: Mapping[str, Any]) -> str:
    """Writes a prompt in the catalogue's form as a chat template, with a message for each of its texts."""
    pieces = _SLOT.split("".join(prompt["segments"]))
    return "".join(
        _message(piece, prompt) if place % 2 else _quoted(piece) for place, piece in enumerate(pieces)
    )


def classifier_files(prompt: Mapping[str, Any]) -> Files:
    """The files of a classifier that reads query and document in a prompt."""
    files = _files("sequence-classification", "logits", "scores", template_of(prompt))
    if instruction := prompt.get("instruction"):
        files["config_sentence_transformers.json"] |= {
            "prompts": {"query": instruction},
            "default_prompt_name": "query",
        }
    return files


def pooled_files(template: str, hidden_size: int) -> Files:
    """The files of a body whose mean row, of `hidden_size` numbers, a score row weighs."""
    files = _files("feature-extraction", "last_hidden_state", "token_embeddings", template)
    files["modules.json"] += [_module(1, "1_Pooling", POOLING), _module(2, DENSE_FOLDER, DENSE)]
    files["1_Pooling/config.json"] = {
        "embedding_dimension": hidden_size,
        "pooling_mode": "mean",
        "include_prompt": True,
    }
    files[f"{DENSE_FOLDER}/config.json"] = {
        "in_features": hidden_size,
        "out_features": 1,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": "sentence_embedding",
        "module_output_name": "scores",
    }
    return files


def _files(task: str, output: str, name: str, template: str) -> Files:
    reads = {"method": "forward", "method_output_name": output}
    return {
        "modules.json": [_module(0, "", TRANSFORMER)],
        "sentence_bert_config.json": {
            "transformer_task": task,
            "modality_config": {"text": reads, "message": reads | {"format": "flat"}},
            "module_output_name": name,
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": SIGMOID,
            "prompts": {},
            "default_prompt_name": None,
        },
        TEMPLATE_FILE: template,
    }


def _module(place: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": kind}


def _message(slot: str, prompt: Mapping[str, Any]) -> str:
    """The expression of the text of a slot."""
    role = _ROLES.get(slot, slot)
    text = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
    if slot == "instruction":
        text += f" | default({json.dumps(prompt.get('instruction', ''))})"
    return "{{ " + text + (" | trim" if slot in prompt.get("strips", ()) else "") + " }}"


def _quoted(literal: str) -> str:
    """The expression of a literal, of which a template changes neither braces nor line breaks."""
    return "{{ " + json.dumps(literal) + " }}" if literal else ""
