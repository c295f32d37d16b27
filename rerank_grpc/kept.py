"""Facts that one start finds out and the next need not, in a folder that only this user can write to."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

# What a fact depends on, by name: it is found again only where all of it is the same.
Key: TypeAlias = Mapping[str, str | int | float | bool]
LARGEST_FACT = 1 << 20  # bytes


def cache_folder() -> Path:
    """The folder that outlives a start; a new one for this start alone if the home cannot be trusted."""
    try:
        folder = Path.home() / ".cache" / "rerank-grpc"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and not folder.stat().st_mode & 0o022:
            return folder
    except (OSError, RuntimeError):  # no home
        pass
    return Path(tempfile.mkdtemp(prefix="rerank-grpc-"))


class Kept:
    """Facts of one kind, a file each; a damaged or foreign file counts as absent, and is written anew."""

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        self._folder = (folder or cache_folder()) / kind

    def read(self, key: Key) -> dict[str, Any] | None:
        """Finds the fact of a key; never raises."""
        try:
            path = self._path(key)
            if path.stat().st_size > LARGEST_FACT:
                return None
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.get("key") != dict(key):
            return None
        value = found.get("value")
        return value if isinstance(value, dict) and found.get("digest") == _digest(value) else None

    def write(self, key: Key, value: Mapping[str, Any]) -> None:
        """Keeps a fact for the next start; never raises, since a start without it is only slower."""
        path = self._path(key)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False, encoding="utf-8") as file:
                json.dump({"key": dict(key), "value": dict(value), "digest": _digest(value)}, file)
            Path(file.name).replace(path)
        except OSError:
            pass

    def _path(self, key: Key) -> Path:
        return self._folder / f"{_digest(key)}.json"


def _digest(fact: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(fact), sort_keys=True).encode()).hexdigest()[:32]
