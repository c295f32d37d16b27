"""Checkpoints that contradict themselves, lack a part, or ask for what no evidence tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.models.kinds import templates
from tests.models.kinds.chains import (
    bert_body,
    bi_encoder,
    chained,
    dense,
    layer_norm,
    pooling,
    scores,
    without_settings,
)
from tests.models.kinds.decoders import (
    OTHERS,
    QWEN3,
    Family,
    embedding_model,
    open_ended_embedding_model,
    qwen3_reranker,
    reranker,
    saved_classifier,
    write_decoder,
)
from tests.models.kinds.encoders import bert, lower_case_by_tokenizer, with_template
from tests.models.kinds.files import (
    Part,
    edit,
    save_cross_encoder,
    save_modules,
    save_settings,
    save_transformer,
)
from tests.models.kinds.kind import Kind
from tests.models.kinds.late import pylate
from tests.models.kinds.networks import drawn
from tests.models.kinds.templates import save_template

HIDDEN = 64
QUERY_TOKENS = 9


def _changed(build: Callable[[Path], Path], file: str, **changes: Any) -> Callable[[Path], Path]:
    return lambda path: edit(build(path), file, **changes)


def with_adapter(path: Path) -> Path:
    """Leaves the files of an adapter beside a whole model."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "task_type": "SEQ_CLS", "r": 8}
    return edit(bert(path), "adapter_config.json", **adapter)


def chat_model(path: Path) -> Path:
    return write_decoder(path, QWEN3._replace(template=templates.STRUCTURED))


def bare_embedding_model(path: Path) -> Path:
    """Writes the same with its network's and tokenizer's files alone."""
    embedding_model(path)
    for file in ("modules.json", "config_sentence_transformers.json", "chat_template.jinja"):
        (path / file).unlink()
    return path


def unknown_module(path: Path) -> Path:
    return chained(bert_body, pooling("cls"), Part("own_package.modules.Gate", {}), scores())(path)


def remote_transformer(path: Path) -> Path:
    """Names a module of the checkpoint's own code in place of the transformer."""
    save_cross_encoder(bert(path), "sequence-classification")
    entries = json.loads((path / "modules.json").read_text())
    entries[0]["type"] = "modeling_own.OwnTransformer"
    (path / "modules.json").write_text(json.dumps(entries))
    return path


def sparse_encoder(path: Path) -> Path:
    save_modules(bert_body(path), pooling("max"))
    save_transformer(path, "feature-extraction")
    return save_settings(path, "SparseEncoder", similarity_fn_name="dot")


def other_network(architecture: str, model_type: str = "bert", **changes: Any) -> Callable[[Path], Path]:
    """A builder of a checkpoint whose config names a network that gives no score for a pair."""
    return _changed(bert_body, "config.json", architectures=[architecture], model_type=model_type, **changes)


def two_labels(path: Path) -> Path:
    labels = {"0": "no", "1": "yes"}
    return edit(bert(path), "config.json", id2label=labels, label2id={"no": 0, "yes": 1})


def missing_dense_weights(path: Path) -> Path:
    chained(bert_body, pooling("cls"), scores())(path)
    (path / "2_Dense" / "model.safetensors").unlink()
    return path


def pickled_dense_weights(path: Path) -> Path:
    missing_dense_weights(path)
    weights = {"linear.weight": drawn(1, HIDDEN), "linear.bias": drawn(1)}
    torch.save(weights, path / "2_Dense" / "pytorch_model.bin")
    return path


def wrong_dense_weights(path: Path) -> Path:
    """Has weights of another size than the config of their layer."""
    part = scores()
    return chained(bert_body, pooling("cls"), part._replace(weights={"linear.weight": drawn(1, 32)}))(path)


def other_rows(path: Path) -> Path:
    """Reads the rows behind a layer before the last."""
    chained(bert_body, pooling("mean"), scores())(path)
    rows = {"method": "forward", "method_output_name": ["hidden_states", 1]}
    return edit(path, "sentence_bert_config.json", modality_config={"text": rows})


def unpadded_classifier(path: Path) -> Path:
    """Has a decoder that only runs padded, without the token to do it with."""
    family = OTHERS["gpt-oss"][0]._replace(architecture="GptOssForSequenceClassification")
    return write_decoder(path, family, num_labels=1, pad_token_id=None)


