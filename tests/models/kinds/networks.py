"""Networks with random weights whose scores differ, and their tokenizers' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.random_models import HEAD_SCALE


def write_network(architecture: Any, config: Any, path: Path) -> Path:
    """Writes a network's weights and config; the rows of a head for one label are made larger."""
    torch.manual_seed(0)
    network = architecture(config).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 1:
                module.weight *= HEAD_SCALE
    network.save_pretrained(path)
    return path


def write_tokenizer(tokenizer: Tokenizer, path: Path, names: Mapping[str, Any], **settings: Any) -> Path:
    """Writes a tokenizer's files, with the names of its control tokens."""
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **settings).save_pretrained(
        path
    )
    return path


def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Draws weights of a shape, the same ones each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
