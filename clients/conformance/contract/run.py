"""Sends one list of requests through every client of the contract, to one server, and compares what they say.

    python -m clients.conformance.contract.run               all; Go and Java where their tools are
    python -m clients.conformance.contract.run node go       some; one whose tools are missing fails

The list is clients/conformance/requests.jsonl, and contract/requests.py says what its lines mean. Each client
is a program of its own that prints a line for each request. All must see what the list expects, the same
results in the same order with every score within 1e-6 of the first client's, and the same reasons of errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clients.conformance.contract import buf_curl, golang, java, node, requests, small
from clients.conformance.contract.tools import Missing
from clients.conformance.run import CALIBRATION, DIRECT, server
from rerank_grpc.client import Client, RateLimited

ROOT = Path(__file__).resolve().parents[3]
Outcome = Mapping[str, Any]

# The slope of the calibration is 12, so that a probability may differ by three times as much as its logit.
TOLERANCES = {"relevance_score": 1e-6, "logit": 1e-5, "calibrated_score": 3e-5}
TOKENS = {name: f"rrk_conformance_{name}" for name in ("full", "lister", "limited")}
CALLERS = f"""
[full]
token = "{TOKENS["full"]}"

[lister]
token = "{TOKENS["lister"]}"
rights = ["list"]

[limited]
token = "{TOKENS["limited"]}"
documents_per_second = 0.001
burst = 1
"""


def python(module: str) -> Callable[[], list[str]]:
    """Makes the command of a client that this interpreter runs."""
    return lambda: [sys.executable, "-m", f"clients.conformance.contract.{module}"]


# By client: makes ready what it needs, and returns its command; raises Missing.
CLIENTS: Mapping[str, Callable[[], list[str]]] = {
    "python": python("python_sync"),
    "python-async": python("python_async"),
    "node": node.command,
    "go": golang.command,
    "java": java.command,
    "buf-curl": buf_curl.command,
    "python-oldest": small.client("oldest"),
    "python-newest": small.client("newest"),
}
# Their tools are not everywhere; those of the others have to be.
OPTIONAL = ("go", "java")


def main() -> int:
    """Runs the clients; 1 if any of them saw something else."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "client", nargs="*", choices=[[], *CLIENTS], help="those to run; all if none is named"
    )
    chosen = parser.parse_args().client
    commands, problems = {}, []
    for name in chosen or CLIENTS:
        try:
            commands[name] = CLIENTS[name]()
        except Missing as missing:
            print(f"{name}: not run: {missing}")
            problems += [f"{name}: {missing}"] if chosen or name not in OPTIONAL else []
    lines = list(requests.lines())
    with serving() as variables:
        seen = {name: outcomes(command, variables) for name, command in commands.items()}
    for name, outcome in seen.items():
        found = list(differences(lines, outcome, next(iter(seen.values()))))
        print(f"{name}: {len(outcome)} requests, {len(found)} differences")
        problems += [f"{name}: {problem}" for problem in found]
    for problem in problems:
        print(f"FAILED {problem}")
    print(f"{len(seen) * len(lines)} outcomes of {len(seen)} clients, {len(problems)} failed")
    return 1 if problems else 0


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Runs the server, with a caller of each kind; yields a client's environment."""
    with tempfile.TemporaryDirectory() as folder:
        callers = Path(folder) / "callers.toml"
        callers.write_text(CALLERS)
        options = ["--alias", "by-alias=embedded", "--token-file", str(callers)]
        options += ["--model", "embedded", "--model", "calibrated=embedded"]
        options += ["--calibration", f"calibrated={CALIBRATION}"]
        with server(*options) as (target, _, inherited):
            spend(target)
            yield {
                **inherited,
                **DIRECT,
                "CONFORMANCE_TARGET": target,
                "CONFORMANCE_TOKENS": json.dumps({**TOKENS, "wrong": "rrk_conformance_wrong"}),
                "CONFORMANCE_REQUESTS": str(requests.LIST),
            }


def spend(target: str) -> None:
    """Uses up the rate of the caller `limited`, whose next call is due in a quarter of an hour."""
    with Client(target, token=TOKENS["limited"]) as client, suppress(RateLimited):
        client.rerank("query", ["one", "two"])


def outcomes(command: list[str], variables: Mapping[str, str]) -> dict[str, Outcome]:
    """Runs a client; returns what it said of each request, by name."""
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    if done.returncode:
        print(f"{command} ended with {done.returncode}:\n{done.stderr[-4000:]}", file=sys.stderr)
    return {outcome["name"]: outcome for outcome in said}


def differences(
    lines: list[requests.Line], seen: Mapping[str, Outcome], first: Mapping[str, Outcome]
) -> Iterator[str]:
    """Tells where a client saw something else than the list expects, or than the first client did."""
    for line in lines:
        outcome = seen.get(line.name)
        if outcome is None:
            yield f"{line.name}: not told of"
            continue
        unexpected = list(surprises(line.expect, outcome))
        other = [] if line.name not in first else list(unlike(outcome, first[line.name]))
        for problem in [*unexpected, *other]:
            yield f"{line.name}: {problem}"


def surprises(expect: Mapping[str, Any], outcome: Outcome) -> Iterator[str]:
    """Tells what is not as the list expects."""
    results, error = outcome.get("results", []), outcome.get("error", {})
    facts: dict[str, Any] = {
        "results": len(results),
        "first": results[0]["index"] if results else None,
        "ties": [
            result["index"]
            for result in results
            if result["relevance_score"] == results[0]["relevance_score"]
        ],
        "truncated": any(result["truncated"] for result in results),
        "best_chunk": any("best_chunk" in result for result in results),
        "calibrated_score": any("calibrated_score" in result for result in results),
        "query_truncated": outcome.get("query_truncated"),
        "models": [model["name"] for model in outcome.get("models", [])],
        "serving": outcome.get("health", {}).get("serving"),
        "reason": error.get("reason"),
        "fields": error.get("fields"),
        "retry": error.get("retry"),
    }
    if "reason" not in expect and error:
        yield f"the error {error}"
    for name, wanted in expect.items():
        if facts[name] != wanted:
            yield f"{name} is {facts[name]!r}, not {wanted!r}"


def unlike(outcome: Outcome, first: Outcome) -> Iterator[str]:
    """Tells what is not as the first client saw it."""
    for name in first.keys() | outcome.keys() - {"results"}:
        if name != "results" and outcome.get(name) != first.get(name):
            yield f"{name} is {outcome.get(name)!r}, for the first client {first.get(name)!r}"
    seen, known = outcome.get("results", []), first.get("results", [])
    if len(seen) != len(known):
        yield f"{len(seen)} results, for the first client {len(known)}"
    for mine, theirs in zip(seen, known, strict=False):
        for name in mine.keys() | theirs.keys():
            tolerance = TOLERANCES.get(name)
            one, other = mine.get(name), theirs.get(name)
            if abs(one - other) > tolerance if tolerance and one is not None else one != other:
                yield f"{name} of a result is {one!r}, for the first client {other!r}"


if __name__ == "__main__":
    sys.exit(main())
