"""Qwen/Qwen3-Reranker-0.6B, -4B and -8B: a language model that answers yes or no.

The prompt is the model card's, at https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
(section "Transformers Usage"): system text and think block are encoded apart from
what stands between them.
"""

from __future__ import annotations

from rerank_grpc.models.decoder import Decoder
from rerank_grpc.models.prompt import Prompt
from rerank_grpc.types import Scoring

PROMPT = Prompt(
    system=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    ),
    head=("<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",),
    lead=" ",
    suffix=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    answers=("yes", "no"),
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)


class Qwen3(Decoder):
    """Scores by softmax over "yes" and "no" at the last position."""

    prompt = PROMPT
    scoring = Scoring.SOFTMAX
    max_tokens = 32_768  # the model card's; the table of positions is longer
