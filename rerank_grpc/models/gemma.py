"""BAAI/bge-reranker-v2-gemma: Gemma 2B with a question of its own, answered by Yes.

The prompt is FlagEmbedding's (FlagEmbedding/inference/reranker/decoder_only/base.py),
which encodes "A: …", the line break, "B: …" and the question each by itself. Its
score is the logit of "Yes" alone, and normalized the sigmoid of that.
"""

from __future__ import annotations

from rerank_grpc.models.decoder import Decoder
from rerank_grpc.models.prompt import Prompt
from rerank_grpc.types import Scoring

PROMPT = Prompt(
    system=("<bos>",),
    head=("A: {query}", "\n", "B:"),
    lead=" ",
    suffix=(
        "\n",
        "Given a query A and a passage B, determine whether the passage contains an answer to the query "
        "by providing a prediction of either 'Yes' or 'No'.",
    ),
    answers=("Yes",),
)


class Gemma(Decoder):
    """Scores by the logit of "Yes" at the last position."""

    prompt = PROMPT
    scoring = Scoring.SIGMOID
    max_tokens = 8_192
