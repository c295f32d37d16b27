"""Checkpoints of a catalogue entry's shape, with random weights and a tokenizer made for it.

What a pass costs does not depend on the values of the weights. The scores mean nothing.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.checkpoints.disk import SPARE_BYTES, free_if_short
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.recommend.texts import paragraphs
from rerank_grpc.units import size

NAME = "random-shape"  # of the folder, and of the entry that says how the model is asked
WEIGHTS = "model.safetensors"
# Of the weights in the file, as most are published: the type's name in the file and in torch, and its bytes.
STORED, DTYPE, ITEM = "BF16", "bfloat16", 2
BLOCK = 1 << 20  # random numbers that are drawn; a larger weight repeats them
VOCABULARY = 4_096
CONTROL = ("<s>", "<pad>", "</s>", "<unk>", "[Q] ", "[D] ", "<mask>")
NAMES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
TYPED = ("bert", "electra")  # families that tell query and document apart by a type of each token
# Language models whose tokenizer's steps are made here, and those steps' words.
PROMPTED = ("qwen2", "qwen3")
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
# The prompt of every language model: as long as those that are published, in tokens of the tokenizer here.
PROMPT: Mapping[str, Any] = {
    "segments": [
        "<s>",
        "Judge whether the document meets the requirements based on the query and the instruction that are "
        "given. The answer can only be true or false.\nquery: {query}\ndocument: {document}",
        "</s>",
    ],
    "answers": ["true", "false"],
}
VECTOR = 128  # dimensions of a token's vector in late interaction
SENTENCE = "sentence_transformers.models"


def weights_bytes(known: KnownModel) -> int:
    """Returns the bytes of an entry's weights in a file; raises ConfigurationError for a bad shape."""
    return sum(math.prod(shape) for _, shape in _weights(known)) * ITEM


def write_checkpoint(known: KnownModel, folder: Path, *, sparse: bool = False) -> Path:
    """Writes a checkpoint and the catalogue that names it; returns its directory.

    A `sparse` one has all files' sizes and no weights: enough for what reads headers alone. Raises
    ConfigurationError for a shape that transformers does not take, and where the disk has no room.
    """
    free = None if sparse else free_if_short(folder, needed := weights_bytes(known))
    if free is not None:
        raise ConfigurationError(
            f"its random weights need {size(needed + SPARE_BYTES)} at {folder}, where {size(free)} are free: "
            "set TMPDIR to another disk"
        )
    if is_language_model(known) and known.family not in PROMPTED and not sparse:
        raise ConfigurationError(f"random weights of {known.family} have no tokenizer: download the model")
    directory = folder / NAME
    directory.mkdir(parents=True)
    _write_json(directory / "config.json", _config_file(known))
    _write_settings(known, directory)
    (folder / "catalogue.toml").write_text(_catalogue(known), "utf-8")
    if not sparse:
        _write_tokenizer(known, directory)
    _write_weights(directory / WEIGHTS, _weights(known), sparse=sparse)
    return directory


# ---------------- The network


def _config(known: KnownModel) -> Any:
    import transformers

    own: dict[str, Any] = {"num_labels": 1, **IDS}
    if known.family == "modernbert" and known.pooling == "mean":
        own["classifier_pooling"] = "mean"
    shape = dict(known.shape)
    shape["vocab_size"] = max(int(shape.get("vocab_size", 0)), VOCABULARY + len(CONTROL))
    return transformers.AutoConfig.for_model(known.family, **own | shape)


def _network(known: KnownModel) -> tuple[Any, Any]:
    """Builds the network without memory for its weights; raises ConfigurationError."""
    import torch
    import transformers

    try:
        config = _config(known)
        with torch.device("meta"):
            return config, getattr(transformers, _class(known)).from_config(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"its shape in the catalogue makes no {known.family}: {reason}") from error
    except Exception as error:  # huggingface_hub checks a config's types with errors of its own
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"its shape in the catalogue makes no {known.family}: {reason}") from error


def _class(known: KnownModel) -> str:
    if known.kind != "cross-encoder":
        return "AutoModel"
    return "AutoModelForCausalLM" if is_language_model(known) else "AutoModelForSequenceClassification"


def is_language_model(known: KnownModel) -> bool:
    """Tells whether an entry's network is asked by a prompt."""
    return "num_key_value_heads" in known.shape


