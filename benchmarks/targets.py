"""What the service is held to on a CPU, and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import report

Data = dict[str, Any]
# The family whose errors a case tells.
FAMILIES = {"base/W2": "XLM-R", "modernbert/W2": "ModernBERT", "qwen3-0.6b/W2": "Qwen3"}
ERRORS = {"fp32": 1e-5, "bf16": 7e-2, "int8": 2e-1}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound: the least it may be, or the most."""

    figure: str
    bound: float
    samples: list[float]
    most: bool = False
    digits: int = 2

    @property
    def met(self) -> bool:
        value = median(self.samples)
        return value <= self.bound if self.most else value >= self.bound

    def row(self) -> list[str]:
        bound = f"{'≤' if self.most else '≥'} {self.bound:g}"
        if not self.samples:
            return [self.figure, bound, "not measured", ""]
        return [self.figure, bound, self._measured(), "yes" if self.met else "no"]

    def _measured(self) -> str:
        if self.bound < 0.3:  # an error
            return f"{median(self.samples):.1e}"
        if len(self.samples) == 1:
            return f"{self.samples[0]:.{self.digits}f}"
        return report.Spread.of(self.samples).text(self.digits)


def shares(case: Data, system: str) -> list[float]:
    """Useful FLOP/s over the plain product's of that precision, round by round."""
    kind = system.split()[1]
    return [
        case["flop"] / each["seconds"][system] / each["rates"][kind]
        for each in case.get("rounds", [])
        if system in each["seconds"] and kind in each["rates"]
    ]


def ratios(case: Data, ours: str, theirs: str) -> list[float]:
    """How many times faster ours was, round by round."""
    return [
        each["seconds"][theirs] / each["seconds"][ours]
        for each in case.get("rounds", [])
        if {ours, theirs} <= set(each["seconds"])
    ]


def table(data: Data) -> str:
    """All targets with what was measured, as Markdown; those without a sample say so."""
    rows = [target.row() for group in GROUPS for target in group(data)]
    return report.table(["figure", "target", "measured", "met"], rows)


def of_products(data: Data) -> Iterator[Target]:
    cases: dict[str, Data] = data["cases"]
    for name, system, bound in (
        ("modernbert/W1", "rerank-grpc bf16", 0.92),
        ("modernbert/W2", "rerank-grpc bf16", 0.92),
        ("modernbert/W3", "rerank-grpc bf16", 0.92),
        ("modernbert-large/W2", "rerank-grpc bf16", 0.92),
        ("modernbert/W1", "rerank-grpc int8", 0.82),
        ("modernbert/W2", "rerank-grpc int8", 0.82),
        ("modernbert/W3", "rerank-grpc int8", 0.82),
        ("modernbert-large/W2", "rerank-grpc int8", 0.82),
        ("base/W2", "rerank-grpc int8", 0.90),
        ("v2-m3/W3@1500", "rerank-grpc int8", 0.80),
        ("qwen3-0.6b/W1", "rerank-grpc bf16", 0.95),
        ("qwen3-0.6b/W2", "rerank-grpc bf16", 0.95),
        ("base/W1", "rerank-grpc bf16", 0.90),
        ("base/W2", "rerank-grpc bf16", 0.90),
        ("base/W3", "rerank-grpc bf16", 0.80),
    ):
        kind = system.split()[1]
        yield Target(f"{name}, {kind} ÷ plain {kind} product", bound, shares(cases.get(name, {}), system))


def of_peers(data: Data) -> Iterator[Target]:
    cases: dict[str, Data] = data["cases"]
    for name, ours, theirs, bound in (
        ("base/W3", "rerank-grpc bf16", "openvino bf16", 1.05),
        ("base/W2", "rerank-grpc int8", "openvino int8", 1.1),
        ("base/W2", "rerank-grpc bf16", "openvino bf16", 1.05),
        ("base/W2", "rerank-grpc bf16", "infinity bf16", 1.9),
        ("base/W2", "rerank-grpc bf16", "crossencoder fp32", 3.7),
        ("base/W2", "rerank-grpc int8", "onnxruntime int8", 1.4),
        ("base/W2", "rerank-grpc fp32", "openvino fp32", 1.0),
        ("base/W2", "rerank-grpc fp32", "onnxruntime fp32", 1.0),
    ):
        found = ratios(cases.get(name, {}), ours, theirs)
        yield Target(f"{name}, {ours.split()[1]}: times as fast as {theirs}", bound, found)


def of_bi_encoders(data: Data) -> Iterator[Target]:
    case = data["cases"].get("embedded/W2", {})
    for kind in ("fp32", "bf16"):
        found = ratios(case, f"rerank-grpc-embedded {kind}", f"rerank-grpc {kind}")
        yield Target(f"bi-encoder from a directory ÷ embedded's time, {kind}", 1.03, found, most=True)
    found = ratios(case, "rerank-grpc-embedded fp32", "rerank-grpc-embedded bf16")
    yield Target("embedded, bf16 ÷ fp32 time", 0.55, found, most=True)


def of_errors(data: Data) -> Iterator[Target]:
    for name, family in FAMILIES.items():
        errors = data["cases"].get(name, {}).get("errors", {})
        for kind, bound in ERRORS.items():
            if kind == "fp32" and family == "Qwen3":
                continue  # in fp32 it is compared on a small model, by benchmarks.decoder
            found = errors.get(f"rerank-grpc {kind}")
            rms = [found["rms"]] if found else []
            yield Target(f"{name}, {kind}: rms error ÷ deviation of {family}'s logits", bound, rms, most=True)


def of_service(data: Data) -> Iterator[Target]:
    starting, budgets, busy = (read(name) for name in ("starting", "budgets", "busy"))
    for name, bound in (("embedded", 3.5), ("base", 6.0)):
        starts = starting.get(name, {}).get("starts", [])
        seconds = [each["seconds"] for each in starts]
        yield Target(f"READY, second start, {name}: seconds", bound, seconds, most=True, digits=1)
    base = starting.get("base", {})
    beside = [each["resident_mib"] - base["weights_mib"] for each in base.get("starts", [])]
    yield Target("resident memory of base bf16 minus its weights: MiB", 360, beside, most=True, digits=0)
    figure = "measured budget's rate ÷ the best of all budgets, starts under foreign load"
    yield Target(figure, 0.97, budgets.get("shares", []), digits=3)
    yield Target("device busy with 8 REST callers", 0.97, busy.get("shares", []), digits=3)
    if used := data.get("memory"):
        peaks = [each["peak"] / each["file"] for each in used.values()]
        yield Target("peak memory while loading ÷ file, imports left out", 1.6, [max(peaks)], most=True)
        steady = used["bf16"]["steady"] / used["bf16"]["file"] * 2
        yield Target("steady memory, bf16 ÷ its weights", 1.25, [steady], most=True)


def read(name: str) -> Data:
    """The results of another script of this folder; empty if it has not run."""
    path = report.RESULTS / f"{name}.json"
    found: Data = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


GROUPS: tuple[Callable[[Data], Iterator[Target]], ...] = (
    of_products,
    of_peers,
    of_bi_encoders,
    of_errors,
    of_service,
)
