"""The seam between the engine and a model: ModelCard, PackedTokens, Model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.causal import KeysValues
from rerank_grpc.models.prompt import Prompt
from rerank_grpc.types import Scoring


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a loaded model.

    Attributes:
        source: the directory or hub id it was loaded from.
        revision: a commit, or "sha256:" and 12 digits of its weights' digest.
        family: transformers' model_type, e.g. "xlm-roberta".
        scoring: how its logits become relevance scores.
        reads_pairs: True if one sequence holds query and document (a
            cross-encoder), False if each text is a sequence of its own
            (a bi-encoder).
        max_tokens: the longest sequence, special tokens included.
        device: "cpu", "cuda:0" …
        precision: "fp32", "bf16" or "fp16".
        attention: "packed (varlen)", "packed (sdpa)", "padded" …, as ListModels shows it.
        tokenizer_file: its tokenizer.json.
        accepts_instruction: whether a request's instruction means something to it.
        prompt: what a language model is asked; None for all others.
        prefix_token_bytes: what the keys and values of one token take.
        capturable: whether a pass is the same work for any lengths, so that
            a CUDA graph of it can be replayed for others.
    """

    source: str
    revision: str
    family: str
    scoring: Scoring
    reads_pairs: bool
    max_tokens: int
    device: str
    precision: str
    attention: str
    tokenizer_file: Path
    accepts_instruction: bool = False
    prompt: Prompt | None = None
    prefix_token_bytes: int = 0
    capturable: bool = False


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """All sequences of a batch laid end to end, without padding, on the model's device.

    In a decoder's batch, the prefixes that are not computed yet come first, as
    parts of their own, and the sequences after them.

    Attributes:
        input_ids: token ids  # [num_tokens] int64, on a GPU int32
        position_ids: places within each sequence, from 0, or from the end of
            what it continues  # [num_tokens], likewise
        token_type_ids: segment of each token, 0 or 1  # [num_tokens], likewise
        lengths: the length of each part; their sum is num_tokens. Empty in a
            pass that is captured, which goes by `layout` alone.
        contexts: what each part continues, if anything; empty if none does.
        prefixes: what the parts that come first leave; the pass fills it.
        layout: the lengths again, on the device; None on the CPU.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor
    lengths: tuple[int, ...]
    contexts: tuple[KeysValues | None, ...] = ()
    prefixes: tuple[KeysValues, ...] = ()
    layout: Layout | None = None


class Model(Protocol):
    """A model that scores packed sequences; called by one thread at a time."""

    @property
    def card(self) -> ModelCard:
        """What is known of it."""

    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Runs one pass: a logit  # [num_sequences, 1]  or a vector  # [num_sequences, hidden]
        for each sequence, float32, on the model's device; vectors have length 1.
        """
