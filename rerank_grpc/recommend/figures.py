"""The figures of a model that is measured, and what is to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rerank_grpc.config.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """The work of a process: a model by its source, and how long it is measured how.

    `folder` is removed by the process where its parent was killed.
    """

    source: str
    settings: ServerSettings
    candidates: tuple[int, ...]
    tokens: int
    seconds: float
    folder: Path | None = None


FEW_CALLS = 20  # below which a p95 is the slowest of the calls


class Latency(NamedTuple):
    """The latency of calls with so many candidates, in seconds; without calls it is derived.

    Of fewer than FEW_CALLS calls, `p95` is the slowest.
    """

    candidates: int
    calls: int
    p50: float
    p95: float

    @property
    def is_of_few(self) -> bool:
        """Whether it is measured, by fewer calls than a p95 takes."""
        return 0 < self.calls < FEW_CALLS


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one model so far.

    `documents_per_second` is 0 until it is measured. Memory is of the process, in bytes: without the pages of
    files, which the kernel takes back; on a GPU `resident` is of the card.
    """

    precision: str
    device: str
    attention: str
    max_tokens: int
    load_seconds: float
    tokens_per_document: float = 0.0
    documents_per_second: float = 0.0
    latencies: tuple[Latency, ...] = ()
    resident: int = 0
    others: float = 0.0  # the share of the processors' time that other processes took meanwhile
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """Why a model could not be measured, in one line."""

    text: str
