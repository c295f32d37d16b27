"""The models of some attacks, with random weights: written once for a run."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

TOKENS = 512


def write_models(folder: Path) -> None:
    """Writes a model that pads and one that is slow to load; in a process that then gives its memory back."""
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the models could not be written")


def _write(folder: Path) -> None:
    from tests import random_models as checkpoints

    size = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512}
    checkpoints.deberta(folder / "padded", max_position_embeddings=TOKENS, **size)
    size = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3_072}
    checkpoints.bert(folder / "slow", max_position_embeddings=TOKENS, num_attention_heads=12, **size)
    # The tests' tokenizers say that texts are shorter.
    file = folder / "padded" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": TOKENS}))
