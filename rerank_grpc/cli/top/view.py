"""The layout of `top`: figures as rich's renderables, within a terminal's width and height."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rerank_grpc.cli.terminal import clip, printable
from rerank_grpc.cli.top.figures import Figures, ModelFigures, Tally, busiest
from rerank_grpc.units import size

NOTHING = "–"
_WIDE, _FULL = 132, 76  # cells from which a model takes one line, and from which two with every figure
_TOTALS = 60  # cells from which tallies have their totals
_MOST_TALLIES = 30
_FEWEST_TALLIES = 3
_LONGEST_NAME, _LONGEST_REASON = 40, 24  # cells
_STATES = {"ready": "green", "loading": "yellow", "unloading": "yellow", "failed": "bold red"}
_ALARMING = 0.8  # the share of a queue from which its colour warns


class Column(NamedTuple):
    """A figure of a model: its head, and how it is written; numbers stand at the right."""

    head: str
    of: Callable[[ModelFigures], Text]
    justify: Literal["left", "right"] = "right"


def draw(figures: Figures, url: str, note: str, width: int, height: int | None) -> RenderableType:
    """Lays out figures in at most `height` lines, None for as many as there are.

    `note` stands in the place of what the rates are of, where there is something to say.
    """
    head, columns = _head(figures, url, note), _columns(width)
    deep, wanted = len(columns[0]), max(len(figures.refusals), len(figures.errors), 1)
    models, tallies = len(figures.models), min(wanted, _MOST_TALLIES)
    if height is not None:
        # Besides: a blank line, the head of the models, a blank line, the head of the tallies.
        room = height - len(head) - deep - 3
        tallies = min(tallies, max(room - deep * models, _FEWEST_TALLIES))
        models = max((room - tallies) // deep, 1)
    tables = (_models(figures.models, columns, models), _tallies(figures, tallies, width))
    return Group(*head, Text(), *tables[0], Text(), tables[1])


# The head


def _head(figures: Figures, url: str, note: str) -> list[Text]:
    build = {name: _clean(value, 24) for name, value in figures.build.items()}
    named = [build.get("device", ""), build.get("precision", "")]
    named += [f"torch {build['torch']}"] if build.get("torch") else []
    if figures.used is not None and figures.free is not None:
        named.append(f"memory {_bytes(figures.used)} used, {_bytes(figures.free)} free")
    first = Text.assemble(
        (f"rerank-grpc {build.get('version', '')}".rstrip(), "bold"),
        f"  up {_uptime(figures.uptime)}  ",
        (_clean(url, 200), "dim"),
    )
    # A REST server alone has no device, and so nothing to say in the second line.
    second = [_line(Text(", ".join(filter(None, named))))] if any(named) else []
    return [_line(first), *second, _line(_note(figures, note))]


def _note(figures: Figures, note: str) -> Text:
    if note:
        return Text(printable(note), "bold red")
    if not figures.window_seconds:
        return Text("rates come with the second scrape", "dim")
    return Text(
        f"rates of {figures.rate_seconds:.0f} s; p50, p99, fill, busy of {figures.window_seconds:.0f} s",
        "dim",
    )


def _line(text: Text) -> Text:
    """Keeps a text on its lines; one that is too long ends in "…"."""
    return Text.assemble(text, no_wrap=True, overflow="ellipsis")


# The models


def _name(model: ModelFigures) -> Text:
    return Text(_clean(model.name, _LONGEST_NAME) or NOTHING, "bold")


def _state(model: ModelFigures) -> Text:
    state = _clean(model.state, 12)
    return Text(state or NOTHING, _STATES.get(state, "dim"))


def _full(model: ModelFigures) -> Text:
    return Text(_percent(model.full), "bold yellow" if (model.full or 0.0) >= _ALARMING else "")


_NAME, _STATE = Column("model", _name, "left"), Column("state", _state, "left")
_CALLS = Column("calls/s", lambda model: Text(_count(model.calls)))
_TOKENS = Column("tokens/s", lambda model: Text(_count(model.tokens)))
_P99 = Column("p99", lambda model: Text(_seconds(model.p99)))
_QUEUE_FULL = Column("full", _full)
# Two figures stand above one another where the terminal is too narrow for all of them side by side.
_PAIRS = (
    (_NAME, _STATE),
    (
        Column("memory", lambda model: Text(_bytes(model.memory))),
        Column("inside", lambda model: Text(_count(model.inside))),
    ),
    (_CALLS, Column("docs/s", lambda model: Text(_count(model.documents)))),
    (_TOKENS, Column("busy", lambda model: Text(_percent(model.busy)))),
    (Column("p50", lambda model: Text(_seconds(model.p50))), _P99),
    (Column("queue", lambda model: Text(_count(model.queue))), _QUEUE_FULL),
    (
        Column("oldest", lambda model: Text(_seconds(model.oldest))),
        Column("fill", lambda model: Text(_percent(model.fill))),
    ),
)
_FEW = ((_NAME, _STATE), (_CALLS, _TOKENS), (_P99, _QUEUE_FULL))


def _columns(width: int) -> Sequence[Sequence[Column]]:
    """Chooses what stands side by side: groups of columns, each of as many lines."""
    if width >= _WIDE:
        return [(column,) for pair in _PAIRS for column in pair]
    return _PAIRS if width >= _FULL else _FEW


def _models(
    models: Sequence[ModelFigures], columns: Sequence[Sequence[Column]], most: int
) -> list[RenderableType]:
    """Lays out at most so many models; where they are more, the busiest and how many are left out."""
    rest = max(len(models) - most, 0)
    if rest:
        # The line that says so takes the place of a model.
        models = busiest(models)[: max(most - 1, 1)]
        rest += most - len(models)
    table = _table()
    for place, group in enumerate(columns):
        head = _line(Text("\n".join(column.head for column in group), "dim"))
        table.add_column(head, justify=group[0].justify, no_wrap=place > 0)
    for model in models:
        table.add_row(*(_line(Text("\n").join(column.of(model) for column in group)) for group in columns))
    below = [f"… and {rest} more"] if rest else [] if models else ["no models"]
    return [table, *(_line(Text(line, "dim")) for line in below)]


# What was refused, and what failed


def _tallies(figures: Figures, most: int, width: int) -> RenderableType:
    """Lays out refusals by reason beside errors by code, in at most so many lines below their head."""
    heads = ("per s", "so far") if width >= _TOTALS else ("per s",)
    table = _table()
    for name in ("refused", "errors"):
        table.add_column(_line(Text(name, "dim")))
        for head in heads:
            table.add_column(_line(Text(head, "dim")), justify="right", no_wrap=True)
    empty, count = (Text(),) * (1 + len(heads)), 1 + len(heads)
    rows = zip_longest(_cells(figures.refusals, most), _cells(figures.errors, most), fillvalue=empty)
    for refusal, error in rows:
        table.add_row(*refusal[:count], *error[:count])
    return table


def _cells(tallies: Sequence[Tally], most: int) -> list[tuple[Text, ...]]:
    if not tallies:
        return [(Text("none", "dim"), Text(), Text())]
    shown = tallies if len(tallies) <= most else tallies[: most - 1]
    rows: list[tuple[Text, ...]] = [
        (
            _line(Text(_clean(tally.name, _LONGEST_REASON) or NOTHING, "yellow" if tally.rate else "")),
            Text(_count(tally.rate)),
            Text(_count(tally.total)),
        )
        for tally in shown
    ]
    if len(shown) < len(tallies):
        rows.append((_line(Text(f"… and {len(tallies) - len(shown)} more", "dim")), Text(), Text()))
    return rows


# A table, and the words of its cells


def _table() -> Table:
    """Makes a table without lines, whose first columns give way where the width is too small."""
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")


def _clean(text: str, most: int) -> str:
    return clip(printable(text[: 4 * most]), most)


def _bytes(count: float | None) -> str:
    return clip(size(count), 12) if count else NOTHING


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{min(max(100 * share, 0.0), 999.0):.0f} %"


def _count(count: float | None) -> str:
    """Writes a number in at most five characters: 0.3, 12, 1.2k, 35M."""
    if count is None:
        return NOTHING
    for unit in ("", "k", "M", "G", "T"):
        if abs(count) < 9.95 and not (unit == "" and count == round(count)):
            return f"{count:.1f}{unit}"
        if abs(count) < 999.5:
            return f"{count:.0f}{unit}"
        count /= 1000
    return "many"


def _seconds(seconds: float | None) -> str:
    """Writes a time in at most seven characters: 0.4 ms, 35 ms, 1.2 s, 87 s, 3 min."""
    if seconds is None:
        return NOTHING
    if seconds <= 0:
        return "0 s"
    for unit, factor, most in (("ms", 1e3, 0.9995), ("s", 1.0, 119.5), ("min", 1 / 60, 59_970.0)):
        if seconds < most:
            amount = seconds * factor
            return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"
    return "long"


def _uptime(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{_count(days)} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min" if minutes else f"{seconds:.0f} s"
