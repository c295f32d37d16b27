"""What transformers itself says: the padded pass that `rerank-grpc verify` compares with.

Its own tokenizer, its own batches, its own attention, in fp32: nothing here is
shared with the packed pass but the weights' files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.network import _quiet as quiet


def reference_logits(card: ModelCard, query: str, documents: Sequence[str]) -> list[float]:
    """Scores documents as the model's own files say: logits, or cosines for a bi-encoder."""
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
        if _pools_first_row(directory):
            vectors = hidden[:, 0]
        else:
            vectors = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        vectors = normalize(vectors.float())
        return [float(cosine) for cosine in vectors[1:] @ vectors[0]]


def _pools_first_row(directory: Path) -> bool:
    """Whether sentence-transformers' file takes a text's first row as its vector, and not the mean of all."""
    (path,) = directory.glob("*_Pooling/config.json")
    config = json.loads(path.read_bytes())
    return config.get("pooling_mode") == "cls" or config.get("pooling_mode_cls_token") is True
