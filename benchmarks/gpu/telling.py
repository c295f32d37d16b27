"""The way by which a step's process tells the run what it finds, the moment it has it."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any


class NotHere(Exception):
    """A figure needs what is not installed here."""


class Teller:
    """Writes lines of JSON to what was the standard output; whatever others print goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def tell(self, **content: Any) -> None:
        self._out.write(json.dumps(content) + "\n")
        self._out.flush()

    def figure(
        self,
        name: str,
        asked: float | None,
        samples: Sequence[float],
        beside: str,
        *,
        unit: str = "",
        most: bool = False,
    ) -> None:
        """Tells a figure: its samples are compared with `asked`, "at least" unless `most`."""
        content = {"asked": asked, "samples": list(samples), "beside": beside, "unit": unit, "most": most}
        self.tell(figure={"name": name, **content})

    def score(self, name: str, **found: float | str) -> None:
        """Tells cells of a shape's row in the table of scores."""
        self.tell(score=[name, found])

    def fact(self, name: str, **found: Any) -> None:
        """Tells facts of a shape."""
        self.tell(fact=[name, found])

    def note(self, text: str) -> None:
        """Tells a line or a table to be read."""
        self.tell(note=text)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Takes one part of a step: where it fails, that is told, and the rest goes on."""
        began = perf_counter()
        try:
            yield
        except NotHere as error:
            self.tell(missing=[name, str(error), False])
        except (Exception, SystemExit) as error:  # the other figures are worth a card's time all the same
            traceback.print_exc()
            self.note(traceback.format_exc()[-2_000:])
            self.tell(missing=[name, f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}", True])
        print(f"{name}: {perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        self.tell(seconds=[name, round(perf_counter() - began, 1)])
