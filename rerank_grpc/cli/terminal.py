"""The layout of printed text, as pure functions of the text and the width it must fit."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

from rerank_grpc.checkpoints.catalogue import KnownModel
from rerank_grpc.config.reading import may_color
from rerank_grpc.types import CalibrationInfo, Health, ModelInfo, State
from rerank_grpc.units import million, size

# Zero-width (non-)joiners shape Persian and emoji; other format characters
# (the bidirectional overrides) can make a text read as another.
_JOINERS = "\u200c\u200d"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_NARROWEST_LAST = 30  # the cells that a table's last column is left before its rows become blocks
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@dataclass(frozen=True, slots=True)
class Screen:
    """The abilities of a stream: cells per line (None for no limit), colour, Unicode."""

    width: int | None = None
    color: bool = False
    unicode: bool = True

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """Reads a stream's abilities; a file or pipe gets whole lines and no colour."""
        utf = (stream.encoding or "").lower().replace("-", "").startswith("utf")
        if not stream.isatty():
            return cls(unicode=utf)
        width = shutil.get_terminal_size((80, 24)).columns
        return cls(max(width, 20), may_color(), utf)

    def paint(self, text: str, *styles: str) -> str:
        """Colours a text where the stream has colours."""
        if not self.color or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Makes a text from anywhere one line that a terminal shows and does not obey."""
    return "".join(map(_printable, text)).strip()


def _printable(character: str) -> str:
    if character in "\t\n\r\v\f\u2028\u2029":
        return " "
    if character not in _JOINERS and unicodedata.category(character) in _UNPRINTABLE:
        return "�"
    return character


def cells(text: str) -> int:
    """Counts the cells of a terminal that a printable text takes: two for a Chinese character."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if character in _JOINERS or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, width: int) -> str:
    """Cuts a printable text to at most `width` cells, the last of them "…"."""
    if cells(text) <= width:
        return text
    used, kept = 1, []
    for character in text:
        used += _cells(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept).rstrip() + "…" if width > 0 else ""


def pad(text: str, width: int) -> str:
    """Fills a printable text up to `width` cells."""
    return text + " " * (width - cells(text))


def bar(score: float, width: int, *, unicode: bool = True) -> str:
    """Draws a score in [0, 1] as a bar in `width` cells, to an eighth of a cell."""
    score = min(max(score, 0.0), 1.0)
    if not unicode:
        return pad("#" * round(score * width), width)
    full, eighths = divmod(round(score * width * 8), 8)
    return pad("█" * full + (_EIGHTHS[eighths] if eighths else ""), width)


class Row(NamedTuple):
    """One line of a ranked table; `place` is the document's file and line.

    `calibrated` is the probability of relevance, where the model has a calibration.
    """

    score: float
    place: str
    text: str
    calibrated: float | None = None


def ranking(rows: Sequence[Row], screen: Screen) -> Iterable[str]:
    """Lays out results, best first: rank, score, bar, calibrated score, place and as much text as fits."""
    if not rows:
        yield "no results"
        return
    rank_width, bar_width = len(str(len(rows))), 20
    place_width = max(cells(printable(row.place)) for row in rows)
    if screen.width is not None:
        bar_width = min(max((screen.width - 40) // 4, 4), 24)
        place_width = min(place_width, max(screen.width // 5, 4))
    calibrated_width = 0 if rows[0].calibrated is None else len("p=0.0000 ")
    left = rank_width + 1 + 6 + 1 + bar_width + 1 + calibrated_width + place_width + 2
    for rank, row in enumerate(rows, 1):
        number = screen.paint(f"{rank:>{rank_width}}", "bold")
        drawn = bar(row.score, bar_width, unicode=screen.unicode)
        drawn = screen.paint(drawn, "green" if rank == 1 else "cyan")
        place = screen.paint(pad(clip(printable(row.place), place_width), place_width), "dim")
        text = printable(row.text)
        if screen.width is not None:
            text = clip(text, max(screen.width - left, 8))
        calibrated = "" if row.calibrated is None else f"p={row.calibrated:.4f} "
        yield f"{number} {row.score:.4f} {drawn} {calibrated}{place}  {text}".rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[str]], screen: Screen) -> Iterable[str]:
    """Lays out rows under their head.

    Where the width is too small the last column is clipped, or else a row becomes a block of lines.
    """
    clean = [[printable(cell) for cell in row] for row in rows]
    if not _fits(head, clean, screen):
        yield from _blocks(head, clean, screen)
        return
    widths = _widths(head, clean)
    if screen.width is not None and widths:
        widths[-1] = min(widths[-1], _room(widths, screen.width))
    yield screen.paint("  ".join(map(pad, head, widths)).rstrip(), "dim")
    for *row, last in clean:
        yield "  ".join(map(pad, [*row, clip(last, widths[-1])], widths)).rstrip()


def _fits(head: Sequence[str], rows: Sequence[Sequence[str]], screen: Screen) -> bool:
    """Tells whether the last column of a table has room enough to be read."""
    widths = _widths(head, rows)
    if screen.width is None or not widths:
        return True
    return _room(widths, screen.width) >= min(widths[-1], _NARROWEST_LAST)


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cells, column)) for column in zip(head, *rows, strict=True)]


def _room(widths: Sequence[int], width: int) -> int:
    """Counts the cells that the columns before the last one leave to it."""
    return width - sum(widths[:-1]) - 2 * (len(widths) - 1)


