"""Models around transformers' own networks: those of families that have no body of our own."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers, Chain, Classifier, Evidence, Kind
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.models.assembly import Encoder, answer_ids, assembled, check_expansion, rows_of
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.borrowed.hooked import HOOK, HookedBody, NotPackable, attends_causally
from rerank_grpc.models.borrowed.padded import Padded, PaddedBody, check_reads_both_ways, own_attention
from rerank_grpc.models.borrowed.selfcheck import (
    AnswersReference,
    Reference,
    check_against_reference,
    classifier_reference,
    pooled_reference,
)
from rerank_grpc.models.borrowed.weights import CLASSES, convert_weights, quiet, read_network
from rerank_grpc.models.encoders import POOLS, BiEncoder, CrossEncoder, Head, all_rows
from rerank_grpc.models.heads import AnswerHead, build_chain
from rerank_grpc.models.late import LateEncoder
from rerank_grpc.models.limits import kept_token_bytes, limited, positions_of
from rerank_grpc.models.reference import Agreement

log = logging.getLogger(__name__)


def borrowed_model(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> Model:
    """Runs a network of transformers packed, by our attention, or else padded, by its own."""
    network = read_network(CLASSES[type(evidence.head)], checkpoint, attention=None).to(card.device)
    vocabulary = network.get_input_embeddings().num_embeddings
    card = limited(card, checkpoint, vocabulary, positions_of(network))
    if causal := attends_causally(network.base_model):
        check_expansion(card, "is a decoder")
    if isinstance(evidence.head, Classifier):
        if evidence.reading.prompt is None and not evidence.head.reads_pairs:
            check_reads_both_ways(card, network)
        elif causal:
            card = replace(card, pooling="last")
    head = _head(evidence, card, network)
    reason = f"the head of {card.family} is known to transformers only"
    if head is not None or not isinstance(evidence.head, Classifier):
        packed = _packed(evidence, card, network, head, causal=causal)
        if not isinstance(packed, Agreement):
            return packed
        reason = f"packed, it does without {packed.reason}" if packed.reason else ""
        reason = reason or f"packed, it differs by {packed.difference:.1e}"
    log.info("%s runs padded: %s", card.source, reason)
    return _padded(evidence, card, network, head, causal=causal)


def _packed(
    evidence: Evidence, card: ModelCard, network: Any, head: Head | None, *, causal: bool
) -> Model | Agreement:
    """Builds a model over packed sequences; returns why it cannot be one if it is none."""
    try:
        with quiet():
            network.set_attn_implementation(HOOK)
    except ValueError:
        return Agreement(math.inf, "attention of its own")
    # Only the last row of a sequence is never among those that documents share.
    shares = causal and card.pooling == "last"
    if shares:
        kept = kept_token_bytes(network.config.to_dict(), DTYPES[card.precision])
        card = replace(card, shares_prefixes=True, prefix_token_bytes=kept)
    try:
        body = HookedBody(network.base_model, card.attention, causal=causal)
    except NotPackable as asked:
        return Agreement(math.inf, str(asked))
    model = assembled(card, body, POOLS.get(card.pooling, all_rows), head)
    reference = single_reference(evidence, card, network, head)
    agreement = check_against_reference(_checkable(model), network, reference, shares_prefixes=shares)
    if not agreement.agrees:
        return agreement
    # Only now: what comes next, if this is not the model, needs the weights as they are stored.
    convert_weights(network.base_model, DTYPES[card.precision])
    return model


def _padded(evidence: Evidence, card: ModelCard, network: Any, head: Head | None, *, causal: bool) -> Model:
    """Builds a model over padded sequences; raises ModelLoadError if the padding changes its scores."""
    check_expansion(card, "runs padded")
    own_attention(network)
    card = replace(card, attention=Attention.PADDED)
    # Decoders, whose head is called so, find the last token of a padded sequence by it.
    if hasattr(network, "score") and network.config.pad_token_id is None:
        raise ModelLoadError(
            f"{card.tokenizer_file.parent}/config.json: names no pad_token_id, without which {card.family} "
            "cannot be padded: name the one that the tokenizer pads with"
        )
    reference = single_reference(evidence, card, network, head)
    model: Encoder | Padded
    if isinstance(evidence.head, Chain):
        body = PaddedBody(network, causal=causal)
        model = assembled(card, body, POOLS.get(card.pooling, all_rows), head)
    else:
        answers = answer_ids(evidence.head) if isinstance(evidence.head, Answers) else ()
        model = Padded(card, network, answers=answers, causal=causal)
    checked = model if isinstance(model, Padded) else _checkable(model)
    agreement = check_against_reference(checked, network, reference)
    if not agreement.agrees:
        reason = agreement.reason and f", by {agreement.reason}"
        raise ModelLoadError(
            f"{card.source}: {card.family} scores depend on the padding{reason}: not supported"
        )
    convert_weights(network.base_model, DTYPES[card.precision])
    return model


def _head(evidence: Evidence, card: ModelCard, network: Any) -> Head | None:
    """Builds the head behind the pooled rows; None if there is none, or only the network has it."""
    match evidence.head:
        case Chain():
            return _chain(evidence, card, network)
        case Answers():
            return AnswerHead.of(network.get_output_embeddings(), answer_ids(evidence.head), network.config)
    if card.family == "modernbert":
        return torch.nn.Sequential(network.head.float(), network.classifier.float())
    score = getattr(network, "score", None)  # of all decoders
    return score.float() if isinstance(score, torch.nn.Linear) else None


def _chain(evidence: Evidence, card: ModelCard, network: Any) -> Head | None:
    assert isinstance(evidence.head, Chain)
    if not evidence.head.modules:
        return None
    return build_chain(evidence.head, int(network.config.hidden_size)).to(card.device)


def _checkable(model: Encoder) -> CrossEncoder | BiEncoder:
    """Makes one row for each sequence of a model that gives many."""
    return rows_of(model) if isinstance(model, LateEncoder) else model


def single_reference(evidence: Evidence, card: ModelCard, network: Any, head: Head | None) -> Reference:
    """Transformers' own pass over one sequence."""
    match evidence.head:
        case Classifier():
            return classifier_reference(network)
        case Answers():
            return AnswersReference(network, answer_ids(evidence.head))
    if card.kind is Kind.LATE_INTERACTION:
        return pooled_reference(network, POOLS["mean"], None, unit=True)
    return pooled_reference(network, POOLS[card.pooling], head, unit=card.kind is Kind.BI_ENCODER)
