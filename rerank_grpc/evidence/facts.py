"""The facts of a model, as its files tell them and as its loader and its tokenizer use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from rerank_grpc.evidence.prompt import Prompt
from rerank_grpc.types import Scoring


class Kind(Enum):
    """The content of one sequence, by the names of the catalogue."""

    CROSS_ENCODER = "cross-encoder"  # query and document
    BI_ENCODER = "bi-encoder"  # one text, which becomes one vector
    LATE_INTERACTION = "late interaction"  # one text, which becomes a vector for each token


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts become tokens, beside what tokenizer.json says."""

    lower_case: bool = False  # whether texts are lower-cased before everything else
    token_types: bool = True  # whether the network is told which tokens are the second text's
    query_prefix: str = ""  # the text before each query, which becomes tokens together with it
    document_prefix: str = ""  # likewise
    prompt: Prompt | None = None  # in place of the tokenizer's own template for pairs


# That of a checkpoint about which nothing is said beside tokenizer.json.
AS_WRITTEN = Reading()


@dataclass(frozen=True, slots=True)
class Classifier:
    """The head is the network's own, of a class …ForSequenceClassification with one label."""

    reads_pairs: bool = False  # whether files say that it reads plain pairs, which decoders do not else


@dataclass(frozen=True, slots=True)
class Answers:
    """The score is the logit of one next token, or how much it exceeds that of another."""

    true: int
    false: int | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """One of sentence-transformers' modules behind the pooling."""

    type: str  # "Dense", "LayerNorm" or "Normalize"
    directory: Path  # of its config.json and model.safetensors
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """The head is a chain of modules over the pooled rows, or over all rows in late interaction."""

    modules: tuple[Module, ...] = ()


Head: TypeAlias = Classifier | Answers | Chain


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """How texts of late interaction become rows, and which rows are compared."""

    query_tokens: int | None = (
        None  # the longest query, control tokens included; None for the model's own limit
    )
    document_tokens: int | None = None  # likewise
    expanded_tokens: int = 0  # a shorter query is filled up to this many with `expansion_token`; 0 for none
    expansion_token: str | None = None  # None: the tokenizer's mask token, or else its end of text
    attends_expansion: bool = False  # whether other tokens see those that fill up
    skipped: tuple[str, ...] = ()  # the tokens whose rows are left out of documents
    inserts_prefixes: bool = False  # whether a prefix that the vocabulary has as one token becomes that token
    mean: bool = False  # whether the logit is divided by the number of the query's rows


@dataclass(frozen=True, slots=True)
class Evidence:
    """The nature of a checkpoint by its files and, where those are silent, by the catalogue."""

    kind: Kind
    family: str  # transformers' model_type
    scoring: Scoring
    head: Head
    pooling: str  # the rows that are read: "first", "mean", "max", "last", or "all" in late interaction
    reading: Reading
    max_tokens: int | None  # None: the network's table of positions is the only limit
    scale: float = 1.0  # relevance_score = activation(scale · logit + offset)
    offset: float = 0.0
    activation: str = "sigmoid"  # the function that the files name for the logit
    late: LateInteraction | None = None  # of that kind only
