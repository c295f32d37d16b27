"""The seam between a runner and a model: ModelCard, PackedTokens, Model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import torch

from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import KeysValues, Layout
from rerank_grpc.models.prompts import Prompt
from rerank_grpc.types import Scoring


class Kind(Enum):
    """The content of one sequence, by the names of the catalogue.

    A cross-encoder reads query and document together, a bi-encoder each text
    by itself, and a language model a prompt with both.
    """

    CROSS_ENCODER = "cross-encoder"
    BI_ENCODER = "bi-encoder"
    LANGUAGE_MODEL = "language model"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The facts of a loaded model.

    Attributes:
        source: the directory or hub id it was loaded from.
        revision: a commit, or "sha256:" and 12 digits of its weights' digest.
        family: transformers' model_type, e.g. "xlm-roberta".
        kind: what one sequence holds.
        scoring: how its logits become relevance scores.
        max_tokens: the longest sequence, special tokens included.
        device: "cpu", "cuda:0" …
        precision: "fp32", "bf16", "fp16" or "int8".
        attention: how it attends; ListModels shows the label.
        tokenizer_file: its tokenizer.json.
        pooling: the rows behind its last layer that it reads: "first", "mean" or "last".
        accepts_instruction: whether the instruction of a request changes its scores.
        prompt: the prompt of a language model; None for all others.
        prefix_token_bytes: the memory for the keys and values of one token.
        capturable: whether a pass is the same work for any lengths, so that
            a CUDA graph of it can be replayed for others.
    """

    source: str
    revision: str
    family: str
    kind: Kind
    scoring: Scoring
    max_tokens: int
    device: str
    precision: str
    attention: Attention
    tokenizer_file: Path
    pooling: str = "first"
    accepts_instruction: bool = False
    prompt: Prompt | None = None
    prefix_token_bytes: int = 0
    capturable: bool = False


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """All sequences of a batch laid end to end, without padding, on the model's device.

    In the batch of a language model, the prefixes that are not computed yet
    come first, as parts of their own, and the sequences after them.

    Attributes:
        input_ids: token ids  # [num_tokens] int64, on a GPU int32
        position_ids: positions within each sequence, from 0, or from the end of
            the prefix that it continues  # [num_tokens], likewise
        token_type_ids: segment of each token, 0 or 1  # [num_tokens], likewise
        lengths: the length of each part; their sum is num_tokens. Empty in a
            captured pass, which reads `layout` alone.
        contexts: the prefix that each part continues, if any; empty if none does.
        prefixes: those of the first parts; the pass fills them.
        layout: the lengths again, on the device; None on the CPU.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor
    lengths: tuple[int, ...]
    contexts: tuple[KeysValues | None, ...] = ()
    prefixes: tuple[KeysValues, ...] = ()
    layout: Layout | None = None

    def layout_of_parts(self) -> Layout:
        """The layout, which on the CPU is made of the lengths."""
        return self.layout or Layout.of(self.lengths)


class Model(Protocol):
    """A model that scores packed sequences; called by one thread at a time."""

    @property
    def card(self) -> ModelCard:
        """The facts of it."""

    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Runs one pass: a logit  # [num_sequences, 1]  or a vector  # [num_sequences, hidden]
        for each sequence, float32, on the model's device; vectors have length 1.
        """
