"""The known models, their properties, and the reasons of refusals."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rerank_grpc.errors import ConfigurationError, ModelLoadError
from rerank_grpc.types import Scoring

NEWEST = "main"


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A pair with its known logit or else score."""

    query: str
    document: str
    logit: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An entry; catalogue.toml explains each field; `languages` and `licence` are for people."""

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

    def check(self, *, kind: str, family: str, pooling: str, directory: Path) -> None:
        """Raises ModelLoadError if the files under its name are another model's."""
        for what, found in (("family", family), ("pooling", pooling), ("kind", kind)):
            said = getattr(self, what)
            if said != found:
                raise ModelLoadError(
                    f"{directory}: its {what} is {found}, and {self.id} has {said}: "
                    "copy the files of the model again"
                )


class Catalogue:
    """Known models by id and by short name, in any case."""

    def __init__(self, models: Iterable[KnownModel]) -> None:
        self._models = {known.id: known for known in models}  # a later entry replaces an earlier one
        self._names = {name.lower(): known for known in self for name in (known.short, known.id)}

    def __iter__(self) -> Iterator[KnownModel]:
        return iter(self._models.values())

    def find(self, name: str) -> KnownModel | None:
        return self._names.get(name.lower())


@cache
def builtin() -> Catalogue:
    """Reads the catalogue that comes with this version."""
    text = files("rerank_grpc.checkpoints").joinpath("catalogue.toml").read_text("utf-8")
    return Catalogue(_models(text, "catalogue.toml"))


def read_catalogue(path: Path | None) -> Catalogue:
    """Reads the built-in catalogue and, over it, the operator's file; raises ConfigurationError."""
    if path is None:
        return builtin()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"--catalogue: cannot read {str(path)!r}: {reason}") from None
    return Catalogue([*builtin(), *_models(text, str(path))])


KEYS = frozenset(each.name for each in fields(KnownModel))
REQUIRED = ("kind", "family", "max_tokens", "pooling", "scoring")
TYPES: Mapping[str, type] = {"max_tokens": int, "memory_mib": dict, "languages": list, "known": list}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "kind": ("cross-encoder", "bi-encoder"),
    "pooling": ("first", "mean", "last"),
    "scoring": tuple(each.value for each in Scoring),
}


def _models(text: str, origin: str) -> list[KnownModel]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{origin}: not TOML: {error}") from None
    if set(tables) - {"model"} or not isinstance(tables.get("model", []), list):
        raise ConfigurationError(f"{origin}: holds more than [[model]] tables")
    return [_model(table, origin) for table in tables.get("model", [])]


def _model(table: Mapping[str, Any], origin: str) -> KnownModel:
    where = f"{origin}: model {str(table.get('id', '?'))!r}"
    _check_types(table, where)
    if table.get("unsupported"):
        return KnownModel(table["id"], unsupported=table["unsupported"])
    for key in REQUIRED:
        if key not in table:
            raise ConfigurationError(f"{where}: {key} is missing")
    for key, choices in CHOICES.items():
        if table[key] not in choices:
            listed = ", ".join(choices)
            raise ConfigurationError(f"{where}: {key} is {table[key]!r}, which is none of {listed}")
    known = tuple(_pair(pair, where) for pair in table.get("known", ()))
    languages = tuple(table.get("languages", ()))
    scoring = Scoring(table["scoring"])
    return KnownModel(**{**table, "scoring": scoring, "languages": languages, "known": known})


def _check_types(table: Mapping[str, Any], where: str) -> None:
    for key, value in table.items():
        if key not in KEYS:
            raise ConfigurationError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(KEYS))}")
        if not isinstance(value, TYPES.get(key, str)):
            raise ConfigurationError(f"{where}: {key} is {value!r}, which is of the wrong type")
    if "id" not in table or table["id"].count("/") != 1:
        raise ConfigurationError(f"{where}: id is not the hub's ORG/NAME")


def _pair(table: object, where: str) -> KnownPair:
    try:
        pair = KnownPair(**table)  # type: ignore[arg-type]
    except TypeError:
        pair = KnownPair("", "")
    if (pair.logit is None) == (pair.score is None):
        raise ConfigurationError(f"{where}: a known pair has query, document, and either logit or score")
    return pair
