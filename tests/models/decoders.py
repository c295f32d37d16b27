"""Small decoders of many families, with random weights whose logits differ widely."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 400
WINDOW = 16
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "initializer_range": 0.3,
    "max_position_embeddings": 1_024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD: dict[str, Any] = {"head_dim": 16}
_SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# By name: the class of transformers, its config's, and what its config has of its own.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _HEAD),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen2 sliding": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        _SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _SLIDING),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "qwen3 moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _HEAD | _EXPERTS | {"num_experts": 4}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _HEAD | {"num_key_value_heads": 1}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _HEAD | _SLIDING | {"layer_types": _MIXED}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _HEAD | _SLIDING),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {"logits_scaling": 4.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", {"logit_scale": 0.25}),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        _HEAD | _SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
WINDOWED = [name for name, (_, _, own) in FAMILIES.items() if "sliding_window" in own]
# What the packed pass leaves out, by the reason that the check gives.
LEFT_OUT = {
    "gemma2": "softcap",
    "gpt-oss": "s_aux",
    "granite": "logits that are scaled or capped",
    "cohere": "logits that are scaled or capped",
}
PACKED = [name for name in FAMILIES if name not in LEFT_OUT]


def decoder(family: str, **changes: Any) -> Any:
    """Makes a network, in evaluation mode; each call makes the same weights."""
    architecture, configuration, own = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, configuration)(**_SHAPE | own | changes)
    network = getattr(transformers, architecture)(config).eval().requires_grad_(False)
    for name, weight in network.named_parameters():
        if name.endswith("sinks"):
            weight.normal_()  # transformers leaves them as memory happens to be
    return network
