"""Writes checkpoints whose classes are not transformers', and computes what their own code would.

The computations follow the published code of each model, from its weights by their own names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from torch import Tensor
from torch.nn import functional

from tests import random_models

HIDDEN, INNER, LAYERS, HEADS, SIZE = 64, 128, 3, 4, 16
Weights: TypeAlias = dict[str, Tensor]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

TASK = "Given a web search query, retrieve relevant passages that answer the query"


def gte(path: Path, *, packed: bool = True, **changes: Any) -> Path:
    """Writes a checkpoint as gte-multilingual-reranker-base is one: model_type `new`."""
    code = "Alibaba-NLP/new-impl--"
    config = {
        "architectures": ["NewForSequenceClassification"],
        "auto_map": {
            "AutoConfig": f"{code}configuration.NewConfig",
            "AutoModelForSequenceClassification": f"{code}modeling.NewForSequenceClassification",
        },
        "model_type": "new",
        "max_position_embeddings": random_models.MAX_TOKENS,
        "layer_norm_type": "layer_norm",
        "layer_norm_eps": 1e-12,
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "pack_qkv": packed,
        "position_embedding_type": "rope",
        "rope_scaling": None,
        "rope_theta": 20_000,
        "type_vocab_size": 1,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
        **_SHAPE,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "new.embeddings.word_embeddings.weight": (random_models.VOCABULARY, HIDDEN),
        "new.embeddings.token_type_embeddings.weight": (1, HIDDEN),
        **_norm("new.embeddings.LayerNorm"),
        **_linear("new.pooler.dense", HIDDEN, HIDDEN),
        **_linear("classifier", 1, HIDDEN),
    }
    for layer in (f"new.encoder.layer.{number}" for number in range(LAYERS)):
        projections = {"qkv": 3} if packed else {"q": 1, "k": 1, "v": 1}
        for name, count in projections.items():
            shapes |= _linear(f"{layer}.attention.{name}_proj", count * HIDDEN, HIDDEN)
        shapes |= _linear(f"{layer}.attention.o_proj", HIDDEN, HIDDEN)
        shapes[f"{layer}.mlp.up_gate_proj.weight"] = (2 * INNER, HIDDEN)
        shapes |= _linear(f"{layer}.mlp.down_proj", HIDDEN, INNER)
        shapes |= _norm(f"{layer}.attn_ln") | _norm(f"{layer}.mlp_ln")
    return _write(path, config | changes, shapes)


def gte_logits(weights: Weights, ids: Sequence[int], config: Mapping[str, Any]) -> Tensor:
    """The logit of one sequence by `new`'s own code."""
    rows = weights["new.embeddings.word_embeddings.weight"][list(ids)]
    rows = _normed(
        rows + weights["new.embeddings.token_type_embeddings.weight"][0], weights, "new.embeddings.LayerNorm"
    )
    cos, sin = _turns(len(ids), config)
    for layer in (f"new.encoder.layer.{number}" for number in range(LAYERS)):
        if f"{layer}.attention.qkv_proj.weight" in weights:
            qkv = _applied(rows, weights, f"{layer}.attention.qkv_proj").split(HIDDEN, dim=-1)
        else:
            qkv = tuple(_applied(rows, weights, f"{layer}.attention.{name}_proj") for name in "qkv")
        query, key, value = (each.view(-1, HEADS, SIZE).transpose(0, 1) for each in qkv)
        mixed = _attended(query * cos + _half(query) * sin, key * cos + _half(key) * sin, value)
        rows = _normed(
            rows + _applied(mixed, weights, f"{layer}.attention.o_proj"), weights, f"{layer}.attn_ln"
        )
        up, gate = (rows @ weights[f"{layer}.mlp.up_gate_proj.weight"].T).split(INNER, dim=-1)
        inner = _applied(functional.gelu(gate) * up, weights, f"{layer}.mlp.down_proj")
        rows = _normed(rows + inner, weights, f"{layer}.mlp_ln")
    pooled = torch.tanh(_applied(rows[0], weights, "new.pooler.dense"))
    return _applied(pooled, weights, "classifier")


