"""The head that the files describe: the rows it reads, the answers it compares, and the activation behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import answer_ids, check_control_tokens, original_tokenizer
from rerank_grpc.evidence.facts import Answers, Chain, Module
from rerank_grpc.evidence.modules import SETTINGS, SavedModel
from rerank_grpc.evidence.prompt import Prompt

ACTIVATIONS = ("identity", "sigmoid", "tanh")
POOLED = "sentence_embedding"  # sentence-transformers' name of pooled rows
# Sentence-transformers' names, old and new, and ours.
POOLINGS = {
    "cls": "first",
    "cls_token": "first",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
}


def pooling_of(module: Module) -> str:
    """Returns "first", "mean", "max" or "last"; raises ModelLoadError for another pooling, or several."""
    where, config = module.directory / "config.json", module.config
    if not config:
        raise ModelLoadError(f"{where}: no such file, or an empty one: copy the whole checkpoint")
    chosen = _chosen(config)
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ModelLoadError(f"{where}: pools by {', '.join(chosen) or 'nothing'}, which is not supported")
    if config.get("include_prompt", True) is False:
        raise ModelLoadError(f"{where}: leaves prompts out of the pooling, which is not supported")
    return POOLINGS[chosen[0]]


def _chosen(config: Mapping[str, Any]) -> list[str]:
    """Lists the poolings that a config.json chooses, in its old or new form."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return [str(each)[:40] for each in (mode if isinstance(mode, list) else [mode])]
    return [
        name.removeprefix("pooling_mode_")
        for name, value in config.items()
        if value is True and name.startswith("pooling_mode_")
    ]


def read_chain(modules: tuple[Module, ...], *, result: str) -> Chain:
    """Reads the modules behind a pooling, of which each takes what the one before gives.

    Raises ModelLoadError for another module, one that is given nothing, and unless the last one, and no
    other, gives `result`; "scores" are one number.
    """
    for module in modules:
        where = f"{module.directory}/config.json"
        if module.type not in ("Dense", "LayerNorm", "Normalize"):
            raise ModelLoadError(f"{where}: {module.type} behind the pooling is not supported")
        taken = module.config.get("module_input_name") or POOLED
        given = module.config.get("module_output_name") or taken
        if (taken, given) != (POOLED, result if module is modules[-1] else POOLED):
            raise ModelLoadError(
                f"{where}: makes {str(given)[:40]!r} of {str(taken)[:40]!r}, where the chain needs another: "
                "use another checkpoint"
            )
    if result == "scores" and (outputs := modules[-1].config.get("out_features")) != 1:
        raise ModelLoadError(
            f"{where}: gives {outputs} scores where a reranker has 1: use another checkpoint"
        )
    return Chain(modules)


def stated_answer(checkpoint: Checkpoint, value: Any, name: str, where: Path) -> int:
    """Returns a token id out of a file; raises ModelLoadError if it is none of the model's."""
    rows = checkpoint.config.get("vocab_size")
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelLoadError(f"{where}: {name} is {str(value)[:40]!r} where a token id is expected")
    if isinstance(rows, int) and value >= rows:
        raise ModelLoadError(f"{where}: {name} is {value}, but the weights know {rows} tokens")
    return value


def find_answers(checkpoint: Checkpoint, prompt: Prompt, words: tuple[str, ...]) -> Answers:
    """Finds the answers to a catalogue's prompt; raises ModelLoadError if the tokenizer is another's."""
    path = checkpoint.tokenizer_file
    tokenizer = original_tokenizer(path)
    check_control_tokens(prompt, tokenizer, path)
    return Answers(*answer_ids(words, tokenizer, path))


def activation_of(checkpoint: Checkpoint, saved: SavedModel) -> str:
    """Returns one of ACTIVATIONS, "sigmoid" where no file states one; raises ModelLoadError for another."""
    for file, value in _stated(checkpoint, saved):
        if value is None:
            continue
        name = str(value).rpartition(".")[2].lower()
        if not str(value).startswith("torch.nn.") or name not in ACTIVATIONS:
            raise ModelLoadError(
                f"{checkpoint.directory}/{file}: the activation {str(value)[:80]!r} is not supported: "
                "this version knows torch's Identity, Sigmoid and Tanh"
            )
        return name
    return "sigmoid"


def _stated(checkpoint: Checkpoint, saved: SavedModel) -> Iterator[tuple[str, Any]]:
    """Yields what the files state, in the order of sentence-transformers."""
    if saved.has_modules:
        yield SETTINGS, saved.settings.get("activation_fn")
    own = checkpoint.config.get("sentence_transformers")
    yield "config.json", own.get("activation_fn") if isinstance(own, dict) else None
    yield "config.json", checkpoint.config.get("sbert_ce_default_activation_function")
