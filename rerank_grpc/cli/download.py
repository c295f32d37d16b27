"""Fetches models from the hub, and makes safetensors of old weights; both without a server."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rerank_grpc.checkpoints.transfer import Progress
from rerank_grpc.cli.terminal import Screen, bar, clip, pad, printable
from rerank_grpc.config import read_settings
from rerank_grpc.config.reading import provide
from rerank_grpc.units import clock, size

NAME_CELLS = 28
REDRAW_SECONDS = 0.1


def download(parsed: argparse.Namespace) -> int:
    """Fetches what is missing of each model; raises ModelLoadError."""
    settings = read_settings(parsed.flags)
    # The hub's client would print warnings into the middle of a progress bar.
    provide("HF_HUB_VERBOSITY", "error")
    from rerank_grpc.checkpoints.catalogue import read_catalogue
    from rerank_grpc.checkpoints.sources import download as fetch

    catalogue, screen = read_catalogue(settings.catalogue), Screen.of(sys.stderr)
    for name in parsed.models:
        _say(screen.paint(printable(name), "bold"))
        directory = fetch(name, catalogue=catalogue, progress=FileBars(screen))
        if not any(directory.glob("model*.safetensors")):
            _convert(directory)
        print(f"{printable(name)} is in {directory}", flush=True)
    return 0


def convert(parsed: argparse.Namespace) -> int:
    """Makes safetensors and tokenizer.json in each directory; raises ModelLoadError."""
    for name in parsed.directories:
        made = _convert(Path(name))
        if made:
            print(f"{printable(name)} can be served: {len(made)} files written, the old ones kept")
        else:
            print(f"{printable(name)} can be served as it is: nothing to convert")
    return 0


def _convert(directory: Path) -> list[Path]:
    from rerank_grpc.checkpoints.convert import convert as make

    return make(directory, _say)


class FileBars(Progress):
    """Shows each file's progress: a bar with rate and remaining time, or two plain lines."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._name, self._size = "", 0
        self._done = self._begun_at_bytes = 0
        self._began = self._drawn = 0.0

    def begin(self, name: str, total: int | None, done: int) -> None:
        self._name, self._size = printable(name), total or 0
        self._done = self._begun_at_bytes = done
        self._began, self._drawn = time.monotonic(), 0.0
        if self._screen.width is None:
            rest = f", {size(done)} of it are here" if done else ""
            _say(f"  fetching {self._name}, {self._amount()}{rest}")
        else:
            self._draw()

    def advance(self, count: int) -> None:
        self._done += count
        if self._screen.width is not None and time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self._draw()

    def end(self) -> None:
        if self._screen.width is None:
            seconds = max(time.monotonic() - self._began, 1e-3)
            _say(f"  fetched  {self._name} in {clock(seconds)}, {size(self._rate())}/s")
        else:
            self._draw()
            sys.stderr.write("\n")

    def _rate(self) -> float:
        return (self._done - self._begun_at_bytes) / max(time.monotonic() - self._began, 1e-3)

    def _amount(self) -> str:
        return size(self._size) if self._size else "of unknown size"

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        sys.stderr.write(f"\r\x1b[2K{self._line(self._rate())}")
        sys.stderr.flush()

    def _line(self, rate: float) -> str:
        width = (self._screen.width or 80) - 1
        share = self._done / self._size if self._size else 0.0
        left = clock((self._size - self._done) / rate) if self._size and rate else "-:--"
        ended = self._size and self._done >= self._size
        numbers = f"{share:4.0%}  {size(self._done):>10} of {self._amount():<10}  {size(rate):>10}/s"
        numbers += "  done" if ended else f"  {left} left"
        name = pad(clip(self._name, NAME_CELLS), NAME_CELLS)
        room = width - NAME_CELLS - len(numbers) - 6
        if room < 6:
            return clip(f"  {self._name}  {numbers}", width)
        drawn = bar(share, min(room, 30), unicode=self._screen.unicode)
        return f"  {name}  {self._screen.paint(drawn, 'green' if ended else 'cyan')}  {numbers}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
