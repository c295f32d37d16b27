"""The token ids of a language model's answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers
from rerank_grpc.evidence.prompt import parse_answers

# As the texts of a catalogue's prompt have them.
CONTROL, SLOT = re.compile(r"<[^<>\s]+>"), re.compile(r"\{(?:instruction|query|document)\}")


def check_answer(checkpoint: Checkpoint, value: Any, name: str, where: Path) -> int:
    """Returns a token id out of a file; raises ModelLoadError if it is none of the model's."""
    rows = checkpoint.config.get("vocab_size")
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelLoadError(f"{where}: {name} is {str(value)[:40]!r} where a token id is expected")
    if isinstance(rows, int) and value >= rows:
        raise ModelLoadError(f"{where}: {name} is {value}, but the weights know {rows} tokens")
    return value


def answers_of(checkpoint: Checkpoint, prompt: Mapping[str, Any]) -> Answers:
    """Finds the answers of a catalogue's prompt, and checks that the tokenizer knows its control tokens.

    Raises ModelLoadError if an answer, or a control token, is no token of its own.
    """
    path = checkpoint.tokenizer_file
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise ModelLoadError(
            f"{path}: not a tokenizer this version reads ({type(error).__name__}): copy it again"
        ) from error
    fixed = "".join(segment for segment in prompt["segments"] if not SLOT.search(segment))
    for token in sorted(set(CONTROL.findall(fixed))):
        _id_of(tokenizer, path, token)
    return Answers(*[_id_of(tokenizer, path, word) for word in parse_answers(prompt, str(path))])


def _id_of(tokenizer: Tokenizer, path: Path, word: str) -> int:
    ids = list(tokenizer.encode(word, add_special_tokens=False).ids)
    if len(ids) != 1:
        raise ModelLoadError(
            f"{path}: has no token {word!r}, which the model's prompt in the catalogue needs: "
            "use the tokenizer that the model came with"
        )
    return ids[0]
