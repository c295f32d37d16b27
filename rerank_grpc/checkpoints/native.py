"""Checkpoints that bring code of their own, in the form of transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rerank_grpc.errors import ModelLoadError

# A part of a weight's name → the one that replaces it, or those of the equal pieces that it is cut into.
Names: TypeAlias = Mapping[str, tuple[str, ...]]

GTE_NAMES: Names = {
    "new.": ("gte.",),
    ".encoder.layer.": (".layers.",),
    ".attention.qkv_proj.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."),
    ".attention.": (".self_attn.",),
    ".mlp.up_gate_proj.": (".mlp.up_proj.", ".mlp.gate_proj."),
    ".attn_ln.": (".post_attention_layernorm.",),
    ".mlp_ln.": (".post_mlp_layernorm.",),
}
XLM_ROBERTA_NAMES: Names = {
    ".emb_ln.": (".embeddings.LayerNorm.",),
    ".encoder.layers.": (".encoder.layer.",),
    ".mixer.Wqkv.": (".attention.self.query.", ".attention.self.key.", ".attention.self.value."),
    ".mixer.out_proj.": (".attention.output.dense.",),
    ".norm1.": (".attention.output.LayerNorm.",),
    ".mlp.fc1.": (".intermediate.dense.",),
    ".mlp.fc2.": (".output.dense.",),
    ".norm2.": (".output.LayerNorm.",),
}
# Settings without a meaning, or without a choice, in transformers' own classes.
GTE_OWN = (
    "rope_theta",
    "rope_scaling",
    "position_embedding_type",
    "layer_norm_type",
    "pack_qkv",
    "unpad_inputs",
    "use_memory_efficient_attention",
    "logn_attention_scale",
    "logn_attention_clip1",
)
XLM_ROBERTA_OWN = (
    "position_embedding_type",
    "use_flash_attn",
    "emb_pooler",
    "matryoshka_dimensions",
    "truncate_dim",
    "load_trained_adapters",
    "lora_adaptations",
    "lora_alpha",
    "lora_dropout_p",
    "lora_main_params_trainable",
    "lora_rank",
)
# Transformers' tables of its classes by model_type.
NATIVE_TABLES = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
)
TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # one function in jina's code


@dataclass(frozen=True, slots=True)
class Native:
    """A checkpoint in the form of one of transformers' classes.

    With a `prompt` it is a body without a head: a score row weighs the mean of its rows.
    """

    config: dict[str, Any]
    names: Names  # {}: the weights stay as they are
    prompt: Mapping[str, Any] | None = None  # in the catalogue's form
    temperature: float = 1.0  # what divides its score

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the weights that transformers' class has; raises ModelLoadError."""
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

        auto: Any = AutoModel if self.prompt else AutoModelForSequenceClassification
        prefix = "model." if self.prompt else ""
        try:
            with torch.device("meta"):
                network = auto.from_config(AutoConfig.for_model(**self.config))
        except Exception as error:  # as many classes as there are wrong values
            reason = " ".join(str(error).split())[:160]
            raise ModelLoadError(
                f"its config.json describes no {self.config['model_type']}: {reason}"
            ) from error
        found = {prefix + name: tuple(weight.shape) for name, weight in network.state_dict().items()}
        return found | ({"score.weight": (1, self.config["hidden_size"])} if self.prompt else {})


Form: TypeAlias = Callable[[Mapping[str, Any]], Native]


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that a config.json names; "none" if it names none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "none"


def find_form(config: Mapping[str, Any]) -> Form | None:
    """Finds what rewrites a config.json whose code is known, and which raises ModelLoadError."""
    architecture = architecture_of(config)
    auto_map = config.get("auto_map")
    code = auto_map.get("AutoConfig") if isinstance(auto_map, dict) else None
    if architecture == "XLMRobertaForSequenceClassification" and not str(code).endswith(
        ".XLMRobertaFlashConfig"
    ):
        return None  # transformers' own class of that name
    return FORMS.get(architecture)


def is_native(config: Mapping[str, Any]) -> bool:
    """Tells whether transformers has the class that a config.json names, for its model_type."""
    from transformers.models.auto import modeling_auto

    family, architecture = str(config.get("model_type")), architecture_of(config)
    for table in NATIVE_TABLES:
        names = getattr(modeling_auto, table).get(family, ())
        if architecture in ((names,) if isinstance(names, str) else names):
            return True
    return False


