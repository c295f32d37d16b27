"""Arrivals: a curve of a day, or a file; a sample where the day holds more calls than are worth a replay."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.order import passages

DAY = 86_400.0
SLICE = 900.0  # of each quarter of an hour a sample replays the beginning
CHARACTERS_PER_TOKEN = 4  # an assumption, which matters for the gate's bound of text alone


@dataclass(frozen=True, slots=True)
class Arrival:
    """A caller's call that comes `at` a time in seconds, with the tokens of each of its pairs."""

    at: float
    tokens: tuple[int, ...]
    number: int = 0
    caller: str = ""

    @property
    def characters(self) -> int:
        return CHARACTERS_PER_TOKEN * sum(self.tokens)


@dataclass(frozen=True, slots=True)
class Sample:
    """The first 1/`times` of each slice of the day, one after the other, with its arrivals as they are.

    Queues go over from one slice to the next. What takes longer than such a part to build up is not seen.
    """

    times: float = 1.0

    @classmethod
    def of(cls, expected: float, most: int) -> Sample:
        return cls(max(1.0, expected / most))

    @property
    def part(self) -> float:
        """The seconds of a slice that are replayed."""
        return SLICE / self.times

    def day_time(self, at: float) -> float:
        """The day's time at a time of the replay."""
        slices, into = divmod(at, self.part)
        return slices * SLICE + into

    def replay_time(self, at: float) -> float | None:
        """The replay's time at a time of the day; None for what is left out."""
        slices, into = divmod(at, SLICE)
        return slices * self.part + into if into < self.part else None


WHOLE = Sample()
Rate = Callable[[float], float]  # calls a second at a time of the day
Sizes = Callable[[random.Random], tuple[int, ...]]  # the tokens of a call's pairs


def diurnal(mean: float, swing: float, peak_hour: float = 14.0) -> Rate:
    """A cosine over the day: `mean` × (1 ± swing), highest at the peak's hour; swing 0 is constant."""
    return lambda at: mean * (1 + swing * math.cos(2 * math.pi * (at / 3_600 - peak_hour) / 24))


def poisson(
    rate: Rate, most: float, seconds: float, sizes: Sizes, chance: random.Random, sample: Sample = WHOLE
) -> Iterator[Arrival]:
    """Arrivals of a Poisson process by thinning; `most` is the rate's maximum, `seconds` the day's length."""
    at, end, number = 0.0, seconds / sample.times, 0
    while (at := at + chance.expovariate(most)) < end:
        if chance.random() * most < rate(sample.day_time(at)):
            yield Arrival(at, sizes(chance), number)
            number += 1


def documents(least: int, most: int, tokens: int | None = None) -> Sizes:
    """Calls of `least` to `most` documents, of W2's lengths or of `tokens` each, with the query."""

    def sizes(chance: random.Random) -> tuple[int, ...]:
        count = chance.randint(least, most)
        return (tokens,) * count if tokens else tuple(passages(chance, count))

    return sizes


def mean_tokens(sizes: Sizes, calls: int = 2_000) -> float:
    """The tokens of an average call."""
    chance = random.Random(0)
    return sum(sum(sizes(chance)) for _ in range(calls)) / calls


def read_file(path: Path, sizes: Sizes, chance: random.Random) -> list[Arrival]:
    """Reads a line for each call: its time in seconds, and after a comma the number of its documents.

    Without that number, and for the tokens of each document, `sizes` decides. Raises ValueError, which names
    the line.
    """
    found, before = list[Arrival](), 0.0
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        at, _, count = line.partition(",")
        try:
            time, documents = float(at), int(count) if count.strip() else None
        except ValueError:
            raise ValueError(f"{path}:{number}: not SECONDS or SECONDS,DOCUMENTS: {line!r}") from None
        if not before <= time < math.inf or (documents is not None and documents < 1):
            raise ValueError(f"{path}:{number}: times must not fall, and a call has a document: {line!r}")
        before = time
        tokens = sizes(chance)
        if documents is not None:
            while len(tokens) < documents:
                tokens += sizes(chance)
            tokens = tokens[:documents]
        found.append(Arrival(time, tokens, len(found)))
    if not found:
        raise ValueError(f"{path}: no arrivals")
    return found


def sampled(arrivals: list[Arrival], sample: Sample) -> Iterator[Arrival]:
    """The arrivals that a sample replays, at its times."""
    for each in arrivals:
        at = sample.replay_time(each.at)
        if at is not None:
            yield Arrival(at, each.tokens, each.number)
