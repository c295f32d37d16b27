"""Cross-encoders that read both ways, with all that may stand in the files beside their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from tests import random_models
from tests.models.kinds import tokenizers
from tests.models.kinds.files import ACTIVATIONS, edit, save_cross_encoder
from tests.models.kinds.kind import Kind
from tests.models.kinds.networks import write_network, write_tokenizer
from tests.models.kinds.templates import ENCODER, save_template
from tests.models.kinds.tokenizers import BERT_NAMES, ROBERTA_NAMES
from tests.random_models import MAX_TOKENS, SHAPE, VOCABULARY

TOKEN_TYPES = ["input_ids", "token_type_ids", "attention_mask"]
NO_TOKEN_TYPES = ["input_ids", "attention_mask"]
BERT: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_TOKENS, "pad_token_id": 0}
ROBERTA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_TOKENS + 2,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
ROTARY: dict[str, Any] = {"rope_type": "default", "rope_theta": 160_000.0}


def bert(path: Path, *, lower_case: bool = True, inputs: list[str] = TOKEN_TYPES, **settings: Any) -> Path:
    """Writes a BERT; `settings` are its tokenizer's."""
    config = transformers.BertConfig(**SHAPE | BERT)
    write_network(transformers.BertForSequenceClassification, config, path)
    settings = {"model_max_length": MAX_TOKENS, "model_input_names": inputs} | settings
    return write_tokenizer(tokenizers.wordpiece(lower_case=lower_case), path, BERT_NAMES, **settings)


def distilbert(path: Path) -> Path:
    own = {
        "dim": 64,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 128,
        "initializer_range": 0.3,
        "num_labels": 1,
    }
    config = transformers.DistilBertConfig(**BERT | own)
    write_network(transformers.DistilBertForSequenceClassification, config, path)
    return _with_wordpiece(path, NO_TOKEN_TYPES)


def albert(path: Path) -> Path:
    config = transformers.AlbertConfig(**SHAPE | BERT | {"embedding_size": 32, "num_hidden_groups": 1})
    write_network(transformers.AlbertForSequenceClassification, config, path)
    return _with_wordpiece(path)


def camembert(path: Path) -> Path:
    config = transformers.CamembertConfig(**SHAPE | ROBERTA)
    write_network(transformers.CamembertForSequenceClassification, config, path)
    settings = {"model_max_length": MAX_TOKENS, "model_input_names": NO_TOKEN_TYPES}
    return write_tokenizer(tokenizers.unigram(), path, ROBERTA_NAMES, **settings)


def mpnet(path: Path) -> Path:
    own = {"pad_token_id": 1, "max_position_embeddings": MAX_TOKENS + 2, "vocab_size": VOCABULARY}
    write_network(transformers.MPNetForSequenceClassification, transformers.MPNetConfig(**SHAPE | own), path)
    settings = {"model_max_length": MAX_TOKENS, "model_input_names": NO_TOKEN_TYPES}
    return write_tokenizer(tokenizers.byte_level(), path, ROBERTA_NAMES, **settings)


def gte(path: Path) -> Path:
    """Writes what gte-multilingual-reranker-base becomes in transformers' own form."""
    positions = {"max_position_embeddings": MAX_TOKENS, "rope_parameters": ROTARY}
    config = transformers.GteConfig(**SHAPE | ROBERTA | positions)
    write_network(transformers.GteForSequenceClassification, config, path)
    settings = {"model_max_length": MAX_TOKENS, "model_input_names": NO_TOKEN_TYPES}
    return write_tokenizer(tokenizers.unigram(), path, ROBERTA_NAMES, **settings)


def modernbert(
    path: Path, pooling: str = "cls", architecture: str = "ModernBertForSequenceClassification"
) -> Path:
    """Writes a ModernBERT, whose windows are smaller than its sequences."""
    own = {
        "local_attention": 32,
        "global_attn_every_n_layers": 2,
        "classifier_pooling": pooling,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "initializer_cutoff_factor": 10.0,
    }
    write_network(
        getattr(transformers, architecture), transformers.ModernBertConfig(**SHAPE | BERT | own), path
    )
    return _with_wordpiece(path, NO_TOKEN_TYPES)


def _with_wordpiece(path: Path, inputs: list[str] = TOKEN_TYPES) -> Path:
    settings = {"model_max_length": MAX_TOKENS, "model_input_names": inputs}
    return write_tokenizer(tokenizers.wordpiece(), path, BERT_NAMES, **settings)


def _saved(activation: str = "Sigmoid", **settings: Any) -> Callable[[Path], Path]:
    """A BERT as CrossEncoder.save_pretrained writes it."""
    return lambda path: save_cross_encoder(
        bert(path), "sequence-classification", activation=activation, **settings
    )


def _activated(place: str, activation: str) -> Callable[[Path], Path]:
    """A BERT whose activation stands in one of the three places, by its path or, in two of them, older."""
    whole = ACTIVATIONS[activation]
    if place == "config_sentence_transformers":
        return _saved(activation)
    if place == "sentence_transformers":
        own: dict[str, Any] = {"sentence_transformers": {"activation_fn": whole, "version": "4.1.0"}}
    else:
        own = {"sbert_ce_default_activation_function": whole}
    return lambda path: edit(bert(path), "config.json", **own)