def renamed(name: str, weight: Tensor, names: Names) -> Iterator[tuple[str, Tensor]]:
    """Yields a weight under its new name, or its pieces along the first axis; a new name stays."""
    targets = [name]
    for old, new in names.items():
        if old in targets[0]:
            targets = [target.replace(old, each) for target in targets for each in new]
    pieces = weight.chunk(len(targets)) if len(targets) > 1 else (weight,)
    for target, piece in zip(targets, pieces, strict=True):
        yield target, piece.clone().contiguous()


def _gte(config: Mapping[str, Any]) -> Native:
    """Rewrites Alibaba's `new`, of which transformers' Gte is the form with rotary positions."""
    _require(config, "position_embedding_type", "rope")
    _require(config, "layer_norm_type", "layer_norm")
    _require(config, "logn_attention_scale", False)
    own = {"model_type": "gte", "rope_parameters": _rope(config)}
    native = _rewritten(config, GTE_OWN, "GteForSequenceClassification", own)
    return Native({"pad_token_id": None} | native, GTE_NAMES)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Says in transformers' words how `new` turns its queries and keys.

    Its fixed NTK scaling by s in d dimensions, (s · theta) ^ (-2i / d) / s ^ (2 / d), is a linear one.
    """
    theta, scaling = float(config.get("rope_theta", 10_000.0)), config.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if not isinstance(scaling, dict) or scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
        raise ModelLoadError(f"its rope_scaling {str(scaling)[:80]} has no form in transformers")
    factor = float(scaling["factor"])
    if factor <= 1:
        return {"rope_type": "default", "rope_theta": theta}
    size = config["hidden_size"] // config["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}


def _xlm_roberta(config: Mapping[str, Any]) -> Native:
    """Rewrites jina's XLM-RoBERTa, whose computation is transformers' own in other names."""
    _require(config, "position_embedding_type", "absolute")
    if config.get("lora_adaptations"):
        raise ModelLoadError("it has adapters (lora_adaptations), which transformers' own class has not")
    act = config.get("hidden_act", "gelu")
    own = {"model_type": "xlm-roberta", "hidden_act": "gelu_pytorch_tanh" if act in TANH_GELUS else act}
    native = _rewritten(config, XLM_ROBERTA_OWN, "XLMRobertaForSequenceClassification", own)
    labels = native.pop("num_labels", None)
    return Native(native | ({"id2label": {"0": "LABEL_0"}} if labels == 1 else {}), XLM_ROBERTA_NAMES)


def _llama(config: Mapping[str, Any]) -> Native:
    """Rewrites NVIDIA's Llama that attends both ways, as a body behind which the mean is scored."""
    _require(config, "pooling", "avg")
    _require(config, "is_causal", False)
    temperature = float(config.get("temperature", 1.0))
    if not temperature > 0:
        raise ModelLoadError(f"its temperature is {temperature}, which divides nothing")
    own = {"model_type": "llama", "is_causal": False}
    native = _rewritten(config, ("pooling", "temperature", "num_labels"), "LlamaModel", own)
    return Native(native, {}, NEMOTRON, temperature)


def _require(config: Mapping[str, Any], key: str, value: object) -> None:
    if config.get(key, value) != value:
        raise ModelLoadError(
            f"its {key} is {config[key]!r}, where transformers' own class has {value!r} only"
        )


def _rewritten(
    config: Mapping[str, Any], dropped: tuple[str, ...], architecture: str, own: dict[str, Any]
) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("auto_map", *dropped)}
    return kept | {"architectures": [architecture]} | own


# The prompt of the model card, https://huggingface.co/nvidia/llama-nemotron-rerank-1b-v2: one text.
NEMOTRON = {"segments": ["question:{query} \n \n passage:{document}"]}
FORMS: Mapping[str, Form] = {
    "NewForSequenceClassification": _gte,
    "XLMRobertaForSequenceClassification": _xlm_roberta,
    "LlamaBidirectionalForSequenceClassification": _llama,
}
