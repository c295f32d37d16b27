"""The built-in model: all-MiniLM-L6-v2 with the CPU's own encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import BertModel

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.kernels.attention import SDPA
from rerank_grpc.kernels.cuda import operations_for
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.bi_encoder import SentenceEncoder
from rerank_grpc.models.encoder import Encoder
from rerank_grpc.models.network import read_outline
from rerank_grpc.types import Scoring


def load_embedded(checkpoint: Checkpoint, device: torch.device, precision: str = "fp32") -> SentenceEncoder:
    """Loads the built-in model, or raises ModelLoadError; on a GPU it is always fp32."""
    length = read_json(checkpoint.directory / "sentence_bert_config.json")["max_seq_length"]
    card = ModelCard(
        source=checkpoint.source,
        revision=checkpoint.revision,
        family=checkpoint.family,
        scoring=Scoring.COSINE,
        reads_pairs=False,
        max_tokens=min(int(length), int(checkpoint.config["max_position_embeddings"])),
        device=str(device),
        precision=precision,
        attention=SDPA,
        tokenizer_file=checkpoint.tokenizer_file,
    )
    plain: Any = {"add_pooling_layer": False}
    network, take = read_outline(partial(BertModel, **plain), BertModel, checkpoint, **plain)
    body = Encoder(network.config, take, "", operations=operations_for(card), first_only=False)
    return SentenceEncoder(card, body)
