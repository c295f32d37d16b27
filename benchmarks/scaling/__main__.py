"""Machines and money for a number of documents a second: the tables of docs/scaling.md.

    python -m benchmarks.scaling                     writes them into the page
    python -m benchmarks.scaling --check             fails if they differ
    python -m benchmarks.scaling --core-hour 0.02 --gpu-hour H100=2.5 --busy 0.6
                                                     prints them for other prices and another load
    python -m benchmarks.scaling --simulate          renews what results/scaling.json has of balancing, in
                                                     some ten minutes
    python -m benchmarks.scaling --series            counts a server's series of metrics anew, in seconds

Rates on CPUs are those of results/cpu.json and quick.json, which were measured on two cores. Rates on GPUs
are arithmetic: operations a document (cpu.json counts them) and shares of a card's published rate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.scaling.balancing import simulate
from benchmarks.scaling.layers import told_of_added
from benchmarks.scaling.rates import CARDS, Assumptions
from benchmarks.scaling.series import count_series
from benchmarks.scaling.tables import TABLES, table
from benchmarks.simulate.costs import read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def written(text: str) -> str:
    """Returns the page with its tables as the results have them; raises ValueError without markers."""
    assumed = Assumptions()
    parts = {name: table(name, assumed) for name in TABLES} | {"what layers add": told_of_added()}
    if missing := [name for name in parts if f"<!-- scaling: {name} -->" not in text]:
        raise ValueError(f"{PAGE.name}: no <!-- scaling: {missing[0]} -->")
    return report.filled(text, "scaling", parts)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks.scaling")
    made.add_argument("--check", action="store_true", help="fail if the page differs")
    made.add_argument("--simulate", action="store_true", help="replay the rules anew: results/scaling.json")
    made.add_argument("--series", action="store_true", help="count a server's series anew, there too")
    made.add_argument("--core-hour", type=float, help="price of a core for an hour")
    made.add_argument("--gpu-hour", action="append", default=[], metavar="CARD=PRICE", help=", ".join(CARDS))
    made.add_argument("--busy", type=float, help="share of what devices can do that is asked of them")
    made.add_argument("--cores", type=int, help="cores of a machine")
    return made


def other(options: argparse.Namespace) -> Assumptions | None:
    """The assumptions that options change; None without any; raises ValueError."""
    assumed = Assumptions()
    prices = dict(assumed.gpu_hour)
    for text in options.gpu_hour:
        card, _, price = text.partition("=")
        try:
            prices[card] = float(price) if card in CARDS else math.nan
        except ValueError:
            prices[card] = math.nan
        if math.isnan(prices[card]):
            raise ValueError(f"--gpu-hour is CARD=PRICE with {', '.join(CARDS)}; not {text!r}")
    if min(*prices.values(), options.core_hour or 0.0) < 0:
        raise ValueError("prices are never negative")
    if options.cores is not None and options.cores < 1:
        raise ValueError("--cores is at least 1")
    if options.busy is not None and not 0 < options.busy <= 1:
        raise ValueError("--busy is above 0 and at most 1")
    changed = replace(
        assumed,
        core_hour=assumed.core_hour if options.core_hour is None else options.core_hour,
        gpu_hour=prices,
        busy=options.busy or assumed.busy,
        machine_cores=options.cores or assumed.machine_cores,
    )
    return None if changed == assumed else changed


def renew(part: dict[str, Any]) -> None:
    """Puts what was measured anew into results/scaling.json."""
    data = json.dumps(read("scaling") | part, indent=1)
    (report.RESULTS / "scaling.json").write_text(data + "\n", "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Writes the page's tables; 1 if --check finds others, 2 for an option that makes no sense."""
    options = parser().parse_args(arguments)
    try:
        assumed = other(options)
    except ValueError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    if assumed is not None:
        for name in ("cpus", "gpus"):
            print(table(name, assumed), end="\n\n")
        return 0
    if options.simulate:
        renew(simulate())
    if options.series:
        renew({"series": count_series(), "counted": report.now()})
    text = PAGE.read_text("utf-8")
    new = written(text)
    if new != text and options.check:
        print(f"{PAGE.name}: not the results' tables: run python -m benchmarks.scaling", file=sys.stderr)
        return 1
    if new != text:
        PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
