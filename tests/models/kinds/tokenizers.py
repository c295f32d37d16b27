"""The tokenizers of the kinds, each trained once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from tests import random_models

BERT_NAMES: Mapping[str, Any] = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_NAMES: Mapping[str, Any] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
QWEN_NAMES: Mapping[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LLAMA_NAMES: Mapping[str, Any] = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|endoftext|>",
}
GEMMA_NAMES: Mapping[str, Any] = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@cache
def _trained(make: Callable[[], Tokenizer]) -> str:
    text: str = make().to_str()
    return text


def wordpiece(*, lower_case: bool = True) -> Tokenizer:
    """A tokenizer like BERT's; without lower case, every capital letter is a word of its own or unknown."""
    tokenizer = Tokenizer.from_str(_trained(random_models.wordpiece))
    if not lower_case:
        tokenizer.normalizer.lowercase = False
    return tokenizer


def byte_level() -> Tokenizer:
    """A tokenizer like RoBERTa's."""
    return Tokenizer.from_str(_trained(random_models.byte_level))


def unigram() -> Tokenizer:
    """A tokenizer like XLM-RoBERTa's."""
    return Tokenizer.from_str(_trained(random_models.unigram))


def qwen() -> Tokenizer:
    """A tokenizer like Qwen's."""
    return Tokenizer.from_str(_trained(random_models.qwen_tokenizer))


def llama() -> Tokenizer:
    """A tokenizer like Llama 3's, with the control tokens of its template."""
    tokenizer = qwen()
    tokenizer.add_special_tokens(HEADERS)
    return tokenizer


def gemma() -> Tokenizer:
    """A tokenizer like Gemma's."""
    return Tokenizer.from_str(_trained(random_models.gemma_tokenizer))
