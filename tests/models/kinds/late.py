"""Late interaction: what PyLate, sentence-transformers and Stanford's ColBERT save."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.models.kinds.chains import bert_body, modernbert_body
from tests.models.kinds.files import ACTIVATIONS, Part, edit, save_modules, save_settings, save_transformer
from tests.models.kinds.kind import Kind
from tests.models.kinds.networks import drawn

HIDDEN, WIDTH = 64, 32  # of the network's rows, and of the vectors
QUERY_LENGTH, DOCUMENT_LENGTH = 24, 96
PYLATE_DENSE = "pylate.models.Dense.Dense"


def _dense(**names: Any) -> Part:
    config = {
        "in_features": HIDDEN,
        "out_features": WIDTH,
        "bias": False,
        "activation_function": ACTIVATIONS["Identity"],
    }
    return Part("Dense", config | names, {"linear.weight": drawn(WIDTH, HIDDEN, scale=0.2)})


def pylate(body: Callable[[Path], Path], *, expands: bool = True, **settings: Any) -> Callable[[Path], Path]:
    """A builder of what PyLate 1 saves: the prefixes are tokens, the lengths stand at the top."""

    def write(path: Path) -> Path:
        body(path)
        edit(path, "sentence_bert_config.json", max_seq_length=DOCUMENT_LENGTH - 1, do_lower_case=False)
        save_modules(path, _dense()._replace(type=PYLATE_DENSE), old=True)
        own: dict[str, Any] = {
            "similarity_fn_name": "MaxSim",
            "query_prefix": "[unused0] ",
            "document_prefix": "[unused1] ",
            "query_length": QUERY_LENGTH,
            "document_length": DOCUMENT_LENGTH,
            "attend_to_expansion_tokens": False,
            "do_query_expansion": expands,
            "skiplist_words": list(string.punctuation),
        }
        return save_settings(path, "ColBERT", **own | settings)

    return write


def native(body: Callable[[Path], Path], **settings: Any) -> Callable[[Path], Path]:
    """A builder of what MultiVectorEncoder.save_pretrained writes."""

    def write(path: Path) -> Path:
        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        mask = {"skiplist_words": [".", ","], "skiplist_tasks": ["document"], "keep_only_token_ids": None}
        parts = _dense(**names), Part("MultiVectorMask", mask), Part("Normalize", names)
        save_modules(body(path), *parts)
        save_transformer(path, "feature-extraction", **settings)
        prompts = {"query": "query: ", "document": "passage: "}
        return save_settings(path, "MultiVectorEncoder", prompts=prompts, similarity_fn_name="maxsim")

    return write


def stanford(path: Path) -> Path:
    """Writes what Stanford's ColBERT saves: its projection is a weight, the rest in artifact.metadata."""
    weights = path / "model.safetensors"
    bert_body(path)
    named = {f"bert.{name}": weight for name, weight in load_file(weights).items()}
    save_file(named | {"linear.weight": drawn(WIDTH, HIDDEN, scale=0.2)}, weights, {"format": "pt"})
    metadata = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": QUERY_LENGTH,
        "doc_maxlen": DOCUMENT_LENGTH,
        "attend_to_mask_tokens": False,
        "mask_punctuation": True,
        "similarity": "cosine",
        "dim": WIDTH,
    }
    (path / "artifact.metadata").write_text(json.dumps(metadata))
    return edit(_with_markers(path), "config.json", architectures=["HF_ColBERT"])


def _with_markers(path: Path) -> Path:
    """Gives a checkpoint the vocabulary of BERT's beginning: words that no text becomes."""
    data = json.loads((path / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    for place, name in enumerate(sorted(vocabulary, key=vocabulary.__getitem__)[-2:]):
        vocabulary[f"[unused{place}]"] = vocabulary.pop(name)
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def _marked(body: Callable[[Path], Path]) -> Callable[[Path], Path]:
    return lambda path: _with_markers(body(path))


EXPANSION = {"strategy": "fixed", "attend": True, "length": QUERY_LENGTH, "token": None}

LATE = (
    Kind("pylate-bert", pylate(_marked(bert_body)), "multi-vector"),
    Kind("pylate-modernbert", pylate(_marked(modernbert_body)), "multi-vector"),
    Kind("pylate-words", pylate(bert_body, query_prefix="[Q] ", document_prefix="[D] "), "multi-vector"),
    Kind("pylate-attends", pylate(_marked(bert_body), attend_to_expansion_tokens=True), "multi-vector"),
    Kind("pylate-no-expansion", pylate(_marked(modernbert_body), expands=False), "multi-vector"),
    Kind("pylate-no-skiplist", pylate(_marked(bert_body), skiplist_words=[]), "multi-vector"),
    Kind("colbert-native", native(bert_body), "multi-vector"),
    Kind(
        "colbert-native-lengths",
        native(
            modernbert_body,
            query_length=QUERY_LENGTH,
            document_length=DOCUMENT_LENGTH,
            query_expansion=EXPANSION,
        ),
        "multi-vector",
    ),
    Kind("colbert-stanford", stanford, "multi-vector"),
)
