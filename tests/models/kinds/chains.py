"""Cross-encoders and bi-encoders whose head is a chain of modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from tests.models.kinds.encoders import BERT, TOKEN_TYPES, modernbert
from tests.models.kinds.files import (
    ACTIVATIONS,
    Part,
    edit,
    save_cross_encoder,
    save_modules,
    save_settings,
    save_transformer,
)
from tests.models.kinds.kind import Kind
from tests.models.kinds.networks import drawn, write_network, write_tokenizer
from tests.models.kinds.tokenizers import BERT_NAMES, wordpiece
from tests.random_models import MAX_TOKENS, SHAPE

HIDDEN = 64


def bert_body(path: Path) -> Path:
    """Writes a BERT without a head."""
    write_network(transformers.BertModel, transformers.BertConfig(**SHAPE | BERT), path)
    settings = {"model_max_length": MAX_TOKENS, "model_input_names": TOKEN_TYPES}
    return write_tokenizer(wordpiece(), path, BERT_NAMES, **settings)


def modernbert_body(path: Path) -> Path:
    """Writes a ModernBERT without a head."""
    return modernbert(path, architecture="ModernBertModel")


def pooling(mode: str, size: int = HIDDEN) -> Part:
    """The module that makes one row of all rows."""
    return Part("Pooling", {"embedding_dimension": size, "pooling_mode": mode, "include_prompt": True})


def old_pooling(mode: str) -> Part:
    """The same in the form of older releases."""
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    chosen = {f"pooling_mode_{name}": name == mode for name in modes}
    return Part("Pooling", {"word_embedding_dimension": HIDDEN, **chosen, "include_prompt": True})


def dense(
    inputs: int,
    outputs: int,
    activation: str = "Identity",
    *,
    bias: bool = True,
    scale: float = 0.3,
    **names: Any,
) -> Part:
    """A linear layer with an activation behind it; `names` are further keys of its config."""
    config = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": ACTIVATIONS.get(activation, activation),
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
    }
    weights = {"linear.weight": drawn(outputs, inputs, scale=scale)}
    if bias:
        weights["linear.bias"] = drawn(outputs)
    if names.get("use_residual") and inputs != outputs:
        weights["residual.weight"] = drawn(outputs, inputs, scale=scale) * 0.5
    return Part("Dense", config | names, weights)


def scores(inputs: int = HIDDEN, activation: str = "Identity", **names: Any) -> Part:
    """The layer that ends a cross-encoder's chain."""
    return dense(inputs, 1, activation, module_output_name="scores", **names)


def layer_norm(size: int = HIDDEN) -> Part:
    """A normalisation of each row, with weights far from 1 and 0."""
    return Part(
        "LayerNorm", {"dimension": size}, {"norm.weight": 1 + drawn(size), "norm.bias": drawn(size) + 1}
    )


def chained(body: Callable[[Path], Path], *parts: Part, **settings: Any) -> Callable[[Path], Path]:
    """A builder of a cross-encoder whose head is the parts."""
    return lambda path: save_cross_encoder(body(path), "feature-extraction", parts, **settings)


def ettin(path: Path) -> Path:
    """Writes the files of ettin-reranker."""
    head = dense(HIDDEN, HIDDEN, "GELU", bias=False), layer_norm(), scores()
    return chained(modernbert_body, pooling("cls"), *head)(path)


def without_settings(path: Path) -> Path:
    """Writes a chain beside which no file says which class has saved it."""
    chained(bert_body, pooling("cls"), scores())(path)
    (path / "config_sentence_transformers.json").unlink()
    return path


def old_chain(path: Path) -> Path:
    """Writes a chain with the paths and the pooling of older releases."""
    chained(bert_body)(path)
    return save_modules(path, old_pooling("mean_tokens"), scores(), old=True)


def bi_encoder(
    path: Path,
    *parts: Part,
    prompts: dict[str, str] | None = None,
    body: Callable[[Path], Path] = bert_body,
) -> Path:
    """Writes a network, a BERT by default, that SentenceTransformer saved."""
    save_modules(body(path), *parts)
    save_transformer(path, "feature-extraction")
    found = {"query": "", "document": ""} | (prompts or {})
    return save_settings(path, "SentenceTransformer", prompts=found, similarity_fn_name="cosine")


def _bi(*parts: Part, **prompts: Any) -> Callable[[Path], Path]:
    return lambda path: bi_encoder(path, *parts, **prompts)


def older_settings(path: Path) -> Path:
    """Writes a bi-encoder whose settings of the transformer have their name of 2020."""
    bi_encoder(path, pooling("mean"), NORMALIZE)
    edit(path, "sentence_bert_config.json", max_seq_length=MAX_TOKENS // 4)
    (path / "sentence_bert_config.json").rename(path / "sentence_roberta_config.json")
    return path


NORMALIZE = Part(
    "Normalize", {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
)
ROLES = {"query": "search_query: ", "document": "search_document: "}

CHAINS = (
    Kind("ettin", ettin, served="packed"),
    *(
        Kind(f"bert-{mode}-dense", chained(bert_body, pooling(mode), scores()), served="packed")
        for mode in ("cls", "mean", "max", "lasttoken")
    ),
    Kind("modernbert-mean-dense", chained(modernbert_body, pooling("mean"), scores()), served="packed"),
    Kind(
        "bert-two-denses",
        chained(bert_body, pooling("cls"), dense(HIDDEN, 32, "Tanh"), scores(32, scale=1.0)),
    ),
    Kind(
        "bert-residual",
        chained(bert_body, pooling("mean"), dense(HIDDEN, HIDDEN, use_residual=True), scores()),
    ),
    Kind(
        "bert-residual-of-another-size",
        chained(bert_body, pooling("mean"), dense(HIDDEN, 32, "GELU", use_residual=True), scores(32)),
    ),
    Kind("bert-old-chain", old_chain),
    Kind("bert-chain-sigmoid", chained(bert_body, pooling("cls"), scores(), activation="Sigmoid")),
    Kind(
        "bert-chain-default-prompt",
        chained(bert_body, pooling("cls"), scores(), prompts={"query": "search: "}, default="query"),
    ),
    Kind("bi-encoder", _bi(pooling("mean"), NORMALIZE), "sentence-transformer", served="packed"),
    Kind("bi-encoder-older-settings", older_settings, "sentence-transformer"),
    Kind("bi-encoder-cls", _bi(pooling("cls")), "sentence-transformer", served="packed"),
    Kind("bi-encoder-prompts", _bi(pooling("mean"), NORMALIZE, prompts=ROLES), "sentence-transformer"),
    Kind(
        "bi-encoder-dense",
        _bi(pooling("mean"), dense(HIDDEN, 32, "Tanh"), NORMALIZE),
        "sentence-transformer",
    ),
)
