"""Writes the tables of docs/metrics.md from the families; with --check fails if they differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rerank_grpc.server import rpc_metrics
from rerank_grpc.telemetry.families import FAMILIES, VALUES, MetricFamily

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
END = "<!-- end -->"
# The tables of families by their names in the page.
TABLES: Mapping[str, Sequence[MetricFamily]] = {"rerank": FAMILIES, "grpc": rpc_metrics.FAMILIES}


def rows(families: Sequence[MetricFamily]) -> Iterator[str]:
    """Yields a row for each family."""
    yield "| metric | kind | labels | unit | meaning |"
    yield "|---|---|---|---|---|"
    for family in families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        unit = family.unit
        if family.buckets:
            unit += f", in buckets from {family.buckets[0]:,} to {family.buckets[-1]:,}"
        yield f"| `{family.name}` | {family.kind} | {labels} | {unit} | {family.meaning} |"


def values() -> Iterator[str]:
    """Yields a row for each label with a fixed set of values."""
    yield "| label | values |"
    yield "|---|---|"
    for label, own in VALUES.items():
        texts = [f"`{value}`" if value else "nothing" for value in sorted(own)]
        yield f"| `{label}` | {', '.join(texts)} |"


def written(text: str) -> str:
    """Returns the page's text with its tables as the code has them; raises ValueError without markers."""
    tables = {name: rows(families) for name, families in TABLES.items()} | {"values": values()}
    for name, own in tables.items():
        begin = f"<!-- metrics: {name} -->"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{PAGE.name}: no {begin} … {END}")
        text = "\n".join([before + begin, *own, END + after])
    return text


def main() -> int:
    """Writes the tables, or with --check says that they differ; 1 if they do."""
    text = PAGE.read_text("utf-8")
    new = written(text)
    if new == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.name}: not the code's tables: run scripts/metrics_doc.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
