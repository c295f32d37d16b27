"""`rerank-grpc download` fetches models from the hub, `convert` rewrites old and foreign forms of them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rerank_grpc import units
from rerank_grpc.checkpoints.transfer import Progress
from rerank_grpc.cli.process import SERVER_EXTRA, needs
from rerank_grpc.cli.terminal import Screen, printable
from rerank_grpc.config.reading import read_settings


def download(parsed: argparse.Namespace) -> int:
    """Fetches the missing files of each model; raises ModelLoadError."""
    settings = read_settings(parsed.flags)
    with needs("download", SERVER_EXTRA):
        from rerank_grpc.checkpoints.catalogue import read_catalogue
        from rerank_grpc.checkpoints.convert import convert as make
        from rerank_grpc.checkpoints.convert import is_needed
        from rerank_grpc.checkpoints.lookup import download as fetch

    catalogue, screen = read_catalogue(settings.catalogue), Screen.of(sys.stderr)
    for name in parsed.models:
        _say(screen.paint(printable(name), "bold"))
        directory = fetch(name, catalogue=catalogue, progress=FileBars())
        if is_needed(directory):
            make(directory, _say)
        known = catalogue.find(name.partition("@")[0])
        if known is not None and known.caution:
            _say(screen.paint(f"  {known.id}: {known.caution}", "yellow"))
        print(f"{printable(name)} is in {directory}", flush=True)
    return 0


def convert(parsed: argparse.Namespace) -> int:
    """Converts each directory into a form that can be served; raises ModelLoadError, ConfigurationError."""
    settings = read_settings(parsed.flags)
    with needs("convert", SERVER_EXTRA):
        from rerank_grpc.checkpoints.catalogue import read_catalogue
        from rerank_grpc.checkpoints.convert import convert as make
        from rerank_grpc.checkpoints.described import find_prompted

    prompted = find_prompted(parsed.prompt, read_catalogue(settings.catalogue)) if parsed.prompt else None
    for name in parsed.directories:
        made = make(Path(name), _say, prompted)
        how = f": {len(made)} files written, the old ones kept" if made else " as it is: nothing to convert"
        print(f"{printable(name)} can be served{how}")
    return 0


class FileBars(Progress):
    """Shows a bar for each file on a terminal, or two plain lines."""

    def __init__(self) -> None:
        self._width = Screen.of(sys.stderr).width
        self._bar: Any = None
        self._name, self._count, self._began = "", 0, 0.0

    def begin(self, name: str, total: int | None, done: int) -> None:
        self._name, self._count, self._began = printable(name), 0, time.monotonic()
        if self._width is None:
            rest = f", {units.size(done)} of it are here" if done else ""
            _say(f"  fetching {self._name}, {units.size(total) if total else 'of unknown size'}{rest}")
            return
        from tqdm import tqdm

        self._bar = tqdm(
            desc=f"  {self._name}",
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            ncols=self._width,
            nrows=2,  # a terminal may say that it has none, and then tqdm hides its bars
            file=sys.stderr,
        )

    def advance(self, count: int) -> None:
        self._count += count
        if self._bar is not None:
            self._bar.update(count)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            seconds = max(time.monotonic() - self._began, 1e-3)
            _say(f"  fetched  {self._name} in {seconds:.1f} s, {units.size(self._count / seconds)}/s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
