"""What transformers' own layers give for random sequences, by which every own body is checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.evidence.facts import Answers, Classifier, Evidence
from rerank_grpc.models.assembly import Encoder, answer_ids, rows_of
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.borrowed import CLASSES
from rerank_grpc.models.encoders import POOLS, CrossEncoder
from rerank_grpc.models.selfcheck import (
    BOUND,
    Agreement,
    AnswersReference,
    Probe,
    defining_attention,
    difference,
    draw_probes,
    in_float32,
    inputs_of,
    narrowed_windows,
    pack_parts,
    passes,
)
from rerank_grpc.models.weights import read_network

# The share of a pooled row by which a pass in few bits may be off. Random weights, which amplify rounding,
# measured 0.06 in bf16 and 0.15 in int8; leaking neighbours, shifted places and lost segments 0.36 and more.
ROUNDING = {"fp32": BOUND, "fp16": 0.2, "bf16": 0.2, "int8": 0.25, "int8-all": 0.25}


class ReferenceAnswers(NamedTuple):
    """What the defining pass gives for two probes, in fp32."""

    probes: tuple[Probe, Probe]
    rows: Tensor  # pooled  # [2, hidden]
    logits: Tensor | None  # [2, 1]; None where the network has no head


def reference_of(checkpoint: Checkpoint, evidence: Evidence, card: ModelCard) -> ReferenceAnswers:
    """Runs transformers' own network over two probes; raises ModelLoadError."""
    network = read_network(CLASSES[type(evidence.head)], checkpoint, attention=None)
    pool = POOLS.get(card.pooling, POOLS["mean"])
    rows, logits = [], []
    with narrowed_windows(network) as window, in_float32(network), torch.inference_mode():
        probes = draw_probes(network, window)
        answers = (
            AnswersReference(network, answer_ids(evidence.head))
            if isinstance(evidence.head, Answers)
            else None
        )
        with defining_attention(network):
            for probe in probes:
                inputs = inputs_of(probe, network)
                last = network.base_model(**inputs).last_hidden_state[0].float()
                rows.append(pool(last, pack_parts([probe.ids], [probe.types])))
                if isinstance(evidence.head, Classifier):
                    logits.append(network(**inputs).logits.float())
                elif answers is not None:
                    logits.append(answers(inputs)[None])
    return ReferenceAnswers(probes, torch.cat(rows), torch.cat(logits) if logits else None)


def check_own(model: Encoder, expected: ReferenceAnswers) -> Agreement:
    """Compares a model around an own body with transformers' answers.

    The pooled rows may differ by the rounding of the model's precision. The head, which is float32 in any,
    is compared by itself: over the reference's rows it must give the reference's logits.
    """
    bound = ROUNDING[model.card.precision]
    found = []
    with torch.inference_mode():
        own = rows_of(model)
        for packed in passes(model, expected.probes, shares_prefixes=model.card.shares_prefixes):
            found.append(own.forward(packed))
        wanted = normalize(expected.rows).to(found[0])
        rows = Agreement(max(difference(each, wanted) for each in found), bound=bound)
        if not isinstance(model, CrossEncoder) or expected.logits is None or not rows.agrees:
            return rows
        logits = model.head(expected.rows.to(found[0]))
        head = Agreement(difference(logits, expected.logits.to(logits)), bound=BOUND)
    return rows if head.agrees else head
