"""Each kind of checkpoint scores as sentence-transformers does, or is refused in one line that says why."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import Model, ModelCard, PackedTokens
from rerank_grpc.models.reference import Agreement
from rerank_grpc.registry.loading import ModelLoader
from rerank_grpc.registry.probes import checked_tokenizer
from rerank_grpc.runner.runner import CpuRunner
from rerank_grpc.scores import best_chunks, count_query_tokens, relevance_scores
from rerank_grpc.tokenizer.tokenizer import tokenizer_for
from tests.models.kinds import KINDS, REFUSED, SERVED, Kind
from tests.models.kinds.probes import cases
from tests.texts import tokenize

# Of the spread of the oracle's logits, which is its highest less its lowest. In fp32, which no kernel of
# ours computes, torch adds in another order on each kind of processor, padded or not: on Intel's, with AMX
# and without, 1.2e-4 was measured of minicpm3's wild weights, by code that keeps to 1e-4 on AMD's.
BOUND = 2e-4
BF16_BOUND = 0.1
# Scores closer together than this would prove nothing: logits, and cosines.
LEAST_SPREAD, LEAST_COSINES = 0.5, 0.05
ORACLE_SECONDS = 300.0  # many times what it takes on a core of its own
MOST_SECONDS = 10.0  # for a refusal, of templates that never end too
# From an activated score to [0, 1].
MAPPED: Mapping[str, Callable[[float], float]] = {
    "Identity": lambda logit: 1 / (1 + math.exp(-logit)),
    "Tanh": lambda score: (1 + score) / 2,
    "Sigmoid": float,
    "MaxSim": float,
    "Cosine": float,
}
Read: TypeAlias = Callable[..., Model]  # a kind, and the precision if it is not fp32
pytestmark = pytest.mark.timeout(2 * ORACLE_SECONDS)  # the first test waits for builders and oracle
BY_NAME = {kind.name: kind for kind in KINDS}


class Reference(NamedTuple):
    """The oracle's answers to one request."""

    logits: list[float]
    scores: list[float]  # activated
    fits: list[bool]  # whether nothing of a pair is cut


class Oracle(NamedTuple):
    """The oracle's answers about one kind."""

    activation: str
    references: list[Reference]

    @property
    def spread(self) -> float:
        """The highest logit less the lowest one."""
        logits = [logit for reference in self.references for logit in reference.logits]
        return max(logits) - min(logits)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return {kind.name: kind.build(root / kind.name) for kind in KINDS}


@pytest.fixture(scope="module")
def oracles(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    """Runs the oracle once, in a process of its own."""
    output = tmp_path_factory.mktemp("oracle") / "answers.json"
    wanted = [f"{kind.oracle}={paths[kind.name]}" for kind in KINDS if kind.oracle]
    command = [sys.executable, "-m", "tests.models.kinds.oracle", str(output), *wanted]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ORACLE_SECONDS)
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(output.read_text())
    failed = {name: answer["error"] for name, answer in found.items() if "error" in answer}
    assert not failed
    return {
        name: Oracle(answer["activation"], [Reference(**case) for case in answer["cases"]])
        for name, answer in found.items()
    }


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with each kind's catalogue, which says nothing for most of them."""
    root = tmp_path_factory.mktemp("catalogues")
    for kind in KINDS:
        (root / f"{kind.name}.toml").write_text(kind.catalogue)
    return root


@pytest.fixture(scope="module")
def read(paths: dict[str, Path], catalogues: Path) -> Read:
    """Reads a kind anew."""

    def read(kind: Kind, precision: str = "fp32") -> Model:
        catalogue = catalogues / f"{kind.name}.toml"
        settings = ServerSettings(device="cpu", precision=precision, catalogue=catalogue)
        return ModelLoader(settings).read_model(str(paths[kind.name]))

    return read


@pytest.fixture(scope="module")
def load(read: Read) -> Read:
    """Reads a kind in fp32, once for all tests."""
    return cache(read)


class Error(NamedTuple):
    """The differences from the oracle, of all requests: the largest ones, and a mean."""

    logits: float  # as a share of the spread of the oracle's
    scores: float
    root_mean_square: float  # of the logits' differences, as a share of the spread


def error(kind: Kind, oracle: Oracle, model: Model, card: ModelCard | None = None) -> Error:
    """Compares the answers on the path of a call with the oracle's; `card` in place of the model's own."""
    tokenizer = tokenizer_for(card) if card else checked_tokenizer(model.card)
    card, runner = card or model.card, CpuRunner(model)
    logits, scores = [], []
    for case, reference in zip(cases(instructed=kind.instructed), oracle.references, strict=False):
        tokens = tokenize(tokenizer, case.query, case.documents, instruction=case.instruction)
        outputs = runner.launch(tokens.sequences)()
        found = [chunk.logit for chunk in best_chunks(tokens.documents, outputs, tokens.query)]
        activated = relevance_scores(
            found,
            card.scoring,
            scale=card.scale,
            offset=card.offset,
            query_tokens=count_query_tokens(outputs, tokens.query),
        )
        for place, fits in enumerate(reference.fits):
            if fits or (kind.cuts and case.short):
                logits.append(abs(found[place] - reference.logits[place]))
                scores.append(abs(activated[place] - MAPPED[oracle.activation](reference.scores[place])))
    assert all(map(math.isfinite, logits + scores))
    root = math.sqrt(sum(difference**2 for difference in logits) / len(logits))
    return Error(max(logits) / oracle.spread, max(scores), root / oracle.spread)


