"""The catalogue: which models are known, what each of them is, and which are refused and why."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rerank_grpc.errors import ConfigurationError, ModelLoadError
from rerank_grpc.types import Scoring

KINDS = ("cross-encoder", "bi-encoder")
POOLINGS = ("first", "mean", "last")
NEWEST = "main"


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A pair whose logit, or else score, is known."""

    query: str
    document: str
    logit: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of a model; catalogue.toml says what each field is."""

    id: str
    kind: str = ""
    family: str = ""
    max_tokens: int = 0
    pooling: str = ""
    scoring: Scoring = Scoring.SIGMOID
    revision: str = NEWEST
    memory_mib: Mapping[str, int] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    licence: str = ""
    unsupported: str = ""
    known: tuple[KnownPair, ...] = ()

    @property
    def short(self) -> str:
        """The part of the id after the slash."""
        return self.id.rpartition("/")[2]

    def check(self, *, family: str, pooling: str, directory: Path) -> None:
        """Raises ModelLoadError if files that bear its name are another model's."""
        for what, said, found in (("family", self.family, family), ("pooling", self.pooling, pooling)):
            if said != found:
                raise ModelLoadError(
                    f"{directory}: its {what} is {found}, and {self.id} has {said}: "
                    "copy the files of the model again"
                )


class Catalogue:
    """Entries by id and by short name, in any case."""

    def __init__(self, entries: Mapping[str, KnownModel]) -> None:
        self._entries = dict(entries)
        self._names = {name.lower(): entry for entry in entries.values() for name in (entry.short, entry.id)}

    def __iter__(self) -> Any:
        return iter(self._entries.values())

    def find(self, name: str) -> KnownModel | None:
        """Finds an entry by its id or short name."""
        return self._names.get(name.lower())

    def supported(self, name: str) -> KnownModel | None:
        """Like `find`, but raises ModelLoadError for a model that is refused."""
        entry = self.find(name)
        if entry is not None and entry.unsupported:
            raise ModelLoadError(f"{entry.id} is not supported: {entry.unsupported}")
        return entry

    def describing(self, source: str) -> KnownModel | None:
        """Finds the entry that a directory is named after, or that a source names."""
        return self.find(source) or self.find(Path(source).name)


@cache
def builtin() -> Catalogue:
    """Reads the catalogue that comes with this version."""
    text = files("rerank_grpc.checkpoints").joinpath("catalogue.toml").read_text("utf-8")
    return Catalogue(_entries(text, "catalogue.toml"))


def read_catalogue(path: Path | None) -> Catalogue:
    """Reads the built-in catalogue and, over it, a file of the operator's; raises ConfigurationError."""
    if path is None:
        return builtin()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"--catalogue: cannot read {str(path)!r}: {reason}") from None
    return Catalogue({entry.id: entry for entry in builtin()} | _entries(text, str(path)))


def _entries(text: str, origin: str) -> dict[str, KnownModel]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{origin}: not TOML: {error}") from None
    if set(tables) - {"model"} or not isinstance(tables.get("model", []), list):
        raise ConfigurationError(f"{origin}: holds more than [[model]] tables")
    entries = [_entry(table, origin) for table in tables.get("model", [])]
    return {entry.id: entry for entry in entries}


_SHAPES: Mapping[str, type] = {
    "max_tokens": int,
    "memory_mib": dict,
    "languages": list,
    "known": list,
}


def _entry(table: Mapping[str, Any], origin: str) -> KnownModel:
    where = f"{origin}: model {str(table.get('id', '?'))!r}"
    known = {each.name for each in fields(KnownModel)}
    for key, value in table.items():
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")
        if not isinstance(value, _SHAPES.get(key, str)):
            raise ConfigurationError(f"{where}: {key} is {value!r}, which is of the wrong type")
    if "id" not in table or (table["id"].count("/") != 1):
        raise ConfigurationError(f"{where}: id is not the hub's ORG/NAME")
    if table.get("unsupported"):
        return KnownModel(table["id"], unsupported=table["unsupported"])
    missing = [key for key in ("kind", "family", "max_tokens", "pooling", "scoring") if key not in table]
    if missing:
        raise ConfigurationError(f"{where}: {missing[0]} is missing")
    for key, choices in (
        ("kind", KINDS),
        ("pooling", POOLINGS),
        ("scoring", [each.value for each in Scoring]),
    ):
        if table[key] not in choices:
            raise ConfigurationError(
                f"{where}: {key} is {table[key]!r}, which is none of {', '.join(choices)}"
            )
    changes = {
        "scoring": Scoring(table["scoring"]),
        "languages": tuple(table.get("languages", ())),
        "known": tuple(_pair(pair, where) for pair in table.get("known", ())),
    }
    return KnownModel(**{**table, **changes})


def _pair(table: object, where: str) -> KnownPair:
    try:
        pair = KnownPair(**table)  # type: ignore[arg-type]
    except TypeError:
        pair = KnownPair("", "")
    if (pair.logit is None) == (pair.score is None):
        raise ConfigurationError(f"{where}: a known pair has query, document, and either logit or score")
    return pair