def _blocks(head: Sequence[str], rows: Sequence[Sequence[str]], screen: Screen) -> Iterable[str]:
    label = max(map(cells, head))
    for number, row in enumerate(rows):
        if number:
            yield ""
        room = max((screen.width or 80) - label - 2, 8)
        for name, cell in zip(head, row, strict=True):
            if cell:
                yield f"{screen.paint(pad(name, label), 'dim')}  {clip(cell, room)}"


def _calibration(info: CalibrationInfo | None) -> str:
    """Names how a model was calibrated, the judged pairs and the day, in a cell; "" where it was not."""
    if info is None:
        return ""
    return f"{info.method}, {info.relevant_pairs + info.irrelevant_pairs:,} pairs, {info.created[:10]}"


_COLUMNS: tuple[tuple[str, Callable[[ModelInfo], str]], ...] = (
    ("model", lambda model: model.name + (" (default)" if model.is_default else "")),
    ("state", lambda model: model.state.value.upper()),
    ("aliases", lambda model: ", ".join(model.aliases)),
    ("revision", lambda model: model.revision[:12]),
    ("family", lambda model: model.family),
    ("device", lambda model: model.device),
    ("precision", lambda model: model.precision),
    ("attention", lambda model: model.attention),
    ("pooling", lambda model: model.pooling),
    ("activation", lambda model: model.activation),
    ("prompt", lambda model: model.prompt_source),
    ("calibration", lambda model: _calibration(model.calibration)),
    ("tokens", lambda model: str(model.max_tokens or "")),
    ("memory", lambda model: size(model.memory_bytes) if model.memory_bytes else ""),
)


def models(infos: Sequence[ModelInfo], screen: Screen) -> Iterable[str]:
    """Lays out the models of a server; a column that is empty everywhere is left out."""
    shown = [(name, of) for name, of in _COLUMNS if any(map(of, infos))]
    yield from table([name for name, _ in shown], [[of(info) for _, of in shown] for info in infos], screen)
    for info in infos:
        if info.state is State.FAILED and info.state_message:
            yield screen.paint(f"{printable(info.name)}: {printable(info.state_message)}", "red")


_KNOWN: tuple[tuple[str, Callable[[KnownModel], str]], ...] = (
    ("model", lambda known: known.id),
    ("served", lambda known: known.served),
    ("size", lambda known: million(known.parameters) if known.parameters else ""),
    ("tokens", lambda known: str(known.max_tokens or "")),
    ("languages", lambda known: " ".join(known.languages)),
    ("licence", lambda known: known.licence),
    ("good for", lambda known: known.good_for),
)


def available(catalogue: Sequence[KnownModel], screen: Screen) -> Iterable[str]:
    """Lays out the known models, and under them those that are refused, each with the reason."""
    served = [known for known in catalogue if not known.unsupported]
    head, rows = [name for name, _ in _KNOWN], [[of(known) for _, of in _KNOWN] for known in served]
    if _fits(head, rows, screen):
        yield from table(head, rows, screen)
    else:
        for known in served:
            yield from _paragraph(known, screen)
    refused = [known for known in catalogue if known.unsupported]
    if refused:
        yield ""
    for known in refused:
        yield from _refusal(known, screen)


def _paragraph(known: KnownModel, screen: Screen) -> Iterable[str]:
    """Lays out a known model in two lines or three, for a screen on which the table has no room."""
    facts = [
        million(known.parameters) if known.parameters else "",
        f"{known.max_tokens} tokens" if known.max_tokens else "",
        " ".join(known.languages),
        f"licence {known.licence}" if known.licence else "",
    ]
    text = "; ".join(filter(None, [", ".join(filter(None, facts)), known.good_for]))
    yield screen.paint(printable(known.id), "bold")
    width = screen.width or 80
    for line in textwrap.wrap(printable(text), width, initial_indent="  ", subsequent_indent="  "):
        yield clip(line, width)


def _refusal(known: KnownModel, screen: Screen) -> Iterable[str]:
    """Says why a known model is not served, in as many lines as the screen needs; none of them cuts an id."""
    mark = "not served:"
    text = f"{mark} {printable(f'{known.id}: {known.unsupported}')}"
    wrap = textwrap.TextWrapper(
        screen.width or len(text), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    lines = wrap.wrap(text)
    yield screen.paint(mark, "dim") + lines[0].removeprefix(mark)
    yield from lines[1:]


def health(health: Health) -> Iterable[str]:
    """Lays out a model's health in one line."""
    state = f"{health.state.value.upper()} and {'serving' if health.serving else 'not serving'}"
    queue = f"{health.queue_tokens} of {health.queue_capacity_tokens} tokens queued"
    yield f"{printable(health.model)} is {state}, {queue} (rerank-grpc {health.version})"


def bare_health(serving: bool) -> Iterable[str]:
    """Lays out what a server tells of the default model without an accepted token."""
    state = "serving" if serving else "not serving"
    yield f"the default model is {state}; no more is told without a token that the server accepts"


def error_line(text: str) -> str:
    """Makes the last line of a command that fails."""
    return f"rerank-grpc: error: {printable(text)}"


def warn(text: str) -> None:
    """Prints a warning in one line to stderr."""
    print(
        Screen.of(sys.stderr).paint(error_line(text).replace("error", "warning", 1), "yellow"),
        file=sys.stderr,
    )


def fail(text: str, status: int) -> int:
    """Prints an error in one line to stderr; returns the given exit status."""
    screen = Screen.of(sys.stderr)
    print(screen.paint(error_line(text), "red"), file=sys.stderr)
    return status