def jina(path: Path, **changes: Any) -> Path:
    """Writes a checkpoint as jina-reranker-v2-base-multilingual is one, without a model_type."""
    code = "modeling_xlm_roberta.XLMRobertaForSequenceClassification"
    config = {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModelForSequenceClassification": code,
        },
        "max_position_embeddings": random_models.MAX_TOKENS + 2,
        "layer_norm_eps": 1e-5,
        "num_labels": 1,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
        "use_flash_attn": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **{key: value for key, value in _SHAPE.items() if key != "id2label"},
    }
    shapes: dict[str, tuple[int, ...]] = {
        "roberta.embeddings.word_embeddings.weight": (random_models.VOCABULARY, HIDDEN),
        "roberta.embeddings.position_embeddings.weight": (random_models.MAX_TOKENS + 2, HIDDEN),
        "roberta.embeddings.token_type_embeddings.weight": (1, HIDDEN),
        **_norm("roberta.emb_ln"),
        **_linear("classifier.dense", HIDDEN, HIDDEN),
        **_linear("classifier.out_proj", 1, HIDDEN),
    }
    for layer in (f"roberta.encoder.layers.{number}" for number in range(LAYERS)):
        shapes |= _linear(f"{layer}.mixer.Wqkv", 3 * HIDDEN, HIDDEN)
        shapes |= _linear(f"{layer}.mixer.out_proj", HIDDEN, HIDDEN)
        shapes |= _linear(f"{layer}.mlp.fc1", INNER, HIDDEN) | _linear(f"{layer}.mlp.fc2", HIDDEN, INNER)
        shapes |= _norm(f"{layer}.norm1") | _norm(f"{layer}.norm2")
    return _write(path, config | changes, shapes)


def jina_logits(weights: Weights, ids: Sequence[int], config: Mapping[str, Any]) -> Tensor:
    """The logit of one sequence by the code of jina's XLM-RoBERTa."""
    approximate = "none" if config["hidden_act"] == "gelu" else "tanh"
    positions = torch.arange(len(ids)) + config["pad_token_id"] + 1
    rows = weights["roberta.embeddings.word_embeddings.weight"][list(ids)]
    rows = rows + weights["roberta.embeddings.position_embeddings.weight"][positions]
    rows = rows + weights["roberta.embeddings.token_type_embeddings.weight"][0]
    eps = config["layer_norm_eps"]
    rows = _normed(rows, weights, "roberta.emb_ln", eps)
    for layer in (f"roberta.encoder.layers.{number}" for number in range(LAYERS)):
        packed = _applied(rows, weights, f"{layer}.mixer.Wqkv").view(-1, 3, HEADS, SIZE)
        mixed = _attended(*packed.permute(1, 2, 0, 3))
        rows = _normed(
            rows + _applied(mixed, weights, f"{layer}.mixer.out_proj"), weights, f"{layer}.norm1", eps
        )
        inner = functional.gelu(_applied(rows, weights, f"{layer}.mlp.fc1"), approximate=approximate)
        rows = _normed(rows + _applied(inner, weights, f"{layer}.mlp.fc2"), weights, f"{layer}.norm2", eps)
    return _applied(
        torch.tanh(_applied(rows[0], weights, "classifier.dense")), weights, "classifier.out_proj"
    )


def nemotron(path: Path, **changes: Any) -> Path:
    """Writes a checkpoint as llama-nemotron-rerank-1b-v2 is one; its tokenizer puts <s> before a text."""
    config = transformers.LlamaConfig(
        **random_models.DECODER_SHAPE | {"num_key_value_heads": 2, "num_labels": 1, "bos_token_id": 0}
    )
    random_models._write(transformers.LlamaForSequenceClassification, config, path)
    code = "llama_bidirectional_model.LlamaBidirectional"
    own = {
        "architectures": ["LlamaBidirectionalForSequenceClassification"],
        "auto_map": {
            "AutoConfig": f"{code}Config",
            "AutoModelForSequenceClassification": f"{code}ForSequenceClassification",
        },
        "model_type": "llama_bidirec",
        "pooling": "avg",
        "temperature": 1.0,
    }
    written = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(written | own | changes))
    tokenizer = random_models.byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    random_models._write_tokenizer(
        tokenizer, path, model_max_length=random_models.PROMPT_TOKENS, **random_models._ROBERTA_NAMES
    )
    return path