def contradicting_activations(path: Path) -> Path:
    """Names one activation in each of the three places; sentence-transformers' own file is the first."""
    _saved("Identity")(path)
    own = {"activation_fn": ACTIVATIONS["Tanh"]}
    edit(path, "config.json", sentence_transformers=own)
    return edit(path, "config.json", sbert_ce_default_activation_function=ACTIVATIONS["Sigmoid"])


def lower_case_by_transformer(path: Path) -> Path:
    bert(path, lower_case=False)
    return save_cross_encoder(path, "sequence-classification", activation="Sigmoid", do_lower_case=True)


def lower_case_by_transformer_in_bytes(path: Path) -> Path:
    random_models.roberta(path)
    return save_cross_encoder(path, "sequence-classification", activation="Sigmoid", do_lower_case=True)


def lower_case_by_tokenizer(path: Path) -> Path:
    """Says BertTokenizer and do_lower_case in tokenizer_config.json; tokenizer.json keeps capital letters."""
    bert(path, lower_case=False)
    return edit(path, "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)


def lower_case_said_twice(path: Path) -> Path:
    """Has the tokenizer's files of an uncased BERT."""
    return edit(bert(path), "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)


def no_token_types(path: Path) -> Path:
    return bert(path, inputs=NO_TOKEN_TYPES)


def max_seq_length(path: Path) -> Path:
    return save_cross_encoder(
        bert(path), "sequence-classification", activation="Sigmoid", max_seq_length=MAX_TOKENS // 2
    )


def smaller_model_max_length(path: Path) -> Path:
    return bert(path, model_max_length=MAX_TOKENS // 2)


def larger_model_max_length(path: Path) -> Path:
    return bert(path, model_max_length=int(1e30))


def with_template(path: Path) -> Path:
    return save_template(bert(path), ENCODER)


def saved_with_template(path: Path) -> Path:
    save_template(bert(path), ENCODER)
    return save_cross_encoder(path, "sequence-classification", activation="Identity", message="flat")


def old_modules(path: Path) -> Path:
    """Has the files of 2024: the transformer's old path, and settings that name nothing but lengths."""
    (bert(path) / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    edit(path, "sentence_bert_config.json", max_seq_length=MAX_TOKENS, do_lower_case=False)
    return edit(path, "sentence_bert_config.json", transformer_task="sequence-classification")


PLACES = ("config_sentence_transformers", "sentence_transformers", "sbert_ce_default_activation_function")


def settings_without_modules(path: Path) -> Path:
    """Leaves the transformer's settings without modules.json; nothing reads them then."""
    return edit(
        bert(path, lower_case=False), "sentence_bert_config.json", max_seq_length=32, do_lower_case=True
    )


def settings_of_another_class(path: Path) -> Path:
    """Has the modules of a SentenceTransformer, whose settings say nothing about a classifier."""
    settings_without_modules(path)
    old = '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    (path / "modules.json").write_text(old)
    return path


def common_max_length(path: Path) -> Path:
    lengths = {"text": {"max_length": MAX_TOKENS}, "common": {"max_length": MAX_TOKENS // 2}}
    return save_cross_encoder(bert(path), "sequence-classification", processing_kwargs=lengths)


PROMPTS = {"query": "search query: ", "other": "another: "}

ENCODERS = (
    Kind("bert", bert, served="packed"),
    Kind("roberta", random_models.roberta, served="packed"),
    Kind("xlm-roberta", random_models.xlm_roberta, served="packed"),
    Kind("camembert", camembert),
    Kind("electra", random_models.electra, served="padded"),
    Kind("deberta-v2", random_models.deberta, served="padded"),
    Kind("distilbert", distilbert, served="padded"),
    Kind("albert", albert, served="padded"),
    Kind("mpnet", mpnet, served="padded"),
    Kind("gte", gte),
    Kind("modernbert-cls", modernbert, served="packed"),
    Kind("modernbert-mean", lambda path: modernbert(path, "mean"), served="packed"),
    Kind("bert-saved", _saved(), served="packed"),
    *(
        Kind(f"bert-{activation.lower()}-by-{place.replace('_', '-')}", _activated(place, activation))
        for place in PLACES
        for activation in ("Identity", "Sigmoid", "Tanh")
    ),
    Kind("bert-contradicting-activations", contradicting_activations),
    Kind("bert-lower-case-by-transformer", lower_case_by_transformer),
    Kind("roberta-lower-case-by-transformer", lower_case_by_transformer_in_bytes),
    Kind("bert-lower-case-said-twice", lower_case_said_twice),
    Kind("bert-no-token-types", no_token_types),
    Kind("bert-default-prompt", _saved(prompts=PROMPTS, default="query")),
    Kind("bert-prompts-without-default", _saved(prompts=PROMPTS)),
    Kind("bert-template", with_template, instructed=True),
    Kind("bert-template-saved", saved_with_template, instructed=True),
    Kind("bert-max-seq-length", max_seq_length),
    Kind("bert-smaller-model-max-length", smaller_model_max_length),
    Kind("bert-larger-model-max-length", larger_model_max_length),
    Kind("bert-old-modules", old_modules),
    Kind("bert-settings-without-modules", settings_without_modules),
    Kind("bert-settings-of-another-class", settings_of_another_class),
    Kind("bert-common-max-length", common_max_length),
)
