"""The token ids of a language model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import answer_ids, check_control_tokens, read_tokenizer
from rerank_grpc.evidence.facts import Answers
from rerank_grpc.evidence.prompt import Prompt


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
    tokenizer = read_tokenizer(path)
    check_control_tokens(prompt, tokenizer, path)
    return Answers(*answer_ids(words, tokenizer, path))
