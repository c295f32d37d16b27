"""The description of a network as data: its tables, its layers, the names of its weights, and its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rerank_grpc.kernels.base import Activation, Heads


class NoPlan(Exception):
    """A checkpoint asks for what no own body computes; the message names it."""


@dataclass(frozen=True, slots=True)
class NormPlan:
    """A norm over the sum of what a block has made and the residual.

    Behind it the residual is the normalized rows or, where the norm `keeps_sum`, the sum.
    """

    name: str
    epsilon: float
    bias: bool = True
    rms: bool = False
    keeps_sum: bool = False
    offset: float = 0.0  # of the stored weight: Gemma's are around 0


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """The linear layers of these names, side by side, as one product."""

    names: tuple[str, ...]
    bias: bool


@dataclass(frozen=True, slots=True)
class RotationPlan:
    """The rotation of heads by their place: the angle of each pair of columns for one place."""

    frequencies: tuple[float, ...]  # [size / 2]
    factor: float = 1.0  # of cosines and sines


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The RMS norms of each query head and each key head, before they are turned."""

    query: str
    key: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer: a norm, attention, a norm, a feed-forward.

    The norm that a post-norm network has behind its feed-forward is the first of the
    layer behind it, or the last of the network.
    """

    before: NormPlan
    heads: Heads
    merged: LinearPlan  # queries, keys, values
    out: LinearPlan
    between: NormPlan
    up: LinearPlan
    down: LinearPlan
    activation: Activation
    gated: bool  # whether one half of `up`, activated, is multiplied by the other
    rotation: RotationPlan | None = None
    head_norms: HeadNorms | None = None


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """A body: embeddings, layers, a last norm."""

    hidden: int  # the columns of a row
    width: int  # those between the products of a feed-forward
    vocabulary: int
    max_positions: int  # the longest sequence
    causal: bool
    words: str
    layers: tuple[LayerPlan, ...]
    last: NormPlan
    scale: float = 1.0  # of the embeddings
    positions: str | None = None  # a table that is learned
    first_position: int = 0  # its row for the first token
    segments: str | None = None
    num_segments: int = 0


@dataclass(frozen=True, slots=True)
class DenseStep:
    """A linear layer of the head."""

    name: str
    bias: bool = True


@dataclass(frozen=True, slots=True)
class ActivationStep:
    """An activation of the head."""

    activation: Activation


HeadStep: TypeAlias = DenseStep | ActivationStep | NormPlan
# The steps from the pooled row to the logit, in their order
ClassifierPlan: TypeAlias = tuple[HeadStep, ...]

# transformers' names of activations, and ours
ACTIVATION_NAMES: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "tanh": "tanh",
}
Pooled: TypeAlias = Literal["first", "last", "all"]


def activation_named(name: object) -> Activation:
    """Finds an activation by transformers' name; raises NoPlan."""
    found = ACTIVATION_NAMES.get(str(name))
    if found is None:
        raise NoPlan(f"activation {str(name)[:40]!r}")
    return found
