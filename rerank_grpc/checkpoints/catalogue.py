"""The known models, their properties, and the reasons of refusals."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rerank_grpc.errors import ConfigurationError, ModelLoadError
from rerank_grpc.files.obstacles import obstacle
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
class PublishedQuality:
    """A figure of a publication: a benchmark and its metric, the value of 100, and where it was read."""

    benchmark: str
    value: float
    languages: tuple[str, ...]  # of the benchmark's texts
    source: str
    notes: tuple[str, ...] = ()  # of the source, on how the value was found


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An entry; catalogue.toml explains each field, and an empty one states nothing."""

    id: str
    kind: str = ""
    family: str = ""
    max_tokens: int = 0
    pooling: str = ""
    scoring: Scoring | None = None
    scale: float = 1.0
    offset: float = 0.0
    prompt: Mapping[str, Any] = field(default_factory=dict)  # its types are checked here, its meaning is not
    revision: str = NEWEST
    memory_mib: Mapping[str, int] = field(default_factory=dict)
    parameters: int = 0
    shape: Mapping[str, Any] = field(default_factory=dict)  # of config.json; transformers checks it
    quality: tuple[PublishedQuality, ...] = ()
    languages: tuple[str, ...] = ()
    licence: str = ""
    good_for: str = ""
    served: str = ""
    evidence: str = ""
    unsupported: str = ""
    known: tuple[KnownPair, ...] = ()

    @property
    def short(self) -> str:
        """The part of the id after the slash."""
        return self.id.rpartition("/")[2]

    @property
    def noncommercial(self) -> bool:
        """Whether its licence forbids commercial use, by the licence's name."""
        return re.search(r"\bnc\b|non-?commercial", self.licence, re.IGNORECASE) is not None

    @property
    def caution(self) -> str:
        """The warning that its licence calls for; "" if it calls for none."""
        return f"its licence, {self.licence}, forbids commercial use" if self.noncommercial else ""

    def check(self, *, kind: str, family: str, pooling: str, directory: Path) -> None:
        """Raises ModelLoadError if the files under its name are not what the entry states."""
        for what, found in (("family", family), ("pooling", pooling), ("kind", kind)):
            said = getattr(self, what)
            if said and said != found:
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
        reason = obstacle(path, error) if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"--catalogue: cannot read {str(path)!r}: {reason}") from None
    return Catalogue([*builtin(), *_models(text, str(path))])


KEYS = frozenset(each.name for each in fields(KnownModel))
REQUIRED = ("kind", "family")
TYPES: Mapping[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "parameters": (int,),
    "scale": (int, float),
    "offset": (int, float),
    "memory_mib": (dict,),
    "shape": (dict,),
    "quality": (list,),
    "prompt": (dict,),
    "languages": (list,),
    "known": (list,),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "kind": ("cross-encoder", "bi-encoder", "late interaction"),
    "pooling": ("first", "mean", "max", "last"),
    "scoring": tuple(each.value for each in Scoring),
    "served": ("packed", "padded"),
}
PROMPT_KEYS = ("segments", "instruction", "answers", "strips")


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
    for key in () if table.get("unsupported") else REQUIRED:
        if key not in table:
            raise ConfigurationError(f"{where}: {key} is missing")
    if not 0 < table.get("scale", 1) < math.inf or not math.isfinite(table.get("offset", 0)):
        raise ConfigurationError(f"{where}: scale is a number above 0, and offset any number")
    for key, choices in CHOICES.items():
        if key in table and table[key] not in choices:
            listed = ", ".join(choices)
            raise ConfigurationError(f"{where}: {key} is {table[key]!r}, which is none of {listed}")
    if "prompt" in table:
        _check_prompt(table["prompt"], where)
    values = dict(table)
    if "scoring" in table:
        values["scoring"] = Scoring(table["scoring"])
    values["known"] = tuple(_pair(pair, where) for pair in table.get("known", ()))
    values["quality"] = tuple(_quality(figure, where) for figure in table.get("quality", ()))
    values["languages"] = tuple(table.get("languages", ()))
    return KnownModel(**values)


def _check_types(table: Mapping[str, Any], where: str) -> None:
    for key, value in table.items():
        if key not in KEYS:
            raise ConfigurationError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(KEYS))}")
        if type(value) not in TYPES.get(key, (str,)) or (key == "languages" and not _are_texts(value)):
            raise ConfigurationError(f"{where}: {key} is {value!r}, which is of the wrong type")
    if "id" not in table or table["id"].count("/") != 1:
        raise ConfigurationError(f"{where}: id is not the hub's ORG/NAME")


def _check_prompt(prompt: Mapping[str, Any], where: str) -> None:
    for key, value in prompt.items():
        if key not in PROMPT_KEYS:
            known = ", ".join(sorted(PROMPT_KEYS))
            raise ConfigurationError(f"{where}: unknown key 'prompt.{key}'; known: {known}")
        if not (isinstance(value, str) if key == "instruction" else _are_texts(value)):
            raise ConfigurationError(f"{where}: prompt.{key} is {value!r}, which is of the wrong type")
    if not prompt.get("segments"):
        raise ConfigurationError(f"{where}: prompt.segments is missing")
    if len(prompt.get("answers", ("",))) not in (1, 2):
        raise ConfigurationError(
            f"{where}: prompt.answers is {prompt['answers']!r}: one word or two are read"
        )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _pair(table: object, where: str) -> KnownPair:
    try:
        pair = KnownPair(**table)  # type: ignore[arg-type]
    except TypeError:
        pair = KnownPair("", "")
    if (pair.logit is None) == (pair.score is None):
        raise ConfigurationError(f"{where}: a known pair has query, document, and either logit or score")
    return pair


def _quality(table: object, where: str) -> PublishedQuality:
    figure: dict[str, Any] = {"notes": []} | (table if isinstance(table, dict) else {})
    texts = all(isinstance(figure.get(key), str) for key in ("benchmark", "source"))
    lists = all(_are_texts(figure.get(key)) for key in ("languages", "notes"))
    if len(figure) != 5 or not texts or not lists:
        raise ConfigurationError(
            f"{where}: quality has benchmark, value, languages and source, each time, and perhaps notes"
        )
    if type(figure.get("value")) not in (int, float) or not 0 <= figure["value"] <= 100:
        raise ConfigurationError(f"{where}: quality: value is a number from 0 to 100")
    return PublishedQuality(**figure | {key: tuple(figure[key]) for key in ("languages", "notes")})
