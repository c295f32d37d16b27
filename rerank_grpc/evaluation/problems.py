"""Lines that were left out of a collection while it was read, with file, line and reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MOST_TOLD = 5  # lines of each kind that are told one by one; all are counted


@dataclass(slots=True)
class Problems:
    """Lines that were left out: how many of each kind, and the first of each in full.

    Attributes:
        counts: lines by (file, kind); a kind is what was wrong, in words that hold for many lines.
        told: the first lines of each kind, as "FILE:LINE: what was wrong, and what was expected".
        notes: remarks on the whole, such as how many queries have no judgement.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: str, line: int, kind: str, detail: str = "") -> None:
        """Counts a line that is left out."""
        self.counts[file, kind] += 1
        if self.counts[file, kind] <= MOST_TOLD:
            self.told.append(f"{file}:{line}: {kind}{': ' if detail else ''}{detail}")

    def note(self, text: str) -> None:
        """Adds a remark that concerns no line."""
        self.notes.append(text)

    @property
    def count(self) -> int:
        """The number of lines that were left out."""
        return self.counts.total()

    def lines(self) -> list[str]:
        """Says all of it, in lines for people."""
        found = [f"left out {line}" for line in self.told]
        found += [
            f"left out {count:,} lines of {file} in all: {kind}"
            for (file, kind), count in self.counts.items()
            if count > MOST_TOLD
        ]
        return found + self.notes