def _weights(known: KnownModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and shapes of the weights, one for those that are tied."""
    _, network = _network(known)
    for name, weight in network.named_parameters():
        yield name, tuple(weight.shape)


def _config_file(known: KnownModel) -> dict[str, Any]:
    config, network = _network(known)
    return {**config.to_dict(), "architectures": [type(network).__name__], "dtype": DTYPE}


def _write_weights(
    path: Path, weights: Iterable[tuple[str, tuple[int, ...]]], *, sparse: bool = False
) -> None:
    """Writes a safetensors file piece by piece: no weight is in memory whole."""
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    entries, end = list(weights), 0
    for name, shape in entries:
        begin, end = end, end + math.prod(shape) * ITEM
        header[name] = {"dtype": STORED, "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, DTYPE)
    drawn = _bytes_of((torch.randn(BLOCK, generator=generator) * 0.02).to(dtype))
    ones = _bytes_of(torch.ones(BLOCK, dtype=dtype))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        if sparse:
            file.truncate(8 + len(head) + end)
            return
        for name, shape in entries:
            # Norms scale by one; what is added begins at zero.
            block = drawn if len(shape) > 1 else bytes(len(ones)) if name.endswith("bias") else ones
            left = math.prod(shape) * ITEM
            while left:
                left -= file.write(block[:left])


def _bytes_of(numbers: Any) -> bytes:
    import torch

    return bytes(numbers.view(torch.uint8).numpy().tobytes())


# ---------------- What stands beside it


def _write_tokenizer(known: KnownModel, directory: Path) -> None:
    """Trains a byte-level tokenizer on Python's manual; other kinds cost about the same."""
    import transformers
    from tokenizers import processors, trainers

    tokenizer = _qwen_steps() if is_language_model(known) else _byte_level_steps()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(CONTROL), initial_alphabet=_alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*paragraphs(), *["true", " true", "false"] * 1_000], trainer)
    typed = known.family in TYPED and int(known.shape.get("type_vocab_size", 2)) > 1
    tokenizer.post_processor = (
        processors.ByteLevel(trim_offsets=False)
        if is_language_model(known)
        else processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1" if typed else "<s> $A </s> $B </s>",
            special_tokens=[("<s>", 0), ("</s>", 2)],
        )
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=known.max_tokens or int(known.shape.get("max_position_embeddings", 512)),
        model_input_names=["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
        **NAMES,
    ).save_pretrained(directory)


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return list(pre_tokenizers.ByteLevel.alphabet())


def _byte_level_steps() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _qwen_steps() -> Any:
    """The steps of Qwen's tokenizer, which transformers takes for its families whatever the file says."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _write_settings(known: KnownModel, directory: Path) -> None:
    """Writes the files by which sentence-transformers and PyLate say what a network of vectors is."""
    if known.kind == "cross-encoder":
        return
    hidden = int(known.shape.get("hidden_size", VECTOR))
    first = {"idx": 0, "name": "0", "path": "", "type": f"{SENTENCE}.Transformer"}
    settings: dict[str, Any] = {"max_seq_length": known.max_tokens or 512, "do_lower_case": False}
    _write_json(directory / "sentence_bert_config.json", settings)
    if known.kind == "bi-encoder":
        second = {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{SENTENCE}.Pooling"}
        _write_json(directory / "modules.json", [first, second])
        pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
        _write_json(directory / "1_Pooling" / "config.json", pooling)
        return
    second = {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"}
    _write_json(directory / "modules.json", [first, second])
    facts = {"in_features": hidden, "out_features": VECTOR, "bias": False}
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    _write_json(directory / "1_Dense" / "config.json", facts | activation)
    _write_weights(directory / "1_Dense" / WEIGHTS, [("linear.weight", (VECTOR, hidden))])
    lengths = {"query_length": 32, "document_length": known.max_tokens or 512}
    prefixes = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
    similarity = {"model_type": "ColBERT", "similarity_fn_name": "MaxSim", "prompts": {}}
    rules = {"attend_to_expansion_tokens": False, "skiplist_words": []}
    _write_json(
        directory / "config_sentence_transformers.json", {**similarity, **lengths, **prefixes, **rules}
    )


def _catalogue(known: KnownModel) -> str:
    """Writes the entry by which a language model is asked; the others' files say it themselves."""
    facts: dict[str, Any] = {"id": f"random/{NAME}", "kind": known.kind, "family": known.family}
    if known.max_tokens:
        facts["max_tokens"] = known.max_tokens
    # A basic string of TOML has the escapes of JSON's.
    lines = ["[[model]]", *(f"{name} = {json.dumps(value)}" for name, value in facts.items())]
    if is_language_model(known):
        lines += ["[model.prompt]", *(f"{name} = {json.dumps(value)}" for name, value in PROMPT.items())]
    return "\n".join(lines) + "\n"


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def layers_work(known: KnownModel) -> float:
    """Returns the weights that every token meets in layers, by the shape; 0 where it does not say so.

    Models of one family differ in speed about by this number.
    """
    shape = known.shape
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    if not all(isinstance(shape.get(name), int) for name in names):
        return 0.0
    layers, hidden, wide, heads = (int(shape[name]) for name in names)
    head = int(shape.get("head_dim", hidden // heads))
    keys = int(shape.get("num_key_value_heads", heads))
    attention = hidden * head * (2 * heads + 2 * keys)
    gated = is_language_model(known) or re.fullmatch("modernbert|gte", known.family) is not None
    return float(layers * (attention + (3 if gated else 2) * hidden * wide))
