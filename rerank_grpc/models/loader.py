"""Loads a model: builds the network that the evidence describes on its device, and checks what it gives."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.config.reading import provide
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.evidence import read_evidence
from rerank_grpc.evidence.facts import Answers, Chain, Classifier, Evidence, Kind
from rerank_grpc.kept import cache_folder
from rerank_grpc.kernels import operations_for
from rerank_grpc.kernels.attention import Attention, choose_attention
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.bert import BERT_FAMILIES, BertBody
from rerank_grpc.models.encoders import POOLS, BiEncoder, Body, CrossEncoder, Head, Pool, all_rows
from rerank_grpc.models.heads import AnswerHead, Unit, build_chain
from rerank_grpc.models.hooked import HOOK, HookedBody, NotPackable, attends_causally
from rerank_grpc.models.late import LateEncoder, ids_of
from rerank_grpc.models.limits import kept_token_bytes, limited
from rerank_grpc.models.padded import Padded, PaddedBody, check_reads_both_ways, own_attention
from rerank_grpc.models.selfcheck import (
    Agreement,
    AnswersReference,
    Reference,
    check_against_reference,
    check_streamed,
    classifier_reference,
    pooled_reference,
)
from rerank_grpc.models.weights import (
    Take,
    convert_weights,
    load_parameters,
    quiet,
    read_network,
    read_outline,
)

log = logging.getLogger(__name__)

Encoder: TypeAlias = CrossEncoder | BiEncoder | LateEncoder

CLASSES: Mapping[type, Any] = {
    Classifier: AutoModelForSequenceClassification,
    Answers: AutoModelForCausalLM,
    Chain: AutoModel,
}


def load_model(checkpoint: Checkpoint, device: torch.device, precision: str) -> Model:
    """Reads weights onto a device, in a precision of DTYPES; raises ModelLoadError, with the remedy.

    What the model gives for random sequences equals what transformers' own forward gives.
    """
    evidence = read_evidence(checkpoint)
    own = evidence.family in BERT_FAMILIES
    if precision == "int8" and not own:
        raise ModelLoadError(
            f"{checkpoint.directory}: precision 'int8' is for models of the families bert, roberta "
            "and xlm-roberta: use auto, bf16 or fp32"
        )
    if device.type == "cuda":
        keep_compiled_code()
    card = _card(checkpoint, evidence, device, precision)
    return _own_bert(checkpoint, evidence, card) if own else _transformers_own(checkpoint, evidence, card)


def keep_compiled_code() -> None:
    """Keeps the code of Inductor and Triton for the next start, unless the operator chose a folder."""
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        provide(variable, str(cache_folder() / name))


def _card(checkpoint: Checkpoint, evidence: Evidence, device: torch.device, precision: str) -> ModelCard:
    return ModelCard(
        source=checkpoint.source,
        revision=checkpoint.revision,
        family=evidence.family,
        kind=evidence.kind,
        scoring=evidence.scoring,
        max_tokens=evidence.max_tokens or 0,
        device=str(device),
        precision=precision,
        attention=choose_attention(device, precision, checkpoint.config),
        tokenizer_file=checkpoint.tokenizer_file,
        reading=evidence.reading,
        pooling=evidence.pooling,
        activation=evidence.activation,
        scale=evidence.scale,
        offset=evidence.offset,
        late=evidence.late,
        skipped_ids=ids_of(evidence.late.skipped, checkpoint.tokenizer_file)
        if evidence.late
        else frozenset(),
    )


# ---------------- BERT and its like: a body of our own


def _own_bert(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> Model:
    """Builds the body of models/bert.py; raises ModelLoadError where it differs from transformers' own."""
    classifier = isinstance(evidence.head, Classifier)
    options = {} if classifier else {"add_pooling_layer": False}
    network, take = read_outline(CLASSES[type(evidence.head)], checkpoint, **options)
    card = limited(card, checkpoint, network)
    first_only = card.pooling == "first"
    card = replace(card, capturable=first_only and card.attention is not Attention.SDPA)
    operations = operations_for(torch.device(card.device), card.precision, card.attention)
    prefix = f"{network.base_model_prefix}." if classifier else ""
    body = BertBody(network.config, take, prefix, operations, first_only=first_only)
    head = _bert_head(card, network, take, prefix) if classifier else _chain(evidence, card, network)
    pool = all_rows if first_only else POOLS.get(card.pooling, all_rows)
    model = _assembled(card, body, pool, head)
    # A chain of modules is no part of the network: its rows are compared.
    checked = model if isinstance(model, CrossEncoder) and classifier else _rows_of(model)
    agreement = check_streamed(checked, network, checkpoint)
    if agreement.agrees:
        return model
    if math.isinf(agreement.difference):
        raise ModelLoadError(f"{card.source}: a score is not finite: the weights are damaged")
    raise ModelLoadError(
        f"{card.source}: {card.family} differs by {agreement.difference:.1e} from transformers' own pass: "
        "not supported; use another checkpoint"
    )


