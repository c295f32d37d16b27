"""Writes the catalogue's tables into README.md and docs/models.md; with --check fails if they differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rerank_grpc.checkpoints.catalogue import KnownModel, builtin
from rerank_grpc.units import million

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end -->"


def served() -> Iterator[str]:
    """Yields a row for each group of served models that differ in size alone."""
    yield "| model | size | tokens | languages | licence | good for |"
    yield "|---|---|---|---|---|---|"
    models = [known for known in builtin() if not known.unsupported]
    for _, group in groupby(
        models, lambda known: (known.id.partition("/")[0], known.good_for, _facts(known))
    ):
        yield _row(list(group))


def told() -> Iterator[str]:
    """Yields a row for each way by which served models are told."""
    yield "| models | what tells it | served |"
    yield "|---|---|---|"
    models = sorted((known for known in builtin() if not known.unsupported), key=lambda known: known.evidence)
    for (evidence, how), group in groupby(models, lambda known: (known.evidence, known.served)):
        yield f"| {', '.join(known.short for known in group)} | {evidence} | {how} |"


def refused() -> Iterator[str]:
    """Yields a row for each reason by which known models are refused."""
    yield "| model | why it is refused, and what to use |"
    yield "|---|---|"
    for known in builtin():
        if known.unsupported:
            yield f"| `{known.id}` | {known.unsupported} |"


def _facts(known: KnownModel) -> tuple[str, ...]:
    tokens = f"{known.max_tokens:,}" if known.max_tokens else ""
    return tokens, ", ".join(known.languages), known.licence


def _row(models: Sequence[KnownModel]) -> str:
    names = [f"`{models[0].id}`", *(f"`{known.short}`" for known in models[1:])]
    sizes = list(dict.fromkeys(million(known.parameters) for known in models))
    cells = [", ".join(names), ", ".join(sizes), *_facts(models[0]), models[0].good_for]
    return f"| {' | '.join(cells)} |"


TABLES = {
    "README.md": {"served": served},
    "docs/models.md": {"told": told, "refused": refused},
}


def written(page: str, text: str) -> str:
    """Returns a page's text with its tables as the catalogue has them; raises ValueError without markers."""
    for name, rows in TABLES[page].items():
        begin = f"<!-- models: {name} -->"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{page}: no {begin} … {END}")
        text = "\n".join([before + begin, *rows(), END + after])
    return text


def main() -> int:
    """Writes the tables, or with --check says which page differs; 1 if one does."""
    stale = []
    for page in TABLES:
        path = ROOT / page
        text = path.read_text("utf-8")
        new = written(page, text)
        if new == text:
            continue
        stale.append(page)
        if "--check" not in sys.argv[1:]:
            path.write_text(new, "utf-8")
    if stale and "--check" in sys.argv[1:]:
        print(f"{', '.join(stale)}: not the catalogue's tables: run scripts/models_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
