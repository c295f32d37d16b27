"""Batches on their way: launched, and not yet waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rerank_grpc.engine.scheduler import Item
from rerank_grpc.runner.runner import Overlapping, Runner
from rerank_grpc.sequence import Output, PackedBatch


@dataclass(frozen=True, slots=True)
class Flight:
    """One batch.

    Attributes:
        items: what it holds.
        land: waits for its outputs, once; raises as Runner.run does.
    """

    items: list[Item]
    land: Callable[[], list[Output | None]]


class Launcher:
    """Launches batches on a runner; one that does not overlap runs each when it is waited for.

    Attributes:
        depth: how many may be on their way at once.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._overlapping = runner if isinstance(runner, Overlapping) else None
        self.depth = self._overlapping.depth if self._overlapping is not None else 1

    def launch(self, items: list[Item]) -> Flight:
        """Sends items on their way; what goes wrong with that is told when it lands."""
        batch = PackedBatch(tuple([item.sequence for item in items]))
        if self._overlapping is None:
            return Flight(items, lambda: self._runner.run(batch))
        try:
            return Flight(items, self._overlapping.launch(batch).result)
        except Exception as error:
            return Flight(items, _raiser(error))


def _raiser(error: Exception) -> Callable[[], list[Output | None]]:
    def land() -> list[Output | None]:
        raise error

    return land
