"""`rerank-grpc download` fetches models from the hub, `convert` makes safetensors of old weights."""

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
        from rerank_grpc.checkpoints.lookup import download as fetch

    catalogue, screen = read_catalogue(settings.catalogue), Screen.of(sys.stderr)
    for name in parsed.models:
        _say(screen.paint(printable(name), "bold"))
        directory = fetch(name, catalogue=catalogue, progress=FileBars())
        if not any(directory.glob("model*.safetensors")) or _has_pickled_modules(directory):
            _convert(directory)
        known = catalogue.find(name.partition("@")[0])
        if known is not None and known.caution:
            _say(screen.paint(f"  {known.id}: {known.caution}", "yellow"))
        print(f"{printable(name)} is in {directory}", flush=True)
    return 0


def convert(parsed: argparse.Namespace) -> int:
    """Makes safetensors and tokenizer.json in each directory; raises ModelLoadError."""
    for name in parsed.directories:
        made = _convert(Path(name))
        how = f": {len(made)} files written, the old ones kept" if made else " as it is: nothing to convert"
        print(f"{printable(name)} can be served{how}")
    return 0


def _has_pickled_modules(directory: Path) -> bool:
    pickles = directory.glob("[1-9]*_*/pytorch_model.bin")
    return any(not path.with_name("model.safetensors").is_file() for path in pickles)


def _convert(directory: Path) -> list[Path]:
    with needs("convert", SERVER_EXTRA):
        from rerank_grpc.checkpoints.convert import convert as make

    return make(directory, _say)


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
