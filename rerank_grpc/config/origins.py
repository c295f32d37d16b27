"""The origin of an option's value: a flag, else a variable, else a file, else nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rerank_grpc.config.options import Option

Flags = Mapping[str, str | Sequence[str] | None]


class Origin(NamedTuple):
    """The flag, variable or file that a value came from; the kind is what a reader calls it."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Given(NamedTuple):
    """The texts that an option is given, several where it is repeatable; `where` begins errors about them."""

    texts: tuple[str, ...]
    origin: Origin
    where: str


class Effective(NamedTuple):
    """One setting as it holds, in the texts that an operator would type; without origins it is the default.

    A secret has no option and stands in no file, and its text only counts it.
    """

    name: str
    texts: tuple[str, ...]
    origins: tuple[Origin, ...]
    option: Option | None = None

    @classmethod
    def of(cls, option: Option, given: Given | None) -> Effective:
        """Takes what an option is given, else its default."""
        if given is not None:
            return cls(option.name, given.texts, (given.origin,), option)
        default = option.default_text
        texts = default.split(",") if option.repeatable else [default]
        return cls(option.name, tuple(filter(None, texts)), (), option)


def gather(
    options: Iterable[Option], flags: Flags, environment: Mapping[str, str], file: Mapping[str, Given]
) -> dict[str, Given]:
    """Finds the texts of each option, by its name; an option that nothing gives is left out."""
    found = (
        (option.name, _flag(option, flags) or _variable(option, environment) or file.get(option.name))
        for option in options
    )
    return {name: given for name, given in found if given is not None}


def _flag(option: Option, flags: Flags) -> Given | None:
    given, flag = flags.get(option.name), f"--{option.name}"
    return None if given is None else Given(_texts(option, given), Origin("flag", flag), flag)


def _variable(option: Option, environment: Mapping[str, str]) -> Given | None:
    # An empty variable counts as unset: compose files pass those on.
    text, name = environment.get(option.variable), option.variable
    return Given(_texts(option, text), Origin("variable", name), name) if text else None


def _texts(option: Option, given: str | Sequence[str]) -> tuple[str, ...]:
    if not option.repeatable:
        return (str(given),)
    texts = given.split(",") if isinstance(given, str) else given
    return tuple(text.strip() for text in texts)


def where_of(name: str, given: Mapping[str, Given]) -> str:
    """Begins an error about an option, by the place that gives it."""
    return given[name].where if name in given else f"--{name}"


def taken_out(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Takes out the values of one nested dataclass, under their names there."""
    return {key.removeprefix(prefix): values.pop(key) for key in list(values) if key.startswith(prefix)}
