"""A kind of checkpoint: the files that it has, and what must become of it at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Oracle = Literal["cross-encoder", "multi-vector", "sentence-transformer"]
Pass = Literal["packed", "padded", "any"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One form of checkpoint, as a builder writes it with tiny random weights."""

    name: str  # that of its directory too
    build: Callable[[Path], Path]  # writes it into a directory, which it returns
    oracle: Oracle | None = "cross-encoder"  # the class of sentence-transformers that scores it, if any does
    refused: str = ""  # a pattern of the one line that refuses it; "" if it is served
    served: Pass = "any"
    instructed: bool = False  # whether an instruction changes its scores
    cuts: bool = True  # whether the oracle cuts a long document at its end, as the service does
    catalogue: str = ""  # the operator's catalogue.toml without which it is not served
