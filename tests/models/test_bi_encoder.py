"""Bi-encoders in sentence-transformers' format give its own vectors; what it does beyond that is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.device import fast_bf16, fast_int8
from rerank_grpc.models.base import Model
from rerank_grpc.models.bodies.body import OwnBody
from rerank_grpc.models.encoders import BiEncoder
from rerank_grpc.types import Scoring
from tests import random_models as checkpoints
from tests.conftest import load
from tests.models.test_parity import QUERY, documents, pack
from tests.support import token_ids
from tests.texts import tokenized


@pytest.fixture(scope="module", params=[("bert", "mean"), ("xlm_roberta", "cls")])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, pooling = request.param
    return write(tmp_path_factory.mktemp("bi-encoder") / f"{family}-{pooling}", family, pooling)


def write(path: Path, family: str, pooling: str) -> Path:
    """Writes a bi-encoder as sentence-transformers itself does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    classifier = path.parent / f"{family}-classifier"
    getattr(checkpoints, family)(classifier)
    body = path.parent / f"{family}-body"
    transformers.AutoModel.from_pretrained(classifier).save_pretrained(body)
    for file in classifier.glob("*token*"):
        shutil.copy(file, body)
    transformer = Transformer(str(body), max_seq_length=100)
    pooled = Pooling(checkpoints.SHAPE["hidden_size"], pooling_mode=pooling)
    SentenceTransformer(modules=[transformer, pooled, Normalize()], device="cpu").save(str(path))
    return path


def test_cosines_equal_those_of_sentence_transformers(directory: Path) -> None:
    model = check_cosines(directory)
    card = model.card
    assert (card.scoring, card.kind, card.max_tokens) == (Scoring.COSINE, Kind.BI_ENCODER, 100)


def check_cosines(directory: Path) -> Model:
    """Compares the cosines of a directory's model with those of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    texts = [text for text in documents() if text]
    theirs = SentenceTransformer(str(directory), device="cpu")
    queries = theirs.encode_query([QUERY], convert_to_tensor=True)
    expected = (queries @ theirs.encode_document(texts, convert_to_tensor=True).T)[0]
    model = load(directory)
    request = tokenized(model.card, QUERY, texts)
    vectors = model.forward(pack([(token_ids(sequence), 0) for sequence in request.sequences]))
    places = [document.chunks[0].sequence for document in request.documents]
    found = vectors[places] @ vectors[request.query]
    assert float(expected.std()) > 0.02, "cosines this close together would prove nothing"
    assert float((found - expected).abs().max()) <= 1e-5
    return model


def test_bf16_stays_close(directory: Path) -> None:
    texts = [text for text in documents() if text]
    cosines = []
    for precision in ("fp32", "bf16"):
        model = load(directory, precision=precision)
        request = tokenized(model.card, QUERY, texts)
        vectors = model.forward(pack([(token_ids(sequence), 0) for sequence in request.sequences]))
        assert vectors.dtype is torch.float32
        cosines.append(vectors[1:] @ vectors[0])
    assert torch.corrcoef(torch.stack(cosines))[0, 1] > 0.9


def vectors_of(model: Model) -> torch.Tensor:
    request = tokenized(model.card, QUERY, documents())
    return model.forward(pack([(token_ids(sequence), 0) for sequence in request.sequences]))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_named_bi_encoder_is_the_embedded_model_to_the_bit(
    precision: str, embedded: Model, tmp_path: Path
) -> None:
    if precision != "fp32" and not (fast_bf16() and fast_int8()):
        pytest.skip("the CPU has no bf16 or no int8")
    directory = shutil.copytree(embedded.card.tokenizer_file.parent, tmp_path / "minilm")
    named, own = load(directory, precision=precision), load("embedded", precision=precision)
    assert (named.card.precision, own.card.precision) == (precision, precision)
    assert isinstance(named, BiEncoder)
    assert isinstance(named.body, OwnBody)
    assert torch.equal(vectors_of(named), vectors_of(own))
    assert torch.equal(vectors_of(own), vectors_of(embedded)) == (precision == "fp32")


@pytest.fixture
def copied(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "model"))


def change(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | changes))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_module_without_its_files_is_refused(copied: Path) -> None:
    modules = json.loads((copied / "modules.json").read_text())
    modules.insert(
        2, {"idx": 9, "name": "9", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (copied / "modules.json").write_text(json.dumps(modules))
    assert "2_Dense/config.json: describes no Dense" in refusal(copied)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config_sentence_transformers.json", {"prompts": {"query": "a query: ", "document": "a text: "}}),
        ("config_sentence_transformers.json", {"prompts": {"query": "a query: ", "document": ""}}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("1_Pooling/config.json", {"pooling_mode": "max"}),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}),
    ],
)
def test_texts_are_treated_and_pooled_as_the_files_say(
    copied: Path, file: str, changes: dict[str, Any]
) -> None:
    before = vectors_of(load(copied))
    change(copied / file, **changes)
    model = check_cosines(copied)
    # WordPiece is in lower case already.
    same = changes == {"do_lower_case": True} and model.card.family == "bert"
    assert torch.equal(vectors_of(model), before) == same


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"similarity_fn_name": "dot"}, "similarity 'dot'"),
        ({"default_prompt_name": "classification"}, "default_prompt_name 'classification'"),
        ({"default_prompt_name": "a", "prompts": {"a": "A: "}}, "a prompt before its texts"),
    ],
)
def test_texts_that_would_be_treated_otherwise_are_refused(
    copied: Path, changes: dict[str, Any], reason: str
) -> None:
    change(copied / "config_sentence_transformers.json", **changes)
    assert reason in refusal(copied)


def test_files_of_another_kind_than_the_catalogues_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "ms-marco-MiniLM-L-6-v2", "bert", "cls")
    with pytest.raises(
        ModelLoadError, match=r"its kind is bi-encoder, and cross-encoder/.* has cross-encoder"
    ):
        load("ms-marco-MiniLM-L-6-v2", models_dir=tmp_path)


def test_another_pooling_is_refused(copied: Path) -> None:
    path = copied / "1_Pooling" / "config.json"
    for config, reason in (
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "max_tokens, mean_tokens"),
        ({"pooling_mode_max_tokens": False}, "pools by nothing"),
    ):
        path.write_text(json.dumps(config))
        assert reason in refusal(copied)
    path.unlink()
    assert "1_Pooling/config.json" in refusal(copied)


def test_another_family_runs_padded_where_it_cannot_be_packed(
    copied: Path, directories: dict[str, Path]
) -> None:
    for file in directories["deberta"].iterdir():
        shutil.copy(file, copied / file.name)
    change(copied / "config.json", architectures=["DebertaV2Model"])
    assert check_cosines(copied).card.attention is Attention.PADDED