def _saved_with(file: str, **changes: Any) -> Callable[[Path], Path]:
    return lambda path: edit(save_cross_encoder(bert(path), "sequence-classification"), file, **changes)


def missing_pooling(path: Path) -> Path:
    chained(bert_body, pooling("cls"), scores())(path)
    (path / "1_Pooling" / "config.json").unlink()
    return path


def answers_outside(path: Path) -> Path:
    return _changed(qwen3_reranker, "1_LogitScore/config.json", true_token_id=5_000)(path)


def negative_answer(path: Path) -> Path:
    return _changed(qwen3_reranker, "1_LogitScore/config.json", false_token_id=-1)(path)


def equal_answers(path: Path) -> Path:
    """Compares a token with itself."""
    return _changed(qwen3_reranker, "1_LogitScore/config.json", true_token_id=5, false_token_id=5)(path)


def missing_answers(path: Path) -> Path:
    qwen3_reranker(path)
    (path / "1_LogitScore" / "config.json").unlink()
    return path


def other_tokenizer(path: Path) -> Path:
    """Has a tokenizer.json that lower-cases; AutoTokenizer follows tokenizer_config.json and does not."""
    return edit(bert(path), "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)


def moved_module(place: str | None) -> Callable[[Path], Path]:
    """A builder of a checkpoint that looks for its pooling elsewhere."""

    def build(path: Path) -> Path:
        chained(bert_body, pooling("cls"), scores())(path)
        entries = json.loads((path / "modules.json").read_text())
        entries[1]["path"] = place
        (path / "modules.json").write_text(json.dumps(entries))
        return path

    return build


def _dense_with(**changes: Any) -> Callable[[Path], Path]:
    return _changed(
        chained(bert_body, pooling("cls"), dense(HIDDEN, HIDDEN), scores()), "2_Dense/config.json", **changes
    )


def _in_settings(build: Callable[[Path], Path], **changes: Any) -> Callable[[Path], Path]:
    return _changed(build, "config_sentence_transformers.json", **changes)


def _in_transformer(build: Callable[[Path], Path], **changes: Any) -> Callable[[Path], Path]:
    return _changed(build, "sentence_bert_config.json", **changes)


def template_missing(path: Path) -> Path:
    """Says that messages are read, and has no template for them."""
    qwen3_reranker(path)
    (path / "chat_template.jinja").unlink()
    return path


def _with_template(template: str) -> Callable[[Path], Path]:
    family: Family = QWEN3._replace(template=template)
    return lambda path: reranker(path, family)


def _unserved(name: str, build: Callable[[Path], Path], refused: str) -> Kind:
    return Kind(name, build, None, refused)


_TEMPLATE = r"chat_template\.jinja"
REFUSED = (
    _unserved("chat-model", chat_model, r"config\.json.*Qwen3ForCausalLM|Qwen3ForCausalLM"),
    _unserved("open-ended-embedding-model", open_ended_embedding_model, r"tokenizer\.json: puts no token"),
    _unserved("bare-embedding-model", bare_embedding_model, r"Qwen3ForCausalLM"),
    _unserved("mono-t5", other_network("T5ForConditionalGeneration", "t5"), r"T5ForConditionalGeneration"),
    _unserved("splade", other_network("BertForMaskedLM"), r"BertForMaskedLM"),
    _unserved("spans", other_network("BertForTokenClassification"), r"BertForTokenClassification"),
    _unserved(
        "jina-v3",
        other_network("JinaForRanking", "qwen3", auto_map={"AutoModel": "modeling.JinaForRanking"}),
        r"JinaForRanking|auto_map",
    ),
    _unserved("adapter", with_adapter, r"adapter_config\.json"),
    _unserved(
        "quantized",
        _changed(
            bert, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
        r"config\.json: quantized weights",
    ),
    _unserved(
        "relative-positions",
        _changed(bert, "config.json", position_embedding_type="relative_key"),
        r"config\.json.*position_embedding_type|relative_key",
    ),
    _unserved("unknown-module", unknown_module, r"modules\.json.*Gate"),
    _unserved("remote-transformer", remote_transformer, r"modules\.json.*OwnTransformer"),
    _unserved("sparse-encoder", sparse_encoder, r"SparseEncoder"),
    _unserved(
        "auto-map",
        _changed(bert, "config.json", auto_map={"AutoModelForSequenceClassification": "modeling.Own"}),
        r"config\.json.*(auto_map|code)",
    ),
    _unserved("two-labels", two_labels, r"config\.json.*2 labels"),
    _unserved(
        "exotic-activation",
        lambda path: save_cross_encoder(bert(path), "sequence-classification", activation="Softplus"),
        r"config_sentence_transformers\.json.*Softplus",
    ),
    _unserved(
        "exotic-activation-in-config",
        _changed(
            bert, "config.json", sbert_ce_default_activation_function="torch.nn.modules.activation.ReLU"
        ),
        r"config\.json.*ReLU",
    ),
    _unserved(
        "remote-activation",
        lambda path: save_settings(
            save_modules(bert(path)), activation_fn="own_package.activations.Calibrated"
        ),
        r"config_sentence_transformers\.json.*Calibrated",
    ),
    _unserved(
        "default-prompt-missing",
        lambda path: save_cross_encoder(bert(path), "sequence-classification", default="query"),
        r"config_sentence_transformers\.json.*query",
    ),
    _unserved(
        "chain-of-other-sizes",
        chained(bert_body, pooling("cls"), dense(32, 32), scores(32)),
        r"2_Dense",
    ),
    _unserved(
        "chain-norm-of-another-size",
        chained(bert_body, pooling("cls"), dense(HIDDEN, 32), layer_norm(HIDDEN), scores(32)),
        r"3_LayerNorm",
    ),
    _unserved("chain-without-scores", chained(bert_body, pooling("cls"), dense(HIDDEN, HIDDEN)), r"scores"),
    _unserved(
        "chain-of-two-scores",
        chained(bert_body, pooling("cls"), dense(HIDDEN, 2, module_output_name="scores")),
        r"2_Dense",
    ),
    _unserved(
        "chain-remote-activation",
        chained(bert_body, pooling("cls"), dense(HIDDEN, HIDDEN, "own.Gate"), scores()),
        r"2_Dense.*own\.Gate",
    ),
    _unserved(
        "pooling-of-two-modes",
        chained(bert_body, pooling("cls")._replace(config={"pooling_mode": ["cls", "mean"]}), scores(128)),
        r"1_Pooling",
    ),
    _unserved(
        "pooling-weighted", chained(bert_body, pooling("weightedmean"), scores()), r"1_Pooling.*weightedmean"
    ),
    _unserved("other-rows", other_rows, r"sentence_bert_config\.json: reads .*hidden_states"),
    _unserved(
        "chain-that-forks",
        chained(bert_body, pooling("mean"), dense(HIDDEN, HIDDEN, "Tanh", module_output_name="x"), scores()),
        r"2_Dense.*makes 'x'",
    ),
    _unserved(
        "chain-of-tokens",
        lambda path: bi_encoder(
            path,
            pooling("mean"),
            dense(
                HIDDEN, HIDDEN, module_input_name="token_embeddings", module_output_name="token_embeddings"
            ),
        ),
        r"2_Dense.*token_embeddings",
    ),
    _unserved(
        "chain-unknown-activation",
        chained(bert_body, pooling("cls"), dense(HIDDEN, HIDDEN, "torch.nn.functional.relu"), scores()),
        r"2_Dense.*relu",
    ),
    _unserved(
        "bi-encoder-query-length",
        lambda path: edit(
            bi_encoder(path, pooling("mean")), "sentence_bert_config.json", query_length=QUERY_TOKENS
        ),
        r"sentence_bert_config\.json: query_length",
    ),
    _unserved(
        "bi-encoder-of-cut-vectors",
        lambda path: edit(
            bi_encoder(path, pooling("mean")), "config_sentence_transformers.json", truncate_dim=8
        ),
        r"config_sentence_transformers\.json: truncate_dim",
    ),
    _unserved("decoder-without-padding", unpadded_classifier, r"config\.json: names no pad_token_id"),
    _unserved(
        "cuts-documents-only",
        _saved_with("sentence_bert_config.json", processing_kwargs={"text": {"truncation": "only_second"}}),
        r"sentence_bert_config\.json: text has 'truncation'",
    ),
    _unserved(
        "prompts-in-a-list",
        _saved_with("config_sentence_transformers.json", prompts=["a"], default_prompt_name="a"),
        r"config_sentence_transformers\.json: 'prompts' is a list",
    ),
    _unserved(
        "options-in-a-list",
        _saved_with("sentence_bert_config.json", processing_kwargs={"text": ["max_length"]}),
        r"sentence_bert_config\.json: 'text' is a list",
    ),
    _unserved(
        "chain-activation-nowhere",
        _dense_with(activation_function="torch.nn.system"),
        r"2_Dense.*torch\.nn\.system",
    ),
    _unserved("chain-activation-abstract", _dense_with(activation_function="torch.nn.Module"), r"2_Dense"),
    _unserved(
        "chain-activation-is-a-loss", _dense_with(activation_function="torch.nn.CrossEntropyLoss"), r"2_Dense"
    ),
    _unserved(
        "chain-activation-halves-rows",
        _dense_with(activation_function="torch.nn.GLU"),
        r"2_Dense.*size of rows",
    ),
    _unserved("chain-without-settings", without_settings, r"modules\.json: makes scores"),
    _unserved(
        "prefix-of-a-book",
        pylate(bert_body, query_prefix="a b " * 50_000),
        r"config_sentence_transformers\.json: its query_prefix has 200,000",
    ),
    _unserved(
        "prefix-that-fills-the-window", pylate(bert_body, document_prefix="a b " * 200), r"leave no token"
    ),
    _unserved(
        "layers-below-none",
        _changed(bert, "config.json", num_hidden_layers=-1),
        r"config\.json: num_hidden_layers is -1",
    ),
    _unserved(
        "heads-as-a-text",
        _changed(qwen3_reranker, "config.json", num_key_value_heads="x"),
        r"config\.json: 'num_key_value_heads' is 'x'",
    ),
    _unserved(
        "classifier-pooling-unknown",
        _changed(bert, "config.json", classifier_pooling=["cls"]),
        r"config\.json: classifier_pooling",
    ),
    _unserved(
        "tokenizers-length-as-a-text",
        _changed(bert, "tokenizer_config.json", model_max_length="x"),
        r"tokenizer_config\.json: model_max_length is 'x'",
    ),
    _unserved("chain-of-claimed-petabytes", _dense_with(out_features=10**12), r"2_Dense"),
    _unserved("module-above-the-directory", moved_module(".."), r"modules\.json: path '\.\.' leaves"),
    _unserved("module-of-an-endless-name", moved_module("x" * 5_000), r"modules\.json: path"),
    _unserved("module-without-a-path", moved_module(None), r"modules\.json: an entry has no type or path"),
    _unserved("answers-that-are-equal", equal_answers, r"1_LogitScore.*itself"),
    _unserved(
        "prompts-as-a-list",
        _in_settings(qwen3_reranker, prompts=[1]),
        r"config_sentence_transformers\.json: 'prompts' is a list",
    ),
    _unserved(
        "prompt-as-a-number",
        _in_settings(qwen3_reranker, prompts={"query": 5}),
        r"config_sentence_transformers\.json: 'query' is 5",
    ),
    _unserved(
        "default-prompt-name-as-a-list",
        _in_settings(qwen3_reranker, default_prompt_name=["query"]),
        r"config_sentence_transformers\.json: 'default_prompt_name'",
    ),
    _unserved(
        "prompt-of-a-book",
        _in_settings(qwen3_reranker, prompts={"query": "a b " * 50_000}),
        r"config_sentence_transformers\.json: its prompt 'query' has 200,000",
    ),
    _unserved(
        "length-as-a-text",
        _in_transformer(saved_classifier, max_seq_length="64"),
        r"sentence_bert_config\.json: 'max_seq_length' is '64'",
    ),
    _unserved(
        "length-of-nothing",
        _in_transformer(saved_classifier, max_seq_length=0),
        r"sentence_bert_config\.json: max_seq_length is 0",
    ),
    _unserved(
        "length-for-control-tokens-alone",
        _changed(bert, "tokenizer_config.json", model_max_length=3),
        r"3 tokens are too few",
    ),
    _unserved(
        "lower-case-as-a-text",
        _in_transformer(saved_classifier, do_lower_case="no"),
        r"sentence_bert_config\.json: 'do_lower_case' is 'no'",
    ),
    _unserved(
        "modalities-as-a-number",
        _in_transformer(saved_classifier, modality_config={"message": 5}),
        r"sentence_bert_config\.json: 'message' is 5",
    ),
    _unserved(
        "processing-as-a-list",
        _in_transformer(saved_classifier, processing_kwargs={"chat_template": [1]}),
        r"sentence_bert_config\.json: 'chat_template' is a list",
    ),
    _unserved(
        "architectures-as-a-number",
        _changed(bert, "config.json", architectures=5),
        r"config\.json: 'architectures' is 5",
    ),
    _unserved(
        "labels-as-a-number", _changed(bert, "config.json", id2label=5), r"config\.json: 'id2label' is 5"
    ),
    _unserved(
        "layers-beyond-the-weights",
        _changed(bert, "config.json", num_hidden_layers=10**9),
        r"config\.json: num_hidden_layers is 1000000000",
    ),
    _unserved(
        "expansion-beyond-the-positions",
        pylate(bert_body, query_length=10**9),
        r"fills queries up to 1000000000 tokens",
    ),
    _unserved("missing-dense-weights", missing_dense_weights, r"2_Dense"),
    _unserved("pickled-dense-weights", pickled_dense_weights, r"2_Dense"),
    _unserved("wrong-dense-weights", wrong_dense_weights, r"2_Dense"),
    _unserved("missing-pooling", missing_pooling, r"1_Pooling"),
    _unserved("answer-outside-the-vocabulary", answers_outside, r"1_LogitScore.*5000"),
    _unserved("negative-answer", negative_answer, r"1_LogitScore.*-1"),
    _unserved("missing-answers", missing_answers, r"1_LogitScore"),
    _unserved("template-missing", template_missing, r"chat_template|template"),
    _unserved(
        "template-broken", lambda path: save_template(saved_classifier(path), "{%- for m in %}"), _TEMPLATE
    ),
    _unserved(
        "template-of-chance",
        _with_template(templates.ZERANK + "{{- ['', ''] | random -}}"),
        _TEMPLATE + ": depends on chance",
    ),
    _unserved(
        "template-of-a-book",
        _with_template(templates.ZERANK + "{# " + "x" * (1 << 16) + " #}"),
        _TEMPLATE + ": a template of more",
    ),
    _unserved(
        "template-by-the-megabyte",
        _with_template(templates.ZERANK + "{# " + "x" * (1 << 20) + " #}"),
        _TEMPLATE + ": a template of more",
    ),
    _unserved(
        "template-writes-a-book",
        _with_template(templates.ZERANK + "words " * 6_000),
        _TEMPLATE + ": writes more",
    ),
    _unserved(
        "template-of-many-lengths",
        _with_template(
            templates.ZERANK + "".join(f"{{%- set x = {99_000 - 5 * more} -%}}" for more in range(9))
        ),
        _TEMPLATE + ": knows more and larger",
    ),
    _unserved(
        "vocabulary-of-nothing",
        lambda path: edit(bert(path), "tokenizer.json", model={"vocab": None}),
        r"tokenizer\.json: not a tokenizer",
    ),
    _unserved(
        "late-vocabulary-of-nothing",
        lambda path: edit(pylate(bert_body)(path), "tokenizer.json", model={"vocab": None}),
        r"tokenizer\.json: not a tokenizer",
    ),
    _unserved(
        "prefix-of-half-a-character",
        pylate(bert_body, query_prefix="\ud800"),
        r"config_sentence_transformers\.json: its query_prefix holds a lone",
    ),
    _unserved("template-reverses-words", _with_template(templates.REVERSED_WORDS), _TEMPLATE),
    _unserved("template-dated", _with_template(templates.DATED), _TEMPLATE),
    _unserved("template-huge", _with_template(templates.HUGE), _TEMPLATE),
    _unserved("template-endless", _with_template(templates.ENDLESS), _TEMPLATE),
    _unserved("template-raises-for-roles", _with_template(templates.RAISES), _TEMPLATE),
    _unserved("template-drops-the-document", _with_template(templates.WITHOUT_DOCUMENT), _TEMPLATE),
    _unserved("template-repeats-the-document", _with_template(templates.TWICE), _TEMPLATE),
    _unserved("encoder-template-broken", lambda path: save_template(with_template(path), "{{ x"), _TEMPLATE),
    _unserved("bert-lower-case-by-tokenizer", lower_case_by_tokenizer, r"tokenizer_config\.json's class"),
    _unserved("tokenizers-that-differ", other_tokenizer, r"tokenizer\.json|tokenizer_config\.json"),
)
