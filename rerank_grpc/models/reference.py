"""What transformers itself says: the padded pass that `rerank-grpc verify` compares with.

Its own tokenizer, its own batches, its own attention, in fp32: nothing here is
shared with the packed pass but the weights' files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rerank_grpc.models.base import Model
from rerank_grpc.models.network import _quiet as quiet


def reference_logits(model: Model, query: str, documents: Sequence[str]) -> list[float]:
    """Scores documents as the model's card does: logits, or cosines for a bi-encoder."""
    card, pooling = model.card, getattr(model, "pooling", "mean")
    directory = card.tokenizer_file.parent
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    auto = AutoModelForSequenceClassification if card.reads_pairs else AutoModel
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory, **options)
        network = auto.from_pretrained(directory, dtype=torch.float32, use_safetensors=True, **options)
    network = network.eval().to(card.device)

    def run(*texts: list[str]) -> tuple[Any, torch.Tensor]:
        batch = tokenizer(
            *texts, padding=True, truncation=True, max_length=card.max_tokens, return_tensors="pt"
        ).to(card.device)
        return network(**batch), batch["attention_mask"]

    with torch.inference_mode():
        if card.reads_pairs:
            output, _ = run([query] * len(documents), list(documents))
            return [float(logit) for logit in output.logits[:, 0]]
        output, mask = run([query, *documents])
        hidden = output.last_hidden_state
        if pooling == "first":
            vectors = hidden[:, 0]
        else:
            vectors = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        vectors = normalize(vectors.float())
        return [float(cosine) for cosine in vectors[1:] @ vectors[0]]
