"""Writes small models of late interaction, in the forms of PyLate, Stanford and sentence-transformers."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from tests import random_models as checkpoints

SIZE, HIDDEN = 24, 64
IDENTITY = "torch.nn.modules.linear.Identity"
WINDOW = 32  # ModernBERT's: each side sees half of it


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def stanford(path: Path, **metadata: Any) -> Path:
    """Writes a BERT as Stanford's ColBERT does: its weights under "bert.", the projection among them."""
    _bert_body(path)
    weights = {f"bert.{name}": weight for name, weight in load_file(path / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(1)
    weights["linear.weight"] = torch.randn(SIZE, HIDDEN, generator=generator)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    _change(path / "config.json", architectures=["HF_ColBERT"])
    facts = {"query_maxlen": 12, "doc_maxlen": 40, "attend_to_mask_tokens": False, "mask_punctuation": True}
    write_json(path / "artifact.metadata", facts | metadata)
    return path


def pylate(path: Path, body: str = "bert", dense: int = 1, **settings: Any) -> Path:
    """Writes a body with projections as PyLate 3 does: prefixes that are added tokens, no mask, no norm.

    A setting of None is left out.
    """
    added = [AddedToken("[Q] ", normalized=True), AddedToken("[D] ", normalized=True)]
    BODIES[body](path, added)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index in range(1, dense + 1):
        place = f"{index}_Dense"
        modules.append({"idx": index, "name": str(index), "path": place, "type": "pylate.models.Dense.Dense"})
        _dense(path / place, HIDDEN, SIZE if index == dense else HIDDEN, residual=index < dense)
    write_json(path / "modules.json", modules)
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})
    facts = {
        "model_type": "ColBERT",
        "prompts": {},
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 12,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
    }
    stated = {name: value for name, value in (facts | settings).items() if value is not None}
    write_json(path / "config_sentence_transformers.json", stated)
    return path


def native(path: Path, body: str = "bert", mask: Any = None, **transformer: Any) -> Path:
    """Writes what sentence-transformers' MultiVectorEncoder does, with prompts that are ordinary text."""
    BODIES[body](path)
    base = "sentence_transformers.base.modules"
    listed = [
        ("", f"{base}.transformer.Transformer"),
        ("1_Dense", f"{base}.dense.Dense"),
        ("2_MultiVectorMask", "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask"),
        ("3_Normalize", f"{base}.normalize.Normalize"),
    ]
    modules = [{"idx": n, "name": str(n), "path": p, "type": t} for n, (p, t) in enumerate(listed)]
    write_json(path / "modules.json", modules)
    _dense(path / "1_Dense", HIDDEN, SIZE, module_input_name="token_embeddings")
    words = {"skiplist_words": [".", ",", "the"], "skiplist_tasks": ["document"], "keep_only_token_ids": None}
    write_json(path / "2_MultiVectorMask" / "config.json", words | (mask or {}))
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    write_json(path / "3_Normalize" / "config.json", names)
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    facts = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text},
        "module_output_name": "token_embeddings",
        "query_length": 30,
        "document_length": 50,
        "query_expansion": {"strategy": "min", "length": 10, "attend": True, "token": None},
    }
    write_json(path / "sentence_bert_config.json", facts | transformer)
    settings = {
        "model_type": "MultiVectorEncoder",
        "prompts": {"query": "query: ", "document": "text: "},
        "similarity_fn_name": "maxsim",
    }
    write_json(path / "config_sentence_transformers.json", settings)
    return path


def _bert_body(path: Path, added: list[AddedToken] | None = None) -> None:
    tokenizer = _with_words(checkpoints.wordpiece())
    tokenizer.add_tokens(added or [])
    config = transformers.BertConfig(
        **checkpoints.SHAPE,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=checkpoints.MAX_TOKENS,
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    _save_wordpiece(tokenizer, path)


def _deberta_body(path: Path, added: list[AddedToken] | None = None) -> None:
    tokenizer = _with_words(checkpoints.wordpiece())
    tokenizer.add_tokens(added or [])
    config = transformers.DebertaV2Config(
        **checkpoints.SHAPE,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=checkpoints.MAX_TOKENS,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    )
    torch.manual_seed(0)
    transformers.DebertaV2Model(config).save_pretrained(path)
    _save_wordpiece(tokenizer, path)


def _save_wordpiece(tokenizer: Tokenizer, path: Path) -> None:
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    _save(tokenizer, path, model_input_names=inputs, mask_token="[MASK]", **names)


def _modern_body(path: Path, added: list[AddedToken] | None = None) -> None:
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens(added or [])
    config = transformers.ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        num_hidden_layers=4,
        max_position_embeddings=checkpoints.MAX_TOKENS,
        local_attention=WINDOW,
        **checkpoints.MODERNBERT,
    )
    torch.manual_seed(0)
    transformers.ModernBertModel(config).save_pretrained(path)
    _save_byte_level(tokenizer, path)


def _llama_body(path: Path, added: list[AddedToken] | None = None) -> None:
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens(added or [])
    config = transformers.LlamaConfig(
        **checkpoints.SHAPE,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=checkpoints.MAX_TOKENS,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    transformers.LlamaModel(config).save_pretrained(path)
    _save_byte_level(tokenizer, path)


BODIES = {"bert": _bert_body, "deberta": _deberta_body, "modernbert": _modern_body, "llama": _llama_body}


def _save_byte_level(tokenizer: Tokenizer, path: Path) -> None:
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _save(tokenizer, path, model_input_names=["input_ids", "attention_mask"], mask_token="<mask>", **names)


def _with_words(tokenizer: Tokenizer) -> Tokenizer:
    """Gives the vocabulary the two words that Stanford's prefixes are."""
    data = json.loads(tokenizer.to_str())
    for word in ("[unused0]", "[unused1]"):
        data["model"]["vocab"][word] = len(data["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(data))


def _save(tokenizer: Tokenizer, path: Path, **settings: Any) -> None:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=checkpoints.MAX_TOKENS, **settings
    )
    fast.save_pretrained(path)


def _dense(path: Path, inputs: int, outputs: int, *, residual: bool = False, **names: str) -> None:
    facts = {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": IDENTITY}
    write_json(path / "config.json", facts | ({"use_residual": True} if residual else {}) | names)
    generator = torch.Generator().manual_seed(outputs)
    save_file(
        {"linear.weight": torch.randn(outputs, inputs, generator=generator)}, path / "model.safetensors"
    )


def _change(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def drop_weight(path: Path, name: str) -> None:
    """Takes one weight out of a directory's file."""
    weights = load_file(path / "model.safetensors")
    del weights[name]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