def of_kinds(kinds: Sequence[Kind]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=[kind.name for kind in kinds])


def test_the_kinds_are_many_and_their_names_are_their_own() -> None:
    assert len(KINDS) >= 45
    assert len(BY_NAME) == len(KINDS)
    assert all(kind.refused == "" for kind in SERVED)
    assert all(kind.oracle for kind in SERVED)
    assert all(kind.refused for kind in REFUSED)


@of_kinds(SERVED)
def test_the_oracles_own_scores_tell_queries_documents_and_instructions_apart(
    kind: Kind, oracles: dict[str, Oracle]
) -> None:
    oracle = oracles[kind.name]
    first, second, *others = oracle.references
    assert oracle.spread >= (LEAST_COSINES if oracle.activation == "Cosine" else LEAST_SPREAD)
    asked = [case.documents for case in cases(instructed=kind.instructed)]

    def moved(reference: Reference, documents: Sequence[str]) -> float:
        own = dict(zip(asked[0], first.logits, strict=True))
        return max(abs(own[text] - logit) for text, logit in zip(documents, reference.logits, strict=True))

    assert len({round(logit, 5) for logit in first.logits}) >= 12  # a document that is dropped is noticed
    # MaxSim grows with the query's length: the spread of all requests says nothing of one document's scores.
    one_request = max(first.logits) - min(first.logits)
    scale = one_request if oracle.activation == "MaxSim" else oracle.spread
    assert moved(second, asked[1]) > 100 * BOUND * scale
    if kind.instructed:
        assert moved(others[-1], asked[-1]) > 100 * BOUND * scale


@of_kinds(SERVED)
def test_a_kind_scores_as_the_oracle_does(kind: Kind, oracles: dict[str, Oracle], load: Read) -> None:
    oracle, model = oracles[kind.name], load(kind)
    found = error(kind, oracle, model)
    assert found.logits <= BOUND
    assert found.scores <= BOUND * max(1.0, oracle.spread)
    if kind.served != "any":
        assert (model.card.attention is Attention.PADDED) is (kind.served == "padded")


@of_kinds(SERVED)
def test_a_kind_in_bf16_scores_almost_as_the_oracle_does(
    kind: Kind, oracles: dict[str, Oracle], read: Read
) -> None:
    # Weights this wild amplify the rounding of single texts far beyond a trained model's.
    assert error(kind, oracles[kind.name], read(kind, "bf16")).root_mean_square <= BF16_BOUND


@pytest.mark.clock
@of_kinds(REFUSED)
def test_a_kind_is_refused_in_one_line(kind: Kind, read: Read) -> None:
    begun = time.monotonic()
    with pytest.raises(ModelLoadError) as caught:
        checked_tokenizer(read(kind).card)
    assert re.search(kind.refused, str(caught.value))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < MOST_SECONDS


# What the parity tests would notice.


def _cut_tail(card: Any) -> Any:
    """A card whose prompt has lost what stands behind the document's own segment."""
    prompt = card.reading.prompt
    shorter = replace(prompt, segments=prompt.segments[:-1], instructed=prompt.instructed[:-1])
    return replace(card, reading=replace(card.reading, prompt=shorter))


@pytest.mark.parametrize("name", ["qwen3-reranker", "zerank-2", "mxbai-v2", "llama", "gemma"])
def test_parity_would_notice_a_template_whose_tail_is_dropped(
    name: str, oracles: dict[str, Oracle], load: Read
) -> None:
    kind = BY_NAME[name]
    model = load(kind)
    assert error(kind, oracles[name], model, _cut_tail(model.card)).logits > 100 * BOUND


@pytest.mark.parametrize("name", ["bert", "electra", "bert-mean-dense"])
def test_parity_would_notice_token_types_that_are_all_zero(
    name: str, oracles: dict[str, Oracle], load: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = BY_NAME[name]
    model: Any = load(kind)
    forward: Callable[[object, PackedTokens], torch.Tensor] = type(model).forward

    def of_one_type(self: object, packed: PackedTokens) -> torch.Tensor:
        return forward(self, replace(packed, token_type_ids=torch.zeros_like(packed.token_type_ids)))

    monkeypatch.setattr(type(model), "forward", of_one_type)
    assert error(kind, oracles[name], model).logits > 100 * BOUND


@pytest.mark.parametrize("place", ["config-sentence-transformers", "sentence-transformers"])
def test_parity_would_notice_an_activation_that_is_ignored(
    place: str, oracles: dict[str, Oracle], load: Read
) -> None:
    kind, plain = BY_NAME[f"bert-tanh-by-{place}"], load(BY_NAME["bert"]).card
    assert error(kind, oracles[kind.name], load(kind), plain).scores > 100 * BOUND


@pytest.mark.parametrize("name", ["granite", "cohere"])
def test_parity_would_notice_a_network_that_the_self_check_let_pass(
    name: str, oracles: dict[str, Oracle], read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = BY_NAME[name]
    monkeypatch.setattr(
        "rerank_grpc.models.borrowed.network.check_against_reference", lambda *_, **__: Agreement(0.0)
    )
    assert error(kind, oracles[name], read(kind)).logits > 100 * BOUND
