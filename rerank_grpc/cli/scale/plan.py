"""`rerank-grpc plan`: the memory that a model needs, told from its files, and whether it is there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_grpc.cli.process import SERVER_EXTRA, needs
from rerank_grpc.cli.terminal import Screen, printable, table
from rerank_grpc.config.allowance import MemoryLimit
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.units import size

if TYPE_CHECKING:
    from rerank_grpc.checkpoints.lookup import Source
    from rerank_grpc.registry.needs import Need

EXAMPLES = """\
examples:
  rerank-grpc plan embedded
  rerank-grpc plan /srv/models/bge-reranker-base --precision int8
  rerank-grpc plan bge-reranker-v2-m3 --json
  docker run --memory 2g ... rerank-grpc plan bge-reranker-base

Reads the model's files, which must be on this machine, and loads nothing. Tells
the memory at the first load, at rest, and at most under load: with the largest
batch, and with all texts, bodies and answers that a server lets in at once.
Pages of files are left out: the kernel takes them back. Exits 0 where the limit
of this container or machine allows the peak, and 1 where it does not.
"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The need of one model, in a precision and on a device, and what there is for it."""

    model: str
    precision: str
    device: str
    need: Need
    limit: MemoryLimit | None  # None: unknown

    @property
    def fits(self) -> bool:
        """Whether the limit allows the peak; an unknown one does."""
        return self.limit is None or self.need.peak <= self.limit.most

    def to_json(self) -> dict[str, Any]:
        """Makes the fields of --json, bytes as numbers."""
        totals = {"load": self.need.load, "rest": self.need.rest, "peak": self.need.peak}
        limit = {"bytes": self.limit.most, "source": self.limit.source} if self.limit else None
        named = {"model": self.model, "precision": self.precision, "device": self.device}
        return {**named, **totals, "parts": asdict(self.need), "limit": limit, "fits": self.fits}


def run(parsed: argparse.Namespace) -> int:
    """Tells the need of a model: 0 if it fits, 1 if not; raises ModelLoadError where files are missing."""
    settings = read_settings(parsed.flags)
    with needs("plan", SERVER_EXTRA):
        found = forecast(parsed.model, settings)
    if parsed.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        for line in _lines(found, Screen.of(sys.stdout)):
            print(line)
    return 0 if found.fits else 1


def forecast(name: str, settings: ServerSettings) -> Forecast:
    """Reads the files of a model that is on this machine; raises ModelLoadError for any other."""
    from rerank_grpc.checkpoints.catalogue import read_catalogue
    from rerank_grpc.checkpoints.checkpoint import find_weights, read_config
    from rerank_grpc.checkpoints.lookup import Source
    from rerank_grpc.kernels.device import int8_by_features
    from rerank_grpc.registry.loading import chosen_device
    from rerank_grpc.registry.needs import limit_of, need_of, need_on_card

    source = Source.of(name, read_catalogue(settings.catalogue))
    directory = _directory(name, source, settings)
    device, precision = chosen_device(name, settings, has_int8=partial(int8_by_features, settings.kernels))
    limit, weights, config = limit_of(device), find_weights(directory), read_config(directory)
    if device.type == "cuda":
        return Forecast(name, precision, str(device), need_on_card(weights, config, precision), limit)
    longest = source.known.max_tokens if source.known else 0
    need = need_of(weights, config, precision, settings.engine.max_batch_tokens, longest, limit)
    return Forecast(name, precision, str(device), need, limit)


def _directory(name: str, source: Source, settings: ServerSettings) -> Path:
    found = source.find(settings.models_dir)
    if found is None and source.hub_id:
        raise ModelLoadError(
            f"{name}: its files are not on this machine: 'rerank-grpc download {name}' fetches them"
        )
    return (found or source.locate(settings.models_dir))[0]


def _lines(found: Forecast, screen: Screen) -> Iterable[str]:
    need = found.need
    kept = f", prefixes {size(need.prefixes)}" if need.prefixes else ""
    yield screen.paint(f"{printable(found.model)} in {found.precision} on {found.device}", "bold")
    yield ""
    rows = [
        ("first load", size(need.load), "the peak until it is READY"),
        ("at rest", size(need.rest), f"of it weights {size(need.weights)}, the process {size(need.process)}"),
        ("under load", size(need.peak), f"a batch {size(need.work)}, what waits {size(need.queued)}{kept}"),
    ]
    yield from table(("memory", "at most", "for"), rows, screen)
    yield ""
    if found.limit is None:
        yield "The limit of this machine is unknown."
        return
    verdict = "fits" if found.fits else "does not fit"
    yield f"It {verdict}: {found.limit.source} may use {size(found.limit.most)}."
