"""The page of benchmarks/cpu.py: what its samples say, as tables and a chart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report, targets
from benchmarks.report import Spread
from benchmarks.systems import CASES, NAMES, OURS
from benchmarks.targets import Data

INTRODUCTION = (
    "`make bench` writes this page; the samples are in cpu.json. In each round every system scores the "
    "workload once, and the plain matrix product is measured; shares and ratios are taken per round. "
    "The seconds are medians with minimum and maximum, tokenizing included. Useful operations are those "
    "of real tokens, all layers counted whole, also by who computes the last one for first tokens only; "
    "a window counts as a window, what causal attention does not see counts as nothing, and a prefix that "
    "documents share counts once. The plain product is torch's linear over 2,048 rows in the shapes of the "
    "model's own layers (query, key and value; out; up, with the gate; down), with weights as they come; its "
    "rate moves with the machine's other tenants, in fp32 by a quarter. Weights are random, but for the "
    "embedded model's. Errors are against transformers in fp32, as shares of its logits' standard deviation."
)
ABSENT = (
    "**Peers that are not here.** OpenVINO Model Server: neither PyPI nor Debian has it, only registries of "
    "containers and snaps; its library stands for it, in int8 by NNCF's post-training quantization. Language "
    "models: Infinity takes cross-encoders of one label only, ONNX Runtime and OpenVINO an export that a "
    "further library makes."
)


def write(data: Data) -> Path:
    """Writes the page and its chart; returns the page."""
    (report.RESULTS / "cpu.md").write_text(page(data) + "\n", "utf-8")
    case = data["cases"].get("base/W2", {})
    if case.get("rounds") and not report.chart(
        "cpu", "W2, bge-reranker-base's shape", bars_of(case), "useful GFLOP/s"
    ):
        print("no chart: pip install matplotlib", file=sys.stderr)
    return report.RESULTS / "cpu.md"


def page(data: Data) -> str:
    """The whole page in Markdown."""
    names = [*CASES, *(name for name in data["cases"] if name not in CASES)]
    cases = {name: data["cases"][name] for name in names if data["cases"].get(name, {}).get("rounds")}
    versions = data["versions"] | {
        f"{peer}: {name}": version
        for peer, all_ in data.get("peers", {}).items()
        for name, version in all_.items()
    }
    parts = [
        "# CPU: the service and its peers",
        INTRODUCTION,
        report.facts(data["threads"], versions),
        "## Targets",
        targets.table(data),
        *of_the_service(),
    ]
    for name, case in cases.items():
        parts += [f"## {name}: {case['like']}'s shape", section(name, case)]
    parts.append(ABSENT)
    if missing := [name for name in CASES if name not in cases]:
        parts.append(f"Not measured yet: {', '.join(missing)}. `make bench` goes on with them.")
    return "\n\n".join(parts)


# ---------------- The tables of cases


def section(name: str, case: Data) -> str:
    """What a case is, its systems from the fastest on, and what was left out of it."""
    rows = []
    for system in systems_of(case):
        shares = targets.shares(case, system)
        difference = case["errors"].get(system)
        rows.append(
            [
                f"**{label(system)}**" if system.split()[0] in OURS else label(system),
                Spread.of(seconds(case, system)).text() + few(case, system),
                f"{median(gflops(case, system)):.0f}",
                Spread.of(shares).text() if shares else "",
                f"{difference['rms']:.1e} / {difference['max']:.1e}" if difference else "",
            ]
        )
    header = ["system", "seconds", "useful GFLOP/s", "of the plain product", "error, rms / max"]
    cut = f" --documents {case['documents']}" if case["left_out"] else ""
    lines = [
        f"`python -m benchmarks.cpu --cases '{name}' --rounds {len(case['rounds'])}{cut}`",
        " ".join(facts(case)),
        report.table(header, rows),
    ]
    lines += left_out(case)
    return "\n\n".join(lines)


def few(case: Data, system: str) -> str:
    """Says so if a system has not been in all rounds."""
    count = len(seconds(case, system))
    return "" if count == len(case["rounds"]) else f", {count} of {len(case['rounds'])} rounds"


def left_out(case: Data) -> Iterator[str]:
    """Says which systems no round has, by reason."""
    reasons: dict[str, list[str]] = {}
    for system, reason in case["skipped"].items():
        if system in systems_of(case):
            continue
        reasons.setdefault(reason, []).append(label(system))
    for reason, systems in reasons.items():
        yield f"Not measured: {', '.join(systems)}: {reason}."


def facts(case: Data) -> Iterator[str]:
    prefix = f", of them {case['prefix']} of the prefix" if case["prefix"] else ""
    rates = [
        f"{kind} {Spread.of([each['rates'][kind] / 1e9 for each in case['rounds']]).text(0)}"
        for kind in case["rounds"][0]["rates"]
    ]
    disturbance = max(max(each["others"].values()) for each in case["rounds"])
    yield (
        f"{case['documents']} documents, {case['tokens']:,} tokens{prefix}, {case['flop'] / 1e12:.2f} TFLOP, "
        f"{len(case['rounds'])} rounds; plain product in GFLOP/s: {', '.join(rates)}; other processes used "
        f"at most {disturbance:.0%} of the CPU during a sample."
    )
    if note := case.get("note"):
        yield note
    if case["left_out"]:
        yield f"**Cut: {case['left_out']} more documents of the workload were left out.**"
    if case["errors"]:
        compared = f"the first {case['compared']}" if case["compared"] < case["documents"] else "all"
        yield f"Errors are of {compared} documents; transformers' scores deviate by {case['deviation']:.3g}."


def systems_of(case: Data) -> list[str]:
    """The systems that were measured, the fastest first."""
    found = {name for each in case["rounds"] for name in each["seconds"]}
    return sorted(found, key=lambda name: median(seconds(case, name)))


def seconds(case: Data, system: str) -> list[float]:
    return [each["seconds"][system] for each in case["rounds"] if system in each["seconds"]]


def gflops(case: Data, system: str) -> list[float]:
    return [case["flop"] / each / 1e9 for each in seconds(case, system)]


def label(system: str) -> str:
    name, kind = system.split()
    return f"{NAMES[name]} {kind}"


def bars_of(case: Data) -> list[tuple[str, float, bool]]:
    """The chart's bars, from the fastest on; the products are the limits."""
    bars = [(label(name), median(gflops(case, name)), name.split()[0] in OURS) for name in systems_of(case)]
    rounds: list[Any] = case["rounds"]
    for kind in rounds[0]["rates"]:
        rate = median([each["rates"][kind] / 1e9 for each in rounds])
        bars.append((f"limit: plain product {kind}", rate, False))
    return sorted(bars, key=lambda bar: -bar[1])


# ---------------- What other scripts have measured of the service


def of_the_service() -> Iterator[str]:
    """The tables of starts, of batch budgets and of the device under REST, as far as they were measured."""
    if found := targets.read("starting"):
        yield "## Starting: `python -m benchmarks.starting`"
        yield starting(found)
    for name, title in (("budgets", "Batch budgets"), ("busy", "The device under REST callers")):
        if (found := targets.read(name)) and found.get("rows"):
            yield f"## {title}: `python -m benchmarks.{name}`"
            yield report.table(found["header"], found["rows"])


def starting(found: Data) -> str:
    """Seconds until READY and memory then, of second starts."""
    rows = []
    for name, each in found.items():
        samples = {key: Spread.of([start[key] for start in each["starts"]]) for key in each["first"]}
        row = [samples["seconds"].text(1), samples["processor_seconds"].text(1)]
        resident = samples["resident_mib"].median
        row += [
            f"{resident:.0f}",
            f"{resident - each['weights_mib']:.0f}",
            f"{samples['peak_mib'].median:.0f}",
        ]
        rows.append([name, *row])
    header = ["model", "READY after, s", "processor time, s", "resident, MiB", "minus weights", "at most"]
    return report.table(header, rows)