def _bert_head(card: ModelCard, network: Any, take: Take, prefix: str) -> Head:
    """Reads pooler and classifier, which take the first row of  # [num_sequences, num_tokens, hidden]."""
    parts = {f"{prefix}pooler": network.base_model.pooler, "classifier": network.classifier}
    behind = [load_parameters(part, take, name) for name, part in parts.items() if part is not None]
    return torch.nn.Sequential(torch.nn.Unflatten(1, (1, -1)), *behind).to(card.device).eval()


# ---------------- All others: transformers' own networks, packed if they allow it


def _transformers_own(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> Model:
    """Runs a network of transformers packed, by our attention, or else padded, by its own."""
    network = read_network(CLASSES[type(evidence.head)], checkpoint, attention=None).to(card.device)
    card = limited(card, checkpoint, network)
    causal = attends_causally(network.base_model)
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
    model = _assembled(card, body, POOLS.get(card.pooling, all_rows), head)
    reference = _reference(evidence, card, network, head)
    agreement = check_against_reference(_checkable(model), network, reference, shares_prefixes=shares)
    if not agreement.agrees:
        return agreement
    # Only now: what comes next, if this is not the model, needs the weights as they are stored.
    convert_weights(network.base_model, DTYPES[card.precision])
    return model


def _padded(evidence: Evidence, card: ModelCard, network: Any, head: Head | None, *, causal: bool) -> Model:
    """Builds a model over padded sequences; raises ModelLoadError if the padding changes its scores."""
    own_attention(network)
    card = replace(card, attention=Attention.PADDED)
    # Decoders, whose head is called so, find the last token of a padded sequence by it.
    if hasattr(network, "score") and network.config.pad_token_id is None:
        raise ModelLoadError(
            f"{card.tokenizer_file.parent}/config.json: names no pad_token_id, without which {card.family} "
            "cannot be padded: name the one that the tokenizer pads with"
        )
    reference = _reference(evidence, card, network, head)
    model: Encoder | Padded
    if isinstance(evidence.head, Chain):
        body = PaddedBody(network, causal=causal)
        model = _assembled(card, body, POOLS.get(card.pooling, all_rows), head)
    else:
        answers = _ids(evidence.head) if isinstance(evidence.head, Answers) else ()
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
            return AnswerHead.of(network.get_output_embeddings(), _ids(evidence.head), network.config)
    if card.family == "modernbert":
        return torch.nn.Sequential(network.head.float(), network.classifier.float())
    score = getattr(network, "score", None)  # of all decoders
    return score.float() if isinstance(score, torch.nn.Linear) else None


def _ids(answers: Answers) -> tuple[int, ...]:
    return (answers.true,) if answers.false is None else (answers.true, answers.false)


# ---------------- What both share


def _chain(evidence: Evidence, card: ModelCard, network: Any) -> Head | None:
    assert isinstance(evidence.head, Chain)
    if not evidence.head.modules:
        return None
    return build_chain(evidence.head, int(network.config.hidden_size)).to(card.device)


def _assembled(card: ModelCard, body: Body, pool: Pool, head: Head | None) -> Encoder:
    match card.kind:
        case Kind.BI_ENCODER:
            return BiEncoder(card, body, pool, head)
        case Kind.LATE_INTERACTION:
            return LateEncoder(card, body, head or Unit({}))
    assert head is not None
    return CrossEncoder(card, body, pool, head)


def _rows_of(model: Encoder) -> BiEncoder:
    """Makes a model of the body alone, which gives one row for each sequence."""
    pool = POOLS["mean"] if isinstance(model, LateEncoder) else model.pool
    return BiEncoder(model.card, model.body, pool)


def _checkable(model: Encoder) -> CrossEncoder | BiEncoder:
    """Makes one row for each sequence of a model that gives many."""
    return _rows_of(model) if isinstance(model, LateEncoder) else model


def _reference(evidence: Evidence, card: ModelCard, network: Any, head: Head | None) -> Reference:
    """Transformers' own pass over one sequence."""
    match evidence.head:
        case Classifier():
            return classifier_reference(network)
        case Answers():
            return AnswersReference(network, _ids(evidence.head))
    if card.kind is Kind.LATE_INTERACTION:
        return pooled_reference(network, POOLS["mean"], None, unit=True)
    return pooled_reference(network, POOLS[card.pooling], head, unit=card.kind is Kind.BI_ENCODER)
