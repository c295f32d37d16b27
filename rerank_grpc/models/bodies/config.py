"""Reads the numbers of a config.json, with the defaults of the family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_grpc.models.bodies.plan import NoPlan


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

    def number(self, name: str) -> int:
        """Returns a whole number above 0; raises NoPlan."""
        found = self.get(name)
        if not isinstance(found, int) or found <= 0:
            raise NoPlan(f"{name} {str(found)[:40]!r}")
        return found

    def real(self, name: str) -> float:
        """Returns a number; raises NoPlan."""
        found = self.get(name)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise NoPlan(f"{name} {str(found)[:40]!r}")
        return float(found)

    def only(self, **expected: Any) -> None:
        """Raises NoPlan unless each value is the one named."""
        for name, value in expected.items():
            if self.get(name) != value:
                raise NoPlan(f"{name} {str(self.get(name))[:40]!r}")
