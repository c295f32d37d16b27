"""Finds a model's files: a directory, the models directory, the hub's cache, and at last the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rerank_grpc.checkpoints import hub
from rerank_grpc.checkpoints.catalogue import NEWEST, Catalogue, KnownModel, builtin
from rerank_grpc.checkpoints.transfer import Progress
from rerank_grpc.errors import ModelLoadError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[\w][\w.-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A model's directory, and what the catalogue knows of it.

    Attributes:
        directory: where its files lie.
        entry: of a model named by its hub id or short name, if it is known.
    """

    directory: Path
    entry: KnownModel | None = None


@dataclass(frozen=True, slots=True)
class HubName:
    """What a hub id, a short name of the catalogue, or either with @REVISION means."""

    id: str
    revision: str
    entry: KnownModel | None
    pinned: bool


def read_name(source: str, catalogue: Catalogue) -> HubName | None:
    """Reads a source as a name on the hub; None if it is none. Raises ModelLoadError for a refused model."""
    name, at, revision = source.partition("@")
    entry = catalogue.supported(name)
    if entry is None and not HUB_ID.fullmatch(name):
        return None
    if at and not REVISION.fullmatch(revision):
        raise ModelLoadError(f"{source}: {revision!r} is no revision: give a commit, branch or tag")
    known = entry.revision if entry else NEWEST
    return HubName(entry.id if entry else name, revision or known, entry, bool(at))


def locate(source: str, *, models_dir: Path, catalogue: Catalogue | None = None) -> Source:
    """Finds a model's files, fetching them if they are not here; raises ModelLoadError."""
    name = read_name(source, catalogue or builtin())
    if name is not None:
        local = models_dir / name.id.rpartition("/")[2]
        if local.is_dir() and not name.pinned:
            return Source(local, name.entry)
        if not Path(source).is_dir():
            found = hub.cached(name.id, name.revision, exact=name.pinned)
            return Source(found or hub.fetch(name.id, name.revision), name.entry)
    directory = Path(source).expanduser()
    if not directory.is_dir():
        raise ModelLoadError(
            f"{source}: no such directory: "
            "give 'embedded', a directory, or a hub id such as BAAI/bge-reranker-base"
        )
    return Source(directory)


def is_local(source: str, *, models_dir: Path, catalogue: Catalogue) -> bool:
    """Whether a model's files are on this machine; asks nobody, and never raises."""
    try:
        name = read_name(source, catalogue)
    except ModelLoadError:
        return False
    if Path(source).expanduser().is_dir():
        return True
    if name is None:
        return False
    if not name.pinned and (models_dir / name.id.rpartition("/")[2]).is_dir():
        return True
    return hub.cached(name.id, name.revision, exact=name.pinned) is not None


def download(source: str, *, catalogue: Catalogue, progress: Progress) -> Path:
    """Fetches a model by name, pickled weights too where there are no others; raises ModelLoadError."""
    name = read_name(source, catalogue)
    if name is None:
        known = ", ".join(entry.short for entry in catalogue if not entry.unsupported)
        raise ModelLoadError(f"{source}: neither a hub id such as ORG/NAME nor one of {known}")
    here = hub.cached(name.id, name.revision, exact=True) if COMMIT.fullmatch(name.revision) else None
    return here or hub.fetch(name.id, name.revision, progress=progress, pickled=True)
