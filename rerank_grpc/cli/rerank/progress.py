"""How far the reading of documents is, and how long they are scored: a line that a terminal renews."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

from rerank_grpc.cli.terminal import Screen, bar, cells, clip
from rerank_grpc.units import duration, size

PATIENCE_SECONDS = 0.5  # what is done by then is not told
RENEWED_SECONDS = 0.2
_BAR_CELLS = 20


class ProgressLine:
    """A line on a terminal, of `total` bytes to read (0 where nobody knows); elsewhere it shows nothing."""

    def __init__(self, stream: TextIO, total: int) -> None:
        self.documents = 0
        self._stream, self._total, self._read = stream, total, 0
        self._screen = Screen.of(stream)
        self._width = self._screen.width or 0
        self._next = monotonic() + PATIENCE_SECONDS
        self._drawn = False
        self._scored = 0

    def advance(self, count: int) -> None:
        """Counts bytes that have been read, and shows the line unless it has just been renewed."""
        self._read += count
        if self._width and monotonic() >= self._next:
            self._next = monotonic() + RENEWED_SECONDS
            self._draw(self._reading())

    def score(self, done: int, _total: int | None) -> None:
        """Takes how many documents are scored; `scoring` shows them."""
        self._scored = done

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Shows for as long as the block runs that documents are scored, and since when."""
        self.clear()
        if not self._width:
            yield
            return
        ended, began = threading.Event(), monotonic()

        def renew() -> None:
            delay = PATIENCE_SECONDS
            while not ended.wait(delay):
                self._draw(f"scoring  {self._scoring()}, for {duration(monotonic() - began)} so far")
                delay = RENEWED_SECONDS

        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self.clear()

    def clear(self) -> None:
        """Leaves nothing of the line."""
        if self._drawn:
            self._stream.write("\r" + " " * (self._width - 1) + "\r")
            self._stream.flush()
            self._drawn = False

    def _reading(self) -> str:
        documents = f"{_count(self.documents)}, {size(self._read)}"
        if not self._total:
            return f"reading  {documents}"
        share = min(self._read / self._total, 1.0)
        drawn = bar(share, _BAR_CELLS, unicode=self._screen.unicode)
        return f"reading  {drawn} {share:4.0%}  {documents} of {size(self._total)}"

    def _scoring(self) -> str:
        if not self._scored:
            return _count(self.documents)
        share = self._scored / self.documents
        drawn = bar(share, _BAR_CELLS, unicode=self._screen.unicode)
        return f"{drawn} {share:4.0%}  {self._scored:,} of {_count(self.documents)}"

    def _draw(self, text: str) -> None:
        text = clip(text, self._width - 1)
        # With the cursor at the start the ^C of a key is written over the text, and cleared with it.
        self._stream.write("\r" + text + " " * (self._width - 1 - cells(text)) + "\r")
        self._stream.flush()
        self._drawn = True


def _count(documents: int) -> str:
    return f"{documents:,} document{'s' * (documents != 1)}"
