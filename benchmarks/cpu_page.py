"""The page of benchmarks/cpu.py: what its samples say, as tables and a chart."""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.report import Spread
from benchmarks.systems import CASES, NAMES, OURS


def efficiencies(case: dict[str, Any], system: str) -> list[float]:
    """Useful FLOP/s over the plain product's of that precision, round by round."""
    kind = system.split()[1]
    return [
        case["flop"] / each["seconds"][system] / each["rates"][kind]
        for each in case["rounds"]
        if system in each["seconds"] and kind in each["rates"]
    ]


def ratios(case: dict[str, Any], ours: str, theirs: str) -> list[float]:
    """How many times faster ours was, round by round."""
    return [
        each["seconds"][theirs] / each["seconds"][ours]
        for each in case["rounds"]
        if {ours, theirs} <= set(each["seconds"])
    ]


def write(data: dict[str, Any]) -> None:
    cases = {name: data["cases"][name] for name in CASES if data["cases"].get(name, {}).get("rounds")}
    versions = data["versions"] | {
        f"{peer}: {name}": version
        for peer, all_ in data.get("peers", {}).items()
        for name, version in all_.items()
    }
    parts = [
        "# CPU: the service and its peers",
        "`make bench` writes this page; the samples are in cpu.json. In each round every system scores the "
        "workload once, and the plain matrix product is measured; shares and ratios are taken per round. "
        "The seconds are medians with minimum and maximum, tokenizing included. Useful operations are those "
        "of real tokens, all layers counted whole, also by who computes the last one for first tokens only. "
        "The plain product is torch's linear over 2,048 rows, with weights as they come; its rate moves with "
        "the machine's other tenants, in fp32 by a quarter.",
        report.facts(data["threads"], versions),
        targets(data, cases),
    ]
    for name, case in cases.items():
        parts += [f"## {name}", section(case)]
    if missing := [name for name in CASES if name not in cases]:
        parts.append(f"Not measured yet: {', '.join(missing)}. `make bench` goes on with them.")
    (report.RESULTS / "cpu.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    if "base/W2" in cases:
        bars = [
            (label(name), median(gflops(cases["base/W2"], name)), name.split()[0] in OURS)
            for name in systems_of(cases["base/W2"])
        ]
        bars += [
            (f"limit: plain product {kind}", median([each["rates"][kind] / 1e9 for each in rounds]), False)
            for rounds in [cases["base/W2"]["rounds"]]
            for kind in rounds[0]["rates"]
        ]
        bars.sort(key=lambda bar: -bar[1])
        if not report.chart("cpu", "W2, bge-reranker-base's shape", bars, "useful GFLOP/s"):
            print("no chart: pip install matplotlib", file=sys.stderr)
    print(report.RESULTS / "cpu.md")


def label(system: str) -> str:
    name, kind = system.split()
    return f"{NAMES[name]} {kind}"


def systems_of(case: dict[str, Any]) -> list[str]:
    names = {name for each in case["rounds"] for name in each["seconds"]}
    return sorted(names, key=lambda name: median(seconds(case, name)))


def seconds(case: dict[str, Any], system: str) -> list[float]:
    return [each["seconds"][system] for each in case["rounds"] if system in each["seconds"]]


def gflops(case: dict[str, Any], system: str) -> list[float]:
    return [case["flop"] / each / 1e9 for each in seconds(case, system)]


def section(case: dict[str, Any]) -> str:
    rows = []
    for name in systems_of(case):
        shares = efficiencies(case, name)
        difference = case["errors"].get(name)
        rows.append(
            [
                f"**{label(name)}**" if name.split()[0] in OURS else label(name),
                Spread.of(seconds(case, name)).text(),
                f"{median(gflops(case, name)):.0f}",
                f"{median(shares):.2f}" if shares else "",
                f"{difference['rms']:.1e} / {difference['max']:.1e}" if difference else "",
            ]
        )
    header = ["system", "seconds", "useful GFLOP/s", "of the plain product", "error, rms / max"]
    rates = [
        f"{kind} {Spread.of([each['rates'][kind] / 1e9 for each in case['rounds']]).text(0)}"
        for kind in case["rounds"][0]["rates"]
    ]
    disturbance = max(max(each["others"].values()) for each in case["rounds"])
    lines = [
        f"{case['tokens']:,} tokens, {case['flop'] / 1e12:.2f} TFLOP, {len(case['rounds'])} rounds; "
        f"plain product in GFLOP/s: {', '.join(rates)}; "
        f"other processes used at most {disturbance:.0%} of the CPU during a sample."
        + (
            f" Errors are against transformers in fp32, as shares of its logits' standard deviation "
            f"({case['deviation']:.2f})."
            if case["errors"]
            else ""
        ),
        report.table(header, rows),
    ]
    lines += [f"Skipped: {label(name)}: {reason}." for name, reason in case["skipped"].items()]
    return "\n\n".join(lines)


def targets(data: dict[str, Any], cases: dict[str, Any]) -> str:
    """What the service is held to on W2 with the base shape, and what was measured."""
    rows = []

    def add(text: str, least: float, found: list[float]) -> None:
        if found:
            value = median(found)
            met = "yes" if value >= least else "no"
            rows.append([text, f"≥ {least:g}", f"{value:.2f} ({min(found):.2f}–{max(found):.2f})", met])

    if case := cases.get("base/W2"):
        add("bf16: share of the plain bf16 product", 0.90, efficiencies(case, "rerank-grpc bf16"))
        for text, least, peer in (
            ("OpenVINO bf16", 1.05, "openvino bf16"),
            ("Infinity bf16", 1.9, "infinity bf16"),
            ("CrossEncoder as it comes, fp32", 3.7, "crossencoder fp32"),
        ):
            add(f"bf16 against {text}", least, ratios(case, "rerank-grpc bf16", peer))
        add("int8: share of the plain int8 product", 0.70, efficiencies(case, "rerank-grpc int8"))
        ort = ratios(case, "rerank-grpc int8", "onnxruntime int8")
        add("int8 against ONNX Runtime int8 dynamic", 1.4, ort)
        better = [
            min(both)
            for both in zip(
                ratios(case, "rerank-grpc fp32", "openvino fp32"),
                ratios(case, "rerank-grpc fp32", "onnxruntime fp32"),
                strict=False,
            )
        ]
        add("fp32 against the better of OpenVINO and ONNX Runtime fp32", 1.0, better)
    if case := cases.get("base/W1"):
        add("W1, bf16: share of the plain product", 0.6, efficiencies(case, "rerank-grpc bf16"))
    if case := cases.get("base/W3"):
        add("W3 at 512 tokens, bf16: share of the plain product", 0.8, efficiencies(case, "rerank-grpc bf16"))
    if used := data.get("memory"):
        peak = max(each["peak"] / each["file"] for each in used.values())
        rows.append(
            ["peak memory while loading ÷ file, imports left out", "≤ 1.6", f"{peak:.2f}", yes(peak <= 1.6)]
        )
        steady = used["bf16"]["steady"] / used["bf16"]["file"] * 2
        rows.append(["steady memory, bf16 ÷ its weights", "≤ 1.25", f"{steady:.2f}", yes(steady <= 1.25)])
    return "## Targets, base shape\n\n" + report.table(["figure", "target", "measured", "met"], rows)


def yes(met: bool) -> str:
    return "yes" if met else "no"
