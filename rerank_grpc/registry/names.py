"""The names by which a model may be called: its own, its aliases, and its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rerank_grpc.checkpoints.sources import HUB_ID
from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.errors import ConfigurationError, UnknownModel


class Names:
    """The models' indices by name; "" is the first.

    A source is a name too, with and without its @REVISION, unless another model
    has that name already. Hub ids are listed among `aliases`, paths never.
    Raises ConfigurationError if two models are configured with one name.
    """

    def __init__(self, specs: Sequence[ModelSpec]) -> None:
        self._found = {"": 0}
        for index, spec in enumerate(specs):
            for name in (spec.name, *spec.aliases):
                if self._found.setdefault(name, index) != index:
                    raise ConfigurationError(f"two models are named {name!r}: rename one")
        configured = set(self._found)
        for index, spec in enumerate(specs):
            self._found.setdefault(spec.source, index)
        for index, spec in enumerate(specs):
            self._found.setdefault(_unpinned(spec), index)
        self.aliases: list[tuple[str, ...]] = []
        known = []
        for index, spec in enumerate(specs):
            id_ = _hub_id(spec)
            ids = [id_] if id_ not in configured and self._found[id_] == index else []
            self.aliases.append((*spec.aliases, *ids))
            known += [spec.name, *self.aliases[-1]]
        self._known = ", ".join(known)

    def find(self, name: str) -> int:
        """Returns a model's index; raises UnknownModel."""
        index = self._found.get(name)
        if index is None:
            # The unknown name is the caller's text: it goes back to the caller, cut, and into no log.
            raise UnknownModel(
                f"no model is named {name[:100]!r}; known: {self._known}",
                metadata={"model": name[:100], "known_models": self._known},
            )
        return index


def _unpinned(spec: ModelSpec) -> str:
    return spec.source.partition("@")[0]


def _hub_id(spec: ModelSpec) -> str:
    """Returns a source's hub id; "" for a path, which may be a relative one of the same form."""
    id_ = _unpinned(spec)
    return id_ if HUB_ID.fullmatch(id_) and not Path(spec.source).is_dir() else ""
