"""Bi-encoders in sentence-transformers' format, e.g. all-MiniLM-L6-v2: texts to vectors of length 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModel

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.encoder import Encoder
from rerank_grpc.models.modernbert import round_weights, run_rotary
from rerank_grpc.models.network import read_network
from rerank_grpc.models.packed import first_rows, mean_rows, run_body

FAMILIES = ("bert", "roberta", "xlm-roberta", "modernbert")
POOLS = {"first": first_rows, "mean": mean_rows}
# The names in a pooling module's config.json, old and new, and ours.
POOLING_NAMES = {"cls_token": "first", "mean_tokens": "mean", "cls": "first", "mean": "mean"}
PLAIN_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


class SentenceEncoder:
    """Turns texts into vectors of length 1: the first of the last layer's rows, or their mean."""

    def __init__(
        self,
        card: ModelCard,
        network: Any,
        dtype: torch.dtype = torch.float32,
        pooling: str = "mean",
    ) -> None:
        self.card = card
        self.pooling = pooling
        self._pool = POOLS[pooling]
        self._body = network if isinstance(network, Encoder) else round_weights(network, dtype)
        self._first_position = 0
        if card.family in ("roberta", "xlm-roberta"):  # they reserve the rows up to the padding id's
            self._first_position = int(network.embeddings.padding_idx) + 1

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Encodes each sequence; see base.Model.  # [num_sequences, hidden]."""
        if self.card.family == "modernbert":
            hidden = run_rotary(self._body, packed)
        else:
            hidden = run_body(
                self._body,
                packed,
                position_ids=packed.position_ids + self._first_position,
                token_type_ids=packed.token_type_ids,
            )
        return normalize(self._pool(hidden, packed))


def read_body(checkpoint: Checkpoint, *, attention: str) -> Any:
    """Reads the network without what some of them would put behind the last layer."""
    options = {}
    if checkpoint.family in ("bert", "roberta", "xlm-roberta"):
        options["add_pooling_layer"] = False
    return read_network(AutoModel, checkpoint, attention=attention, **options)


def module_kinds(checkpoint: Checkpoint) -> list[str]:
    """Lists the modules that sentence-transformers would build; [] where it has no say."""
    path = checkpoint.directory / "modules.json"
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{path}: cannot be read ({type(error).__name__}): copy it again") from error


def pooling_of(checkpoint: Checkpoint) -> str:
    """Reads which rows a bi-encoder pools; raises ModelLoadError for what is not done here."""
    directory = checkpoint.directory
    kinds = module_kinds(checkpoint)
    if kinds not in PLAIN_MODULES:
        raise ModelLoadError(
            f"{directory}/modules.json: {', '.join(kinds)}: this version knows a transformer with pooling"
        )
    if checkpoint.family not in FAMILIES:
        raise ModelLoadError(
            f"{directory}: a bi-encoder of family {checkpoint.family} is not supported: "
            f"use one of {', '.join(FAMILIES)}"
        )
    _check_settings(checkpoint)
    places = sorted(directory.glob("*_Pooling/config.json"))
    if not places:
        raise ModelLoadError(f"{directory}: no 1_Pooling/config.json: copy the whole checkpoint")
    config = read_json(places[0])
    chosen = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
    chosen = [name for name in chosen if name != "include_prompt"]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    if len(chosen) != 1 or chosen[0] not in POOLING_NAMES:
        raise ModelLoadError(
            f"{places[0]}: pools by {', '.join(chosen) or 'nothing'}, which is not supported"
        )
    return POOLING_NAMES[chosen[0]]


def longest_of(checkpoint: Checkpoint) -> int | None:
    """Reads to how many tokens sentence-transformers cuts a text, where it says so."""
    path = checkpoint.directory / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length") if path.is_file() else None
    return int(length) if isinstance(length, int) else None


def _check_settings(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError if texts or vectors are treated in a way that is not done here."""
    for name, check in (
        ("config_sentence_transformers.json", _unlike),
        ("sentence_bert_config.json", lambda found: "do_lower_case" if found.get("do_lower_case") else ""),
    ):
        path = checkpoint.directory / name
        reason = check(read_json(path)) if path.is_file() else ""
        if reason:
            raise ModelLoadError(f"{path}: asks for {reason}, which this version does not do")


def _unlike(found: Mapping[str, Any]) -> str:
    prompts = found.get("prompts") or {}
    if found.get("default_prompt_name") or any(prompts.values()):
        return "a prompt before its texts"
    if found.get("similarity_fn_name") not in (None, "cosine"):
        return f"the similarity {found['similarity_fn_name']!r}"
    return ""
