"""The steps of a run, in their order: each in a process of its own, with a time limit of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.gpu.size import Size
from benchmarks.gpu.telling import Teller

PROFILE = "profile-"  # a shape's name follows


class Step(Protocol):
    """What one process does: `prepare` beside all others, and `run` while the others are idle."""

    def prepare(self) -> None:
        """Does what is not timed."""

    def run(self) -> None:
        """Measures, and tells each figure."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A step before it is made.

    Attributes:
        shape: finds the name of its checkpoint.
        make: makes the step in its own process, where alone torch is imported.
        limit: the most seconds of its `run`.
    """

    shape: Callable[[Size], str]
    make: Callable[[Size, Teller], Step]
    limit: float


def large(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.alone import EncoderStep

    return EncoderStep(size, teller, size.large, 0.60, times=2.5, memory=True)


def base(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.alone import EncoderStep

    return EncoderStep(size, teller, size.base, 0.50, times=3.5, exact=True)


def modern(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.alone import EncoderStep

    return EncoderStep(size, teller, size.modern, 0.45)


def decoder(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.alone import DecoderStep

    return DecoderStep(size, teller, size.decoder, None)


def large_calls(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.calls import FullStep

    return FullStep(size, teller, size.large)


def base_calls(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.calls import BusyStep

    return BusyStep(size, teller, size.base)


def decoder_calls(size: Size, teller: Teller) -> Step:
    from benchmarks.gpu.calls import LoadStep

    return LoadStep(size, teller, size.decoder)


STEPS = {
    "v2-m3": Planned(lambda size: size.large, large, 45),
    "base": Planned(lambda size: size.base, base, 45),
    "qwen3": Planned(lambda size: size.decoder, decoder, 45),
    "grpc-v2-m3": Planned(lambda size: size.large, large_calls, 15),
    "grpc-base": Planned(lambda size: size.base, base_calls, 35),
    "grpc-qwen3": Planned(lambda size: size.decoder, decoder_calls, 45),
    "modernbert": Planned(lambda size: size.modern, modern, 35),
}


def planned(name: str) -> Planned:
    """Finds a step by its name, or a shape's profile."""
    if not name.startswith(PROFILE):
        return STEPS[name]

    def profile(size: Size, teller: Teller) -> Step:
        from benchmarks.gpu.profiling import ProfileStep

        return ProfileStep(size, teller, name.removeprefix(PROFILE))

    return Planned(lambda size: name.removeprefix(PROFILE), profile, 90)
