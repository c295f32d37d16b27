"""Reads the operators' pages: their blocks, their tables, and what stands in code within a line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/operations"
PAGES = (ROOT / "docs/operations.md", *sorted(FOLDER.glob("*.md")))
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<marker>[^\n]*?) -->\n)?^ *```(?P<language>\w*)[^`\n]*\n(?P<text>.*?)^ *```$", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block of a page, with the comment right above it: what to do with it, and what it prints."""

    page: str
    line: int
    marker: str
    language: str
    text: str

    @property
    def action(self) -> str:
        """What the marker says to do: "run", "serve", "not run" or nothing."""
        return self.marker.partition(":")[0]

    @property
    def argument(self) -> str:
        """What a command prints, as a regular expression; of one that is not run, why not."""
        return self.marker.partition(":")[2].strip(" ")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(name: str) -> str:
    """Reads a page of docs/operations by its name without the ending; "" is docs/operations.md."""
    return (FOLDER / f"{name}.md" if name else PAGES[0]).read_text("utf-8")


def blocks(pages: Iterable[Path] = PAGES) -> list[Block]:
    """Returns every fenced block of pages; of all of the operators' where none is named."""
    found = []
    for path in pages:
        page = path.read_text("utf-8")
        for match in _BLOCK.finditer(page):
            line = page.count("\n", 0, match.start("language")) + 1
            marker, language, text = match["marker"] or "", match["language"], match["text"]
            found.append(Block(path.stem, line, marker, language, text))
    return found


def inline(page: str) -> list[str]:
    """Returns what stands in code within the lines of a page, outside its blocks."""
    return re.findall(r"`([^`\n]+)`", _BLOCK.sub("", page))


def rows(page: str, heading: str) -> list[list[str]]:
    """Reads the cells of the first table below a heading."""
    lines = page.partition(f"\n{heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def anchors(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
