"""The models that are asked about, which of them are at hand, and which a constraint leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rerank_grpc.checkpoints.catalogue import Catalogue, KnownModel, PublishedQuality
from rerank_grpc.checkpoints.lookup import EMBEDDED, Source, find_package
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError, ModelLoadError

EMBEDDED_IS = "sentence-transformers/all-MiniLM-L6-v2"
ANY_LANGUAGE = "multilingual"
# Values of a shape that change the memory, and barely the speed.
TABLES = ("vocab_size", "max_position_embeddings", "type_vocab_size")
ShapeKey: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class ModelCandidate:
    """A model that may be recommended; without a directory it can be made of its shape, if it has one."""

    name: str
    known: KnownModel
    directory: Path | None = None

    @property
    def shape_key(self) -> ShapeKey | None:
        """Equal for models of about equal speed; None where the shape is unknown."""
        known = self.known
        if not known.shape:
            return None
        shape = {name: value for name, value in known.shape.items() if name not in TABLES}
        return known.kind, known.family, repr(sorted(shape.items()))

    def speaks(self, language: str) -> bool:
        """Whether the catalogue says that the model is for a language, or for many."""
        return language in self.known.languages or ANY_LANGUAGE in self.known.languages

    def quality(self, benchmark: str) -> PublishedQuality | None:
        """Finds the published figure of a benchmark."""
        return next((each for each in self.known.quality if each.benchmark == benchmark), None)


@dataclass(frozen=True, slots=True)
class Constraints:
    """The demands on a model: its languages, its licence, whether that must allow commercial use."""

    languages: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    commercial: bool = False

    def refuse(self, known: KnownModel) -> str:
        """Says why a model does not meet them; "" if it does."""
        spoken = {*known.languages}
        if missing := [each for each in self.languages if not spoken & {each, ANY_LANGUAGE}]:
            return f"it is not said to know {', '.join(missing)}"
        licence = known.licence or "none stated"
        if self.licences and known.licence.lower() not in map(str.lower, self.licences):
            return f"its licence is {licence}"
        if self.commercial and (known.noncommercial or known.licence in ("", "none stated")):
            return f"its licence, {licence}, does not allow commercial use"
        return ""


def find_candidates(
    names: Sequence[str], catalogue: Catalogue, settings: ServerSettings
) -> list[ModelCandidate]:
    """Finds the named models, or without names the embedded one and all of the catalogue that are served.

    Those at hand stand first, and then the smaller before the larger. Raises ConfigurationError for a name
    that is neither on this machine nor in the catalogue, and for a refused model.
    """
    found = list(_named(names, catalogue, settings) if names else _all(catalogue, settings))
    return sorted(found, key=lambda each: (each.directory is None, each.known.parameters))


def _all(catalogue: Catalogue, settings: ServerSettings) -> Iterator[ModelCandidate]:
    if find_package() is not None:
        yield from _named([EMBEDDED], catalogue, settings)
    for known in catalogue:
        if not known.unsupported:
            yield ModelCandidate(known.short, known, _directory(Source.of(known.id, catalogue), settings))


def _named(names: Iterable[str], catalogue: Catalogue, settings: ServerSettings) -> Iterator[ModelCandidate]:
    for name in dict.fromkeys(names):
        source = Source.of(name, catalogue)
        directory = _directory(source, settings)
        known = source.known or source.namesake
        if name == EMBEDDED:
            directory, _ = source.locate(settings.models_dir)
            known = catalogue.find(EMBEDDED_IS)
        if directory is None and known is None:
            raise ConfigurationError(
                f"{name}: neither on this machine nor in the catalogue, and so of no known shape: "
                f"'rerank-grpc download {name}' fetches a model of the hub"
            )
        yield ModelCandidate(name, known or KnownModel(name), directory)


def _directory(source: Source, settings: ServerSettings) -> Path | None:
    try:
        found = source.find(settings.models_dir)
    except ModelLoadError:
        return None
    return found[0] if found else None
