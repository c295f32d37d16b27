"""Writes small checkpoints: real architectures, random weights, tokenizers trained on natural texts.

Weights drawn as transformers does by default give every document nearly the
same score, and a test against them proves nothing: INITIALIZER_RANGE and HEAD_SCALE
make the scores' standard deviation larger than 1.
"""

from __future__ import annotations

import functools
import json
import math
import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from rerank_grpc.checkpoints.catalogue import builtin

INITIALIZER_RANGE = 0.3
HEAD_SCALE = 3.0
MAX_TOKENS = 128
VOCABULARY = 2_000
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": INITIALIZER_RANGE,
    "num_labels": 1,
}


# A small ModernBERT's, with the control tokens of byte_level().
MODERNBERT: dict[str, Any] = {
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
}
PROMPT_TOKENS = 320
DECODER_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY + 64,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "intermediate_size": 128,
    "initializer_range": INITIALIZER_RANGE,
    "max_position_embeddings": PROMPT_TOKENS,
    "tie_word_embeddings": True,
}
# By which the catalogue knows the prompts of models whose files say nothing of them.
QWEN3_NAME, GEMMA_NAME = "Qwen3-Reranker-0.6B", "bge-reranker-v2-gemma"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
] + [
    f"<|{name}|>"
    for name in ("box_start", "box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad")
]
QWEN_UNMARKED = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
] + [f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")]
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
GEMMA_UNMARKED = ["<2mass>", "[@BOS@]", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"]


def texts() -> list[str]:
    """Paragraphs about Python, natural and always there."""
    return [
        paragraph
        for topic in pydoc_data.topics.topics.values()
        for paragraph in topic.split("\n\n")
        if len(paragraph) > 40
    ]


def bert(path: Path, **changes: Any) -> Path:
    """Writes a BERT with one label and a WordPiece tokenizer, lower case."""
    settings = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_TOKENS, "pad_token_id": 0}
    config = transformers.BertConfig(**SHAPE | settings | changes)
    _write(transformers.BertForSequenceClassification, config, path)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    _write_tokenizer(wordpiece(), path, model_input_names=inputs, **_BERT_NAMES)
    return path


def roberta(path: Path, **changes: Any) -> Path:
    """Writes a RoBERTa with one label and a byte-level BPE tokenizer."""
    config = transformers.RobertaConfig(**SHAPE | _ROBERTA | changes)
    _write(transformers.RobertaForSequenceClassification, config, path)
    _write_tokenizer(byte_level(), path, model_input_names=["input_ids", "attention_mask"], **_ROBERTA_NAMES)
    return path


def xlm_roberta(path: Path, **changes: Any) -> Path:
    """Writes an XLM-RoBERTa with one label and a Unigram tokenizer whose control tokens are pieces."""
    config = transformers.XLMRobertaConfig(**SHAPE | _ROBERTA | changes)
    _write(transformers.XLMRobertaForSequenceClassification, config, path)
    _write_tokenizer(unigram(), path, model_input_names=["input_ids", "attention_mask"], **_ROBERTA_NAMES)
    return path


def deberta(path: Path, **changes: Any) -> Path:
    """Writes a DeBERTa-v2 with one label, which does its attention itself."""
    settings = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_TOKENS,
        "relative_attention": True,
        "position_buckets": 32,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
        "position_biased_input": False,
        "pad_token_id": 0,
    }
    config = transformers.DebertaV2Config(**SHAPE | settings | changes)
    _write(transformers.DebertaV2ForSequenceClassification, config, path)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    _write_tokenizer(wordpiece(), path, model_input_names=inputs, **_BERT_NAMES)
    return path


def electra(path: Path) -> Path:
    """Writes an ELECTRA with one label, which has no file of its own among the models."""
    settings = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_TOKENS, "embedding_size": 32}
    config = transformers.ElectraConfig(**SHAPE | settings)
    _write(transformers.ElectraForSequenceClassification, config, path)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    _write_tokenizer(wordpiece(), path, model_input_names=inputs, **_BERT_NAMES)
    return path


def qwen3(path: Path) -> Path:
    """Writes a decoder with one label, and a tokenizer that puts nothing between two texts."""
    settings = {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 1}
    config = transformers.Qwen3Config(**SHAPE | settings)
    _write(transformers.Qwen3ForSequenceClassification, config, path)
    _write_tokenizer(byte_level(), path, **_ROBERTA_NAMES)
    return path


def qwen3_reranker(path: Path, **changes: Any) -> Path:
    """Writes a Qwen3 as Qwen3-Reranker is one: grouped heads, tied embeddings, Qwen's own tokenizer.

    The directory's name, inside `path`, is that by which the catalogue knows its prompt.
    """
    path = path / QWEN3_NAME
    config = transformers.Qwen3Config(**DECODER_SHAPE | {"num_key_value_heads": 2} | changes)
    _write_language_model(transformers.Qwen3ForCausalLM, config, path)
    _write_tokenizer(qwen_tokenizer(), path, model_max_length=PROMPT_TOKENS, **_QWEN_NAMES)
    return path


