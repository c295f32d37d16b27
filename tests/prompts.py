"""How the model cards' own code asks, for tests that compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.evidence.facts import Kind, Reading
from rerank_grpc.evidence.prompt import Prompt, parse_prompt
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import ModelCard
from rerank_grpc.tokenizer.tokenizer import Tokenizer, tokenizer_for
from rerank_grpc.types import Scoring
from tests import random_models as checkpoints


def _prompt(name: str) -> Prompt:
    known = builtin().find(name)
    assert known is not None
    return parse_prompt(known.prompt, name, "catalogue.toml")


PROMPTS = {"qwen3": _prompt(checkpoints.QWEN3_NAME), "gemma": _prompt(checkpoints.GEMMA_NAME)}
WRITERS = {"qwen3": checkpoints.qwen3_reranker, "gemma": checkpoints.gemma_reranker}
QUERY = "how does a coroutine wait for a future?"

# As https://huggingface.co/Qwen/Qwen3-Reranker-0.6B writes them.
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def card(directory: Path, family: str, max_tokens: int = checkpoints.PROMPT_TOKENS) -> ModelCard:
    return ModelCard(
        source=str(directory),
        revision="",
        family=family,
        scoring=Scoring.SOFTMAX,
        kind=Kind.CROSS_ENCODER,
        max_tokens=max_tokens,
        device="cpu",
        precision="fp32",
        attention=Attention.SDPA,
        tokenizer_file=directory / "tokenizer.json",
        reading=Reading(prompt=PROMPTS[family]),
        shares_prefixes=True,
    )


def tokenizer(directory: Path, family: str, max_tokens: int = checkpoints.PROMPT_TOKENS) -> Tokenizer:
    return tokenizer_for(card(directory, family, max_tokens))


def suffix_ids(directory: Path) -> list[int]:
    """The ids of Qwen3's suffix, by the model's own tokenizer."""
    own = transformers.AutoTokenizer.from_pretrained(directory)
    ids: list[int] = own.encode(SUFFIX, add_special_tokens=False)
    return ids


def own_ids(
    directory: Path, family: str, query: str, documents: Sequence[str], instruction: str = ""
) -> list[list[int]]:
    """The token ids that the model card's code makes, nothing cut."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    if family == "qwen3":
        return _qwen3_ids(tokenizer, query, documents, instruction or TASK)
    return _gemma_ids(tokenizer, query, documents)


def _qwen3_ids(tokenizer: Any, query: str, documents: Sequence[str], instruction: str) -> list[list[int]]:
    """`process_inputs` of the model card."""
    before = tokenizer.encode(PREFIX, add_special_tokens=False)
    after = tokenizer.encode(SUFFIX, add_special_tokens=False)
    pairs = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}" for document in documents]
    return [before + ids + after for ids in tokenizer(pairs, padding=False)["input_ids"]]


def _gemma_ids(tokenizer: Any, query: str, documents: Sequence[str]) -> list[list[int]]:
    """`compute_score_single_gpu` of FlagEmbedding's BaseLLMReranker."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    question = ids(
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'."
    )
    head = [tokenizer.bos_token_id, *ids(f"A: {query}")]
    return [head + ids("\n") + ids(f"B: {text}") + ids("\n") + question for text in documents]


def own_logits(directory: Path, family: str, rows: Sequence[list[int]]) -> torch.Tensor:
    """Transformers' logits in fp32, padded on the left, from the head's full width."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    network = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    batch = tokenizer.pad({"input_ids": list(rows)}, padding=True, return_tensors="pt")
    places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        logits = network(**batch, position_ids=places).logits[:, -1, :]
    if family == "qwen3":
        yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
        difference: torch.Tensor = logits[:, yes] - logits[:, no]
        return difference
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    found: torch.Tensor = logits[:, yes]
    return found
