"""Reads the numbers of a config.json, with the defaults of the family."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rerank_grpc.models.bodies.plan import NoPlan

LARGEST = (1 << 31) - 1  # the numbers of kernels have 32 bits
LARGEST_HEAD = 1 << 12  # columns, far beyond any model's


class Config:
    """A config.json; a value that is absent or null is the family's default."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = values
        self._defaults = defaults

    def get(self, name: str) -> Any:
        """Returns a value or its default."""
        found = self._values.get(name)
        return self._defaults.get(name) if found is None else found

    def stated(self, name: str) -> Any:
        """Returns a value, None where the file says null, and its default where it says nothing."""
        return self._values.get(name, self._defaults.get(name))

    def number(self, name: str, least: int = 1) -> int:
        """Returns a whole number from `least` to LARGEST; raises NoPlan."""
        found = self.get(name)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= LARGEST:
            raise NoPlan(f"{name} {str(found)[:40]!r}")
        return found

    def real(self, name: str) -> float:
        """Returns a finite number that is not below 0; raises NoPlan."""
        return real(name, self.get(name))

    def head_size(self) -> int:
        """Returns the columns of a head by the number of heads; raises NoPlan."""
        hidden, heads = self.number("hidden_size"), self.number("num_attention_heads")
        if hidden % heads:
            raise NoPlan(f"hidden_size {hidden} for {heads} heads")
        return checked_head(hidden // heads)

    def only(self, **expected: Any) -> None:
        """Raises NoPlan unless each value is the one named."""
        for name, value in expected.items():
            if self.get(name) != value:
                raise NoPlan(f"{name} {str(self.get(name))[:40]!r}")


def real(name: str, found: object) -> float:
    """Returns a value that is a finite number and not below 0; raises NoPlan."""
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 <= found <= sys.float_info.max:
        return float(found)
    raise NoPlan(f"{name} {str(found)[:40]!r}")


def checked_head(size: int) -> int:
    """Returns the columns of a head, an even number; raises NoPlan for others."""
    if size % 2 or not 0 < size <= LARGEST_HEAD:
        raise NoPlan(f"heads of {size} columns")
    return size