def gemma_reranker(path: Path, **changes: Any) -> Path:
    """Writes a Gemma as bge-reranker-v2-gemma is one: one key head for all, pieces that begin with ▁.

    The directory's name, inside `path`, is that by which the catalogue knows its prompt.
    """
    path = path / GEMMA_NAME
    own = {"num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = transformers.GemmaConfig(**DECODER_SHAPE | own | changes)
    _write_language_model(transformers.GemmaForCausalLM, config, path)
    _write_tokenizer(gemma_tokenizer(), path, model_max_length=PROMPT_TOKENS, **_GEMMA_NAMES)
    return path


def gpt2(path: Path) -> Path:
    """Writes a decoder whose configuration does not say so."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, **_ROBERTA_IDS | {"num_labels": 1}
    )
    _write(transformers.GPT2ForSequenceClassification, config, path)
    _write_tokenizer(byte_level(), path, **_ROBERTA_NAMES)
    return path


def xlnet(path: Path) -> Path:
    """Writes a model that pools the last place, padding or not."""
    config = transformers.XLNetConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        n_layer=2,
        n_head=4,
        d_inner=128,
        **_ROBERTA_IDS | {"num_labels": 1},
    )
    _write(transformers.XLNetForSequenceClassification, config, path)
    _write_tokenizer(byte_level(), path, **_ROBERTA_NAMES)
    return path


_ROBERTA_IDS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_ROBERTA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_TOKENS + 2,
    "type_vocab_size": 1,
    **_ROBERTA_IDS,
}
_BERT_NAMES = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_GEMMA_NAMES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_ROBERTA_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def wordpiece() -> Tokenizer:
    """A tokenizer like BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The trainer numbers the pieces inside words in an order that each process draws anew: they stand first.
    letters = {*tokenizer.normalizer.normalize_str("".join(_corpus()))} - {" "}
    inside = ["##" + letter for letter in sorted(letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special + inside, show_progress=False
    )
    tokenizer = _trained("wordpiece", tokenizer, trainer, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"))
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(data))


def byte_level() -> Tokenizer:
    """A tokenizer like RoBERTa's, with one token of its user's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained = _trained("byte level", tokenizer, trainer, ("<s> $A </s>", "<s> $A </s> </s> $B </s>"))
    trained.add_tokens([AddedToken("    ", normalized=False)])
    return trained


def unigram() -> Tokenizer:
    """A tokenizer like XLM-RoBERTa's, with its control tokens among the pieces, at score 0."""
    return Tokenizer.from_str(_unigram())


@functools.cache
def _unigram() -> str:
    normalizer = normalizers.NFKC()
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    # Unigram's own trainer finds other pieces in each process, so those of a BPE are taken, in its order.
    pairs = Tokenizer(models.BPE())
    pairs.normalizer, pairs.pre_tokenizer = normalizer, splitter
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, special_tokens=special, show_progress=False)
    pairs.train_from_iterator(_corpus(), trainer)
    vocabulary = pairs.get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    scores = [0.0 if piece in special else -math.log(place) for place, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram([*zip(pieces, scores, strict=True)], unk_id=special.index("<unk>")))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    text: str = _with_template(tokenizer, ("<s> $A </s>", "<s> $A </s> </s> $B </s>")).to_str()
    return text


def qwen_tokenizer() -> Tokenizer:
    """A tokenizer with Qwen's steps and added tokens, some of which are not marked as special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus() + [_asked(QWEN3_NAME)] * 300, trainer)
    tokenizer.add_special_tokens(QWEN_SPECIAL)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in QWEN_UNMARKED])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def gemma_tokenizer() -> Tokenizer:
    """A tokenizer with Gemma's steps: spaces become ▁, and a piece holds one at its beginning only."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for the training only
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=GEMMA_SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus() + [_asked(GEMMA_NAME)] * 300, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in GEMMA_SPECIAL]
    data["pre_tokenizer"] = json.loads(Tokenizer(models.BPE()).to_str())["pre_tokenizer"]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in GEMMA_UNMARKED])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def _asked(name: str) -> str:
    """A prompt of the catalogue as a text, with its answers, so that a trained tokenizer knows its words."""
    known = builtin().find(name)
    assert known is not None
    prompt = known.prompt
    words = [*prompt["segments"], prompt.get("instruction", ""), *prompt["answers"]]
    return " ".join(words).replace("<|", " ")


_cache: dict[str, str] = {}


def _trained(name: str, tokenizer: Tokenizer, trainer: Any, templates: tuple[str, str]) -> Tokenizer:
    """Trains a tokenizer, once for all tests, and gives it its template."""
    if name not in _cache:
        tokenizer.train_from_iterator(_corpus(), trainer)
        _cache[name] = _with_template(tokenizer, templates).to_str()
    return Tokenizer.from_str(_cache[name])


def _with_template(tokenizer: Tokenizer, templates: tuple[str, str]) -> Tokenizer:
    special = sorted({word.split(":")[0] for word in templates[1].split() if word[0] != "$"})
    tokenizer.post_processor = processors.TemplateProcessing(
        single=templates[0],
        pair=templates[1],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    return tokenizer


@functools.cache
def _corpus() -> list[str]:
    return texts()[:3_000]


def _write(architecture: Any, config: Any, path: Path) -> None:
    torch.manual_seed(0)
    network = architecture(config).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == config.num_labels:
                module.weight *= HEAD_SCALE
    network.save_pretrained(path)


def _write_language_model(architecture: Any, config: Any, path: Path) -> None:
    torch.manual_seed(0)
    architecture(config).eval().save_pretrained(path)


def _write_tokenizer(tokenizer: Tokenizer, path: Path, **settings: Any) -> None:
    settings = {"model_max_length": MAX_TOKENS} | settings
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(path)
