"""Documents a second of a core and of a card, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from benchmarks.simulate.costs import read

MEASURED_CORES = 2  # of the machine of the results
# A case of cpu.json and a precision, and the name in the page.
CPU = {
    "MiniLM-L6, bf16": ("quick", "bf16"),
    "bge-reranker-base, int8": ("base/W2", "int8"),
    "bge-reranker-base, bf16": ("base/W2", "bf16"),
    "ModernBERT-base, int8": ("modernbert/W2", "int8"),
    "bge-reranker-v2-m3, int8": ("v2-m3/W2", "int8"),
    "Qwen3-Reranker-0.6B, int8": ("qwen3-0.6b/W2", "int8"),
}
# A case of cpu.json, and the useful share of the plain product that results/gpu.md asks for; for Qwen3 it
# asks for none, and the lowest of the others stands.
GPU = {
    "bge-reranker-base": ("base/W2", 0.50),
    "ModernBERT-base": ("modernbert/W2", 0.45),
    "bge-reranker-v2-m3": ("v2-m3/W2", 0.60),
    "Qwen3-Reranker-0.6B": ("qwen3-0.6b/W2", 0.45),
}
# NVIDIA's data sheets: dense bf16 on tensor cores, TFLOP/s.
CARDS = {"L4": 121.0, "A100": 312.0, "H100": 989.0}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """All that is not measured: prices in one currency, an hour's, and how much is asked of machines."""

    core_hour: float = 0.04
    gpu_hour: Mapping[str, float] = field(default_factory=lambda: {"L4": 0.8, "A100": 2.0, "H100": 4.0})
    machine_cores: int = 32
    busy: float = 0.7  # of what devices can do, on average over the peak hour
    plain_share: float = 0.7  # of a card's published rate, that its plain matrix product reaches


@dataclass(frozen=True, slots=True)
class Rate:
    """Documents a second of a unit: a core, or a card."""

    name: str
    per_second: float
    hour: float

    def units(self, wanted: float, busy: float) -> int:
        return max(1, math.ceil(wanted / (self.per_second * busy)))

    def per_million(self, units: int, wanted: float) -> float:
        """The price of a million documents, where so many a second come all the time to so many units."""
        return units * self.hour / (wanted * 3_600) * 1e6


def seconds_of_hundred(case: str, precision: str) -> float:
    """The measured seconds of W2's 100 documents on the machine of the results."""
    if case == "quick":
        return float(read("quick")["single_calls"]["W2"]["seconds"]["median"])
    found = read("cpu")["cases"][case]
    system = f"rerank-grpc {precision}"
    own: list[float] = [each["seconds"][system] for each in found["rounds"] if system in each["seconds"]]
    return median(own)


def cores(assumed: Assumptions) -> list[Rate]:
    """Each measured model's documents a second of one core."""
    rates = {name: 100 / seconds_of_hundred(*case) / MEASURED_CORES for name, case in CPU.items()}
    return [Rate(name, rate, assumed.core_hour) for name, rate in rates.items()]


def cards(assumed: Assumptions) -> list[Rate]:
    """Each model's documents a second of each card, by arithmetic."""
    found = []
    for model, (case, share) in GPU.items():
        operations = operations_of(case)
        for card, peak in CARDS.items():
            rate = peak * 1e12 * assumed.plain_share * share / operations
            found.append(Rate(f"{model}, {card}", rate, assumed.gpu_hour[card]))
    return found


def operations_of(case: str) -> float:
    """Useful operations of an average document of W2."""
    found = read("cpu")["cases"][case]
    return float(found["flop"] / found["documents"])


def rented(cores: int, of_machine: int) -> int:
    """The cores that are paid for: whole machines, or fewer where half a machine is enough."""
    return math.ceil(cores / of_machine) * of_machine if cores > of_machine / 2 else cores


def machines_of(cores: int, of_machine: int) -> str:
    """Machines, or cores where one machine is too much."""
    if cores >= of_machine:
        return f"{cores // of_machine:,}"
    return f"{cores} core{'s' if cores > 1 else ''}"
