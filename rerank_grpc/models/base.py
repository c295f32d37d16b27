"""The seam between a runner and a model: ModelCard, PackedTokens, Model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rerank_grpc.evidence.facts import AS_WRITTEN, Kind, LateInteraction, Reading
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import KeysValues, Layout
from rerank_grpc.types import Scoring


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The facts of a loaded model."""

    source: str  # the directory or hub id it was loaded from
    revision: str  # a commit, or "sha256:" and 12 digits of its weights' digest
    family: str  # transformers' model_type, e.g. "xlm-roberta"
    kind: Kind
    scoring: Scoring
    max_tokens: int  # the longest sequence, special tokens included
    device: str  # "cpu", "cuda:0" …
    precision: str  # one of PRECISIONS
    attention: Attention
    tokenizer_file: Path
    reading: Reading = AS_WRITTEN
    pooling: str = "first"  # the rows behind its last layer that it reads: "first", "mean", "max" or "last"
    activation: str = "sigmoid"  # the function that the files name for the logit
    scale: float = 1.0  # relevance_score = activation(scale · logit + offset)
    offset: float = 0.0
    late: LateInteraction | None = None
    skipped_ids: frozenset[int] = frozenset()  # the tokens whose rows are left out of its documents
    shares_prefixes: bool = False  # whether tokens before many documents are computed once
    prefix_token_bytes: int = 0  # the memory for the keys and values of one token
    # Whether a pass is the same work for any lengths, so that a CUDA graph of it can be replayed for others
    capturable: bool = False
    level: str = ""  # of the kernels in C, where they attend

    @property
    def attention_label(self) -> str:
        """The attention for people, with the level of the kernels in C: "packed (kernels avx2)"."""
        label = self.attention.label
        return f"{label.removesuffix(')')} {self.level})" if self.level else label

    @property
    def accepts_instruction(self) -> bool:
        """Whether the instruction of a request changes the scores."""
        prompt = self.reading.prompt
        return prompt is not None and bool(prompt.instructed)


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """All sequences of a batch laid end to end, without padding, on the model's device.

    In a language model's batch, prefixes that are not computed yet come first, as parts of their own.
    """

    input_ids: Tensor  # [num_tokens] int64, on a GPU int32
    position_ids: Tensor  # in each sequence, from 0 or the end of the prefix that it continues; likewise
    token_type_ids: Tensor  # the segment of each token, 0 or 1; likewise
    layout: Layout  # of the parts
    contexts: tuple[KeysValues | None, ...] = ()  # the prefix that each part continues; () if none does
    prefixes: tuple[KeysValues, ...] = ()  # those of the first parts; the pass fills them


class Model(Protocol):
    """A model that scores packed sequences; called by one thread at a time."""

    @property
    def card(self) -> ModelCard:
        """The facts of it."""

    def forward(self, packed: PackedTokens) -> Tensor:
        """Runs one pass: a logit  # [num_sequences, 1]  or a vector  # [num_sequences, hidden]
        for each sequence, in late interaction a vector for each token  # [num_tokens, size];
        float32, on the model's device; vectors have length 1.
        """