def nemotron_logits(directory: Path, query: str, documents: Sequence[str], temperature: float) -> Tensor:
    """The logits by NVIDIA's code: no mask, the mean of all rows, the score row.  # [num_documents]"""
    network = transformers.LlamaForSequenceClassification.from_pretrained(
        directory, config=transformers.LlamaConfig.from_pretrained(directory), attn_implementation="eager"
    ).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    logits = []
    for document in documents:
        ids = tokenizer(f"question:{query} \n \n passage:{document}", return_tensors="pt").input_ids
        seen = torch.zeros(1, 1, ids.shape[1], ids.shape[1])  # added to attention: all tokens see all
        rows = network.model(input_ids=ids, attention_mask=seen).last_hidden_state
        logits.append(network.score(rows.mean(dim=1)) / temperature)
    return torch.cat(logits).detach().flatten()


def qwen3_classifier(path: Path, causal: Path, yes: str = "yes", no: str = "no") -> Path:
    """Writes the classifier that the widespread script makes of a Qwen3-Reranker: a row yes − no."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(causal)
    source = transformers.Qwen3ForCausalLM.from_pretrained(causal)
    network = transformers.Qwen3ForSequenceClassification.from_pretrained(causal, num_labels=1)
    rows = source.lm_head.weight
    ids = tokenizer.convert_tokens_to_ids([yes, no])
    with torch.no_grad():
        network.score.weight.copy_((rows[ids[0]] - rows[ids[1]])[None])
    network.save_pretrained(path)
    tokenizer.chat_template = "{{ messages[0].content }}"  # clones carry the one of a chat model
    tokenizer.save_pretrained(path)
    return path


def qwen3_logits(causal: Path, query: str, documents: Sequence[str], task: str = TASK) -> Tensor:
    """The logits of yes less those of no, as the model card asks.  # [num_documents]"""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(causal)
    network = transformers.Qwen3ForCausalLM.from_pretrained(causal).eval()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    logits = []
    for document in documents:
        text = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
            'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
            "<|im_start|>user\n"
            f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        last = network(**tokenizer(text, return_tensors="pt")).logits[0, -1]
        logits.append(last[yes] - last[no])
    return torch.stack(logits).detach()


def pair_ids(directory: Path, query: str, document: str) -> list[int]:
    """The ids of a pair by the checkpoint's tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(query, document).ids
    return ids


def weights_of(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


_SHAPE: dict[str, Any] = {
    "vocab_size": random_models.VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "id2label": {"0": "LABEL_0"},
}


def _write(path: Path, config: Mapping[str, Any], shapes: Shapes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if name.rpartition(".")[0].endswith(("ln", "LayerNorm", "norm1", "norm2")) and name.endswith(
            "weight"
        ):
            weights[name] += 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    random_models._write_tokenizer(
        random_models.unigram(), path, model_input_names=["input_ids", "attention_mask"], **_TOKENS
    )
    return path


_TOKENS = random_models._ROBERTA_NAMES


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def _applied(rows: Tensor, weights: Weights, name: str) -> Tensor:
    return functional.linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _normed(rows: Tensor, weights: Weights, name: str, eps: float = 1e-12) -> Tensor:
    return functional.layer_norm(rows, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all tokens to all.  # [heads, tokens, size] thrice → [tokens, hidden]"""
    shares = (query @ key.transpose(1, 2) / SIZE**0.5).softmax(dim=-1)
    mixed: Tensor = (shares @ value).transpose(0, 1).reshape(-1, HIDDEN)
    return mixed


def _half(rows: Tensor) -> Tensor:
    return torch.cat((-rows[..., SIZE // 2 :], rows[..., : SIZE // 2]), dim=-1)


def _turns(count: int, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The cosines and sines of `new`'s rotary positions, with its NTK scaling.  # [tokens, size] each"""
    base, scaling = config["rope_theta"], config["rope_scaling"]
    factor = scaling["factor"] if scaling else 1.0
    frequencies = 1.0 / ((base * factor) ** (torch.arange(0, SIZE, 2).float() / SIZE))
    angles = torch.outer(torch.arange(count).float(), frequencies / factor ** (2 / SIZE))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()
