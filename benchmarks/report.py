"""What every result says: the machine, the versions, medians and ranges; as JSON, Markdown and a chart."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def machine() -> dict[str, Any]:
    """The processor, its memory and the system, without names or paths of this machine."""
    cpu = _proc("/proc/cpuinfo")
    memory = _proc("/proc/meminfo").get("MemTotal", "0 kB").split()[0]
    flags = cpu.get("flags", "").split()
    return {
        "processor": cpu.get("model name", platform.processor() or platform.machine()),
        "instructions": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }


def versions(*names: str) -> dict[str, str]:
    """The installed versions of distributions; what is not installed is left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_average() -> float:
    """Of the last minute: more than the threads of the benchmark means that it was not alone."""
    return round(os.getloadavg()[0], 2)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def filled(page: str, kind: str, parts: Mapping[str, str]) -> str:
    """Returns a page's text with each part between its marks, <!-- kind: name --> and <!-- end -->.

    A page may lack parts. Raises ValueError for a mark without a part, or without an end.
    """
    for name in re.findall(rf"<!-- {kind}: (.+?) -->", page):
        begin, end = f"<!-- {kind}: {name} -->", "<!-- end -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found or name not in parts:
            raise ValueError(f"{begin}: {'no such part' if found else f'no {end} behind it'}")
        page = f"{before}{begin}\n{parts[name]}\n{end}{after}"
    return page


def facts(threads: int, found: dict[str, str]) -> str:
    """The machine and the versions in Markdown."""
    here = machine()
    return "\n".join(
        [
            f"- {here['processor']}, {here['cores']} cores, {', '.join(here['instructions'])}, "
            f"{here['memory_gib']} GiB; {here['system']}; Python {here['python']}",
            f"- {threads} threads everywhere",
            f"- {', '.join(f'{name} {version}' for name, version in found.items())}",
        ]
    )


def write(name: str, data: dict[str, Any], markdown: str) -> None:
    """Writes results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (RESULTS / f"{name}.md").write_text(markdown.rstrip() + "\n", "utf-8")


def chart(name: str, title: str, bars: Sequence[tuple[str, float, bool]], unit: str) -> bool:
    """Draws results/NAME.svg: (label, value, is it ours) from the top down; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = name
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.34 * len(bars)))
    labels, values, ours = zip(*reversed(bars), strict=True)
    drawn = axes.barh(labels, values, color=["#1f6feb" if own else "#9aa4af" for own in ours])
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return True


def _proc(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
