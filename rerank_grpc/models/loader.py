"""Loads a model: builds what the evidence describes on its device, and checks what it gives."""

from __future__ import annotations

import logging
import math
from contextlib import suppress

import torch

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.config.environment import provide
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.evidence import read_evidence
from rerank_grpc.evidence.facts import Evidence
from rerank_grpc.kept import cache_folder
from rerank_grpc.kernels.attention import choose_attention
from rerank_grpc.kernels.device import INT8
from rerank_grpc.models.assembly import Encoder
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.bodies.families import OWN_FAMILIES
from rerank_grpc.models.bodies.model import own_card, own_model
from rerank_grpc.models.bodies.plan import NoPlan
from rerank_grpc.models.late import ids_of
from rerank_grpc.models.reference import answers_beforehand, answers_kept, check_own

log = logging.getLogger(__name__)


def load_model(checkpoint: Checkpoint, device: torch.device, precision: str) -> Model:
    """Reads weights onto a device, in a precision of DTYPES; raises ModelLoadError, with the remedy.

    The model's results for random sequences equal those of transformers' own forward.
    """
    evidence = read_evidence(checkpoint)
    if device.type == "cuda":
        keep_compiled_code()
    card = card_of(checkpoint, evidence, device, precision)
    model = _own(checkpoint, evidence, card)
    if model is None and precision in INT8:
        families = ", ".join(sorted(OWN_FAMILIES))
        raise ModelLoadError(
            f"{checkpoint.directory}: precision {precision!r} is for models of the families {families}, "
            "in their usual form: use auto, bf16 or fp32"
        )
    if model is not None:
        return model
    from rerank_grpc.models.borrowed.network import borrowed_model  # which imports transformers

    return borrowed_model(checkpoint, evidence, card)


def keep_compiled_code() -> None:
    """Keeps the code of Inductor and Triton for the next start, unless the operator chose a folder.

    Inductor compiles in this process: the pool that it would start is for programs of many kernels.
    """
    provide("TORCHINDUCTOR_COMPILE_THREADS", "1")
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        with suppress(OSError):  # nowhere: the libraries have places of their own
            provide(variable, str(cache_folder() / name))


def card_of(checkpoint: Checkpoint, evidence: Evidence, device: torch.device, precision: str) -> ModelCard:
    """Makes a model's card of its files; its network may add to it, and shorten its sequences."""
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


def asks_transformers(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> bool:
    """Whether a load asks transformers in another process: it does where no earlier one kept the answers."""
    try:
        return not answers_kept(checkpoint, evidence, own_card(checkpoint, evidence, card))
    except NoPlan:  # transformers' own body computes, in this process
        return False


def _own(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> Encoder | None:
    """Builds a model around a body of our own; None where there is none, or it differs from transformers'."""
    try:
        made = answers_beforehand(checkpoint, evidence, own_card(checkpoint, evidence, card))
        model = own_model(checkpoint, evidence, card)
    except NoPlan as asked:
        if checkpoint.family in OWN_FAMILIES:
            log.info("%s runs in transformers' own body: it asks for %s", card.source, asked)
        return None
    agreement = check_own(model, checkpoint, evidence, made)
    if agreement.agrees:
        return model
    finite = math.isfinite(agreement.difference)
    if card.precision in INT8:
        moved = (
            f"by {agreement.difference:.0%}, more than the {agreement.bound:.0%} that are allowed"
            if finite
            else "to what is not finite"
        )
        raise ModelLoadError(
            f"{card.source}: precision {card.precision!r} moves outputs {moved}: use auto, bf16 or fp32"
        )
    reason = f"differs by {agreement.difference:.1e}" if finite else "gives what is not finite"
    log.warning("%s runs in transformers' own body: the own one %s", card.source, reason)
    return None
