"""What access costs: TLS beside plaintext on the real command, and the checks of a caller, in two minutes.

Two servers of one build run beside each other, of which one at a time is called, in turns (A B B A), over a
connection that stays open. A ratio is that of one round; times of the processor are the server's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import timeit
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import load, report, workloads
from benchmarks.metrics_cost import Side, command, turns, well
from benchmarks.report import RESULTS, Spread
from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.rates import Rates
from rerank_grpc.callers import Caller, Counted, Rate
from rerank_grpc.server.guard import Guard

MODELS = {"minilm": "minilm's shape"}
ROUNDS, SECONDS = 30, 0.5
DOCUMENTS = {"one document": 1, "32 documents": 32}
MOST_PROCESSOR, MOST_MILLISECONDS, MOST_CHECK_MICROSECONDS = 1.15, 1.0, 20.0
CALLS = 20_000  # of a check, five times
Row = tuple[str, str, str, bool | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trial", action="store_true", help="for some seconds, and write nothing")
    trial = parser.parse_args().trial
    rounds, seconds = (2, 0.2) if trial else (ROUNDS, SECONDS)
    data: dict[str, Any] = {"when": report.now(), "load_before": report.load_average()}
    data["tls"] = {name: measure(name, rounds, seconds) for name in MODELS}
    data["check_microseconds"] = check(CALLS // 10 if trial else CALLS)
    data["load_after"] = report.load_average()
    data |= {"machine": report.machine(), "versions": report.versions("grpcio", "torch", "rerank-grpc")}
    page = page_of(data)
    print(page)
    if not trial:
        (RESULTS / "access.json").write_text(json.dumps(data, indent=1) + "\n")
        (RESULTS / "access.md").write_text(page)


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Makes a certificate for this machine that vouches for itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return certificate, key


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Takes p50 and the server's processor time of a call, of each size of call, on both servers."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificate, key = make_pair(folder)
        files = ["--tls-cert", str(certificate), "--tls-key", str(key)]
        sides = {
            "off": stack.enter_context(command(name, metrics=False)),
            "on": stack.enter_context(command(name, *files, metrics=False, ca=certificate.read_bytes())),
        }
        for kind, count in DOCUMENTS.items():
            samples: dict[str, dict[str, list[float]]] = {
                each: {"on": [], "off": []} for each in ("p50_ms", "processor_ms")
            }
            for side in sides.values():
                take(side, count, seconds)
            for order in turns(rounds):
                for which in order:
                    milliseconds, processor = take(sides[which], count, seconds)
                    samples["p50_ms"][which].append(milliseconds)
                    samples["processor_ms"][which].append(processor)
            found[kind] = samples
    return found


def take(side: Side, documents: int, seconds: float) -> tuple[float, float]:
    """Calls one server from one caller; returns p50 and the processor time of a call, in milliseconds."""
    texts = [f"{text} {n}" for n, text in enumerate(["a short document about passwords"] * documents)]
    # No two queries alike: the service remembers them.
    requests = [load.request_of(f"{workloads.QUERY} {n}", texts) for n in range(1_000)]
    before = processor_seconds(side.process)
    answers, _ = load.closed_loop(side.target, requests, 1, seconds, ca=side.ca)
    spent = processor_seconds(side.process) - before
    calls = well(answers)
    return 1e3 * statistics.median(answer.seconds for answer in calls), 1e3 * spent / len(calls)


def processor_seconds(process: int) -> float:
    """The processor time that a process has spent."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check(calls: int) -> dict[str, float]:
    """Times what a call of a named caller with a rate passes: token and right, twice, and the rate."""
    token, tokens = "t" * 43, [f"token-{n}" for n in range(100)]
    guard = Guard(AccessList([*tokens, token]))
    metadata = (("user-agent", "x"), ("x-request-id", "1"), ("authorization", f"Bearer {token}"))
    caller = Caller("search", rate=Rate(Counted.DOCUMENTS, 1e12, 1e12))
    rates = Rates()

    def admit() -> None:
        guard.admit("Rerank", metadata)  # in the interceptor
        guard.admit("Rerank", metadata)  # in the lane
        guard.caller_by(metadata)  # for the record

    def charge() -> None:
        rates.enter(caller, 32)

    return {
        "token and right": least_microseconds(admit, calls),
        "rate": least_microseconds(charge, calls),
    }


def least_microseconds(function: Any, calls: int) -> float:
    return round(1e6 * min(timeit.repeat(function, number=calls, repeat=5)) / calls, 2)


def rows(data: dict[str, Any]) -> list[Row]:
    """Says what was asked, what was measured, and whether it was met."""
    found: list[Row] = []
    for name, kinds in data["tls"].items():
        for kind, samples in kinds.items():
            pairs = zip(samples["processor_ms"]["on"], samples["processor_ms"]["off"], strict=True)
            share = Spread.of([on / off for on, off in pairs])
            what = f"TLS ÷ plaintext, {MODELS[name]}, {kind}: the server's processor time of a call"
            found.append((what, f"≤ {MOST_PROCESSOR}", share.text(3), share.median <= MOST_PROCESSOR))
            pairs = zip(samples["p50_ms"]["on"], samples["p50_ms"]["off"], strict=True)
            more = Spread.of([on - off for on, off in pairs])
            asked, met = (f"≤ {MOST_MILLISECONDS:g} ms", more.median <= MOST_MILLISECONDS)
            one = DOCUMENTS[kind] == 1
            what = f"TLS − plaintext, {MODELS[name]}, {kind}: p50"
            found.append((what, asked if one else "", f"{more.text(3)} ms", met if one else None))
    checks = data["check_microseconds"]
    total = sum(checks.values())
    parts = ", ".join(f"{part} {value:g}" for part, value in checks.items())
    what = "the checks of a caller's token, right and rate, a call"
    asked = f"≤ {MOST_CHECK_MICROSECONDS:g} µs"
    found.append((what, asked, f"{total:.1f} µs ({parts})", total <= MOST_CHECK_MICROSECONDS))
    return found


def page_of(data: dict[str, Any]) -> str:
    marks = {True: "yes", False: "**no**", None: ""}
    table = report.table(
        ("figure", "asked", "measured: median (least–most)", "met"),
        [(what, asked, text, marks[met]) for what, asked, text, met in rows(data)],
    )
    machine = data["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {data['when'][:10]}"
    load_averages = f"load average {data['load_before']:g} before, {data['load_after']:g} after"
    return "\n".join(
        [
            "# What access costs",
            "",
            f"`python -m benchmarks.access` on {where}; {load_averages}.",
            "",
            table,
            "",
            "The real command twice, with a certificate and without, called in turns (A B B A) by one caller "
            "over a connection that stays open. The processor time is the server's, its model included.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
