"""Builds a model around a body of our own, without transformers, from the checkpoint's files alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers, Chain, Classifier, Evidence
from rerank_grpc.kernels import operations_for
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Layout, Operations
from rerank_grpc.kernels.device import DTYPES, INT8
from rerank_grpc.kernels.plain import ACTIVATIONS
from rerank_grpc.models.assembly import Encoder, answer_ids, assembled, check_expansion, unasked
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.models.bodies.families import OWN_FAMILIES, plan_of
from rerank_grpc.models.bodies.plan import (
    ActivationStep,
    ClassifierPlan,
    DenseStep,
    NetworkPlan,
    NoPlan,
    Pooled,
)
from rerank_grpc.models.bodies.tensors import Extent, find_extents, read, read_rows
from rerank_grpc.models.bodies.weights import Weights
from rerank_grpc.models.encoders import POOLS, all_rows
from rerank_grpc.models.heads import AnswerHead, build_chain
from rerank_grpc.models.limits import limited

log = logging.getLogger(__name__)

SEQUENCES, LENGTH = 16, 32  # of random tokens, by which int8 products are corrected


def own_card(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> ModelCard:
    """Adds what the network says of its rows; raises like `own_model`, without reading weights."""
    return _pooled(plan_of(checkpoint.family, checkpoint.config), evidence, card)[0]


def own_model(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> Encoder:
    """Builds the model; raises NoPlan where the files ask for what no own body computes.

    Raises ModelLoadError for files that are wrong, or do not say how a decoder is asked.
    """
    plan = plan_of(checkpoint.family, checkpoint.config)
    files = Files(checkpoint)
    prefix = OWN_FAMILIES[checkpoint.family].prefix
    if f"{prefix}{plan.words}.weight" not in files.extents:
        prefix = ""
    card = limited(card, checkpoint, plan.vocabulary, plan.max_positions)
    card, pooled = _pooled(plan, evidence, card)
    device = torch.device(card.device)
    operations = operations_for(device, card.precision, card.attention)
    if card.attention is Attention.SDPA and all(operations.takes(layer.heads) for layer in plan.layers):
        card = replace(card, attention=Attention.NATIVE, level=operations.level)
    _tell_untaken(plan, operations, card)
    body = OwnBody(plan, Weights(files, prefix, plan.hidden, operations), pooled)
    if card.precision in INT8:
        with torch.inference_mode():
            body(_random_tokens(plan))
    head = _head(checkpoint, evidence, plan, files, prefix)
    head = head.to(device) if head is not None else None
    pool = POOLS.get(card.pooling, all_rows) if pooled == "all" else all_rows
    card = replace(card, capturable=_captures(plan, card, pooled))
    return assembled(card, body, pool, head)


def _pooled(plan: NetworkPlan, evidence: Evidence, card: ModelCard) -> tuple[ModelCard, Pooled]:
    """Says which rows the last layer computes, and whether prefixes are shared."""
    if not plan.causal:
        return card, "first" if card.pooling == "first" else "all"
    check_expansion(card, "is a decoder")
    if isinstance(evidence.head, Classifier):
        if evidence.reading.prompt is None and not evidence.head.reads_pairs:
            raise unasked(card)
        card = replace(card, pooling="last")
    if card.pooling != "last":
        return card, "all"
    # Only the last row of a sequence is never among those that documents share.
    kept = sum(2 * layer.heads.key_width for layer in plan.layers) * DTYPES[card.precision].itemsize
    return replace(card, shares_prefixes=True, prefix_token_bytes=kept), "last"


def _tell_untaken(plan: NetworkPlan, operations: Operations, card: ModelCard) -> None:
    """Logs which operations of a network run without the kernels, because of its shape."""
    found: list[str] = []
    for layer in plan.layers:
        heads = layer.heads
        columns = (plan.hidden, plan.width) if layer.gated else (plan.hidden,)
        up = 2 * plan.width if layer.gated else plan.width
        outputs = (heads.width + 2 * heads.key_width, plan.hidden, up)
        found += operations.untaken(heads, columns, outputs)
    if found:
        names = ", ".join(dict.fromkeys(found))
        log.info("%s: %s of this shape are computed by torch's operations, slower", card.source, names)


def _random_tokens(plan: NetworkPlan) -> PackedTokens:
    """Draws the sequences over which int8 products are corrected, the same at every start."""
    length = min(LENGTH, plan.max_positions)
    ids = torch.randint(plan.vocabulary, (SEQUENCES * length,), generator=torch.Generator().manual_seed(0))
    places = torch.arange(length).repeat(SEQUENCES)
    return PackedTokens(ids, places, torch.zeros_like(ids), Layout.of((length,) * SEQUENCES))


def _captures(plan: NetworkPlan, card: ModelCard, pooled: Pooled) -> bool:
    """Whether a pass never asks for the lengths of its parts, but perhaps for those behind prefixes.

    A kernel aligns queries to the last keys. It does not take the window of a last layer that pools the first
    rows, whose queries stand at the first keys.
    """
    if card.attention not in (Attention.VARLEN, Attention.FLASH) or pooled == "all":
        return False
    return pooled == "last" or plan.layers[-1].heads.window is None


class Files:
    """The weights of a checkpoint, by name and shape."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.extents: Mapping[str, Extent] = find_extents(checkpoint)

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Reads a weight in a type; raises NoPlan if it is missing or of another shape."""
        return read(self._checkpoint, name, self._find(name, shape), dtype)

    def rows(self, name: str, shape: tuple[int, ...], picked: tuple[int, ...]) -> Tensor:
        """Reads some rows of a weight alone, in fp32; raises NoPlan, and ModelLoadError for rows it lacks."""
        if max(picked) >= shape[0]:
            raise ModelLoadError(
                f"{self._checkpoint.directory}: an answer is token {max(picked)}, but the weights know "
                f"{shape[0]} tokens: use the tokenizer that the model came with"
            )
        return read_rows(self._checkpoint, name, self._find(name, shape), picked)

    def _find(self, name: str, shape: tuple[int, ...]) -> Extent:
        found = self.extents.get(name)
        if found is None or found.shape != shape:
            raise NoPlan(f"weight {name}")
        return found


def _head(
    checkpoint: Checkpoint, evidence: Evidence, plan: NetworkPlan, files: Files, prefix: str
) -> nn.Module | AnswerHead | None:
    """Builds what follows the pooled rows, in fp32; None if nothing does."""
    match evidence.head:
        case Chain():
            return build_chain(evidence.head, plan.hidden) if evidence.head.modules else None
        case Answers():
            tied = checkpoint.config.get("tie_word_embeddings") or "lm_head.weight" not in files.extents
            name = f"{prefix}{plan.words}.weight" if tied else "lm_head.weight"
            rows = files.rows(name, (plan.vocabulary, plan.hidden), answer_ids(evidence.head))
            return AnswerHead(rows, rows.new_zeros(len(rows)))
        case Classifier():
            steps = OWN_FAMILIES[checkpoint.family].classifier(checkpoint.config)
            return _classifier(steps, plan.hidden, files)


def _classifier(steps: ClassifierPlan, hidden: int, files: Files) -> nn.Sequential:
    """Builds a head of linear layers, activations and norms; the last linear layer has one output."""
    last = max(place for place, step in enumerate(steps) if isinstance(step, DenseStep))
    built: list[nn.Module] = []
    for place, step in enumerate(steps):
        match step:
            case ActivationStep():
                built.append(Activate(ACTIVATIONS[step.activation]))
            case DenseStep():
                outputs = 1 if place == last else hidden
                dense = nn.Linear(hidden, outputs, bias=step.bias, device="meta")
                built.append(_filled(dense, step.name, files))
            case _:
                norm = nn.LayerNorm(hidden, step.epsilon, bias=step.bias, device="meta")
                built.append(_filled(norm, step.name, files))
    return nn.Sequential(*built).eval()


class Activate(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, rows: Tensor) -> Tensor:
        return self._function(rows)


def _filled(module: nn.Module, name: str, files: Files) -> nn.Module:
    """Gives a module its weights, in fp32."""
    shapes = {key: tuple(weight.shape) for key, weight in module.named_parameters()}
    module.load_state_dict({key: files(f"{name}.{key}", shape) for key, shape in shapes.items()}, assign=True)
    return module.requires_grad_(False)
