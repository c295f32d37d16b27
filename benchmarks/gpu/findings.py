"""What a run has found so far: printed line by line, and kept in files after every step."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu.size import Size
from benchmarks.report import Spread

NOTHING = "—"
COPY_VARIABLE = "OUT"  # names a folder for a copy of the results
SCORES = {
    "deviation": "standard deviation",
    "ours": "ours",
    "theirs": "transformers'",
    "met": "within the bound",
    "exact": "ours in fp32",
    "exact_met": "within 1e-3",
    "packed": "a pair alone and among others",
    "graphs": "captured and not, 1 to 12 pairs",
}


@dataclass(slots=True)
class Figure:
    """One row of the table; `samples` are compared with `asked`, "at least" unless `most`."""

    name: str
    asked: float | None
    samples: list[float]
    beside: str
    unit: str = ""
    most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the median is what is asked; None where nothing is."""
        if self.asked is None:
            return None
        median = Spread.of(self.samples).median
        return median <= self.asked if self.most else median >= self.asked

    def row(self) -> list[str]:
        sign, spread = "≤" if self.most else "≥", Spread.of(self.samples)
        asked = NOTHING if self.asked is None else f"{sign} {self.asked:g}{self.unit}"
        met = {True: "yes", False: "**no**", None: NOTHING}[self.met]
        digits = 0 if spread.median >= 100 else 2
        return [self.name, asked, spread.text(digits) + self.unit, self.beside, met]


@dataclass(slots=True)
class Findings:
    """All figures, scores and facts of one run."""

    size: Size
    command: str
    figures: list[Figure] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    scores: dict[str, dict[str, float | str]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def take(self, told: dict[str, Any]) -> None:
        """Takes one thing that a step told, and prints it."""
        if "figure" in told:
            self.figures.append(Figure(**told["figure"]))
            say(" | ".join(self.figures[-1].row()))
        if "score" in told:
            name, found = told["score"]
            self.scores.setdefault(name, {}).update(found)
            cells = [f"{SCORES[key]} {cell_of(value)}" for key, value in found.items()]
            say(f"{name}, logits: {', '.join(cells)}")
        if "fact" in told:
            name, found = told["fact"]
            self.models.setdefault(name, {}).update(found)
            say(f"{name}: {', '.join(f'{key} {value}' for key, value in found.items())}")
        if "note" in told:
            self.notes.append(told["note"])
            say(told["note"])
        if "seconds" in told:
            name, seconds = told["seconds"]
            self.seconds[name] = seconds
            say(f"  [{name}: {seconds} s]")
        if "missing" in told:
            name, reason, broken = told["missing"]
            self.lack(name, reason, broken=broken)

    def lack(self, name: str, reason: str, *, broken: bool = True) -> None:
        """Notes what could not be measured; `broken` unless a package is missing."""
        self.missing.append((name, reason))
        self.failed |= broken
        say(f"{name} | not measured: {reason}")

    def write(self, name: str) -> None:
        """Writes the results, and a copy where one is asked for; a dry run writes nothing."""
        if self.size.dry or "when" not in self.facts:
            return
        report.write(name, self.data(), self.page())
        if folder := os.environ.get(COPY_VARIABLE):
            content = json.dumps(self.data(), indent=1, ensure_ascii=False)
            (Path(folder) / f"{name}.json").write_text(content + "\n", "utf-8")
            (Path(folder) / f"{name}.md").write_text(self.page() + "\n", "utf-8")

    def data(self) -> dict[str, Any]:
        figures = [
            {"name": each.name, "asked": each.asked, "samples": each.samples, "beside": each.beside}
            | {"unit": each.unit, "met": each.met}
            for each in self.figures
        ]
        return self.facts | {
            "command": self.command,
            "figures": figures,
            "missing": self.missing,
            "scores": self.scores,
            "models": self.models,
            "notes": self.notes,
            "step_seconds": self.seconds,
        }

    def page(self, *, notes: bool = True) -> str:
        """All of it in Markdown; `notes` have been printed already where it is printed."""
        dry = "**A dry run with tiny shapes: no figure of it means anything.**\n\n" if self.size.dry else ""
        rows = [each.row() for each in self.figures]
        rows += [
            [name, NOTHING, "not measured: " + reason, NOTHING, NOTHING] for name, reason in self.missing
        ]
        scores = [
            [name, *(cell_of(found.get(key, NOTHING)) for key in SCORES)]
            for name, found in self.scores.items()
        ]
        parts = [
            "# One GPU\n",
            f"{dry}`{self.command}`, {self.facts['when']}, {self.facts.get('seconds', 0)} s. Medians of "
            f"{self.size.rounds} samples that take turns, with minimum and maximum; latencies are of each "
            "call.\n",
            report.table(["figure", "asked", "measured", "beside it", "met"], rows),
            "\nLogits beside transformers in fp32 on the same card: root mean squares as shares of the "
            f"logits' standard deviation. The bound is 1.2 × transformers' own {self.size.precision}. The "
            "last two columns are largest differences, as the same shares, of the same pairs.\n",
            report.table(["shape", *SCORES.values()], scores),
            "",
            *self._machine(),
            *map(_of_model, self.models.items()),
        ]
        if self.notes and notes:
            parts += ["\nNotes of the run:\n", *self.notes]
        return "\n".join(parts)

    def _machine(self) -> list[str]:
        facts, here = self.facts, self.facts["machine"]
        card = "no card"
        if "card" in facts:
            card = f"{facts['card']}, {facts['card_memory_gib']} GiB; driver {facts['driver']}, "
            card += f"CUDA {facts['cuda']}"
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        return [
            f"- {card}; {here['processor']}, {here['cores']} cores; Python {here['python']}",
            f"- {versions}",
        ]


def _of_model(model: tuple[str, dict[str, Any]]) -> str:
    name, found = model
    return f"- {name}: {', '.join(f'{key} {value}' for key, value in found.items())}"


def cell_of(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2g}"


def say(text: str) -> None:
    print(text, flush=True)


def facts_of(size: Size) -> dict[str, Any]:
    """The machine, its card and the versions."""
    import torch

    found: dict[str, Any] = {"when": report.now(), "machine": report.machine()}
    found["versions"] = report.versions(
        "torch", "transformers", "sentence-transformers", "flash-attn", "triton", "tokenizers", "grpcio"
    )
    if not size.dry:
        card = torch.cuda.get_device_properties(0)
        found["card"] = card.name
        found["card_memory_gib"] = round(card.total_memory / 2**30, 1)
        found["capability"] = [card.major, card.minor]
        found["cuda"] = torch.version.cuda
        found["driver"] = driver()
    return found


def driver() -> str:
    """The driver's version; "unknown" without nvidia-smi."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"
