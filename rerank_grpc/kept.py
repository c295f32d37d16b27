"""Facts that one start finds out and the next need not, in a folder that only this user can write to."""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.files.whole import write_whole

log = logging.getLogger(__name__)

# What a fact depends on, by name: it is found again only where all of it is the same.
Key: TypeAlias = Mapping[str, str | int | float | bool]
LARGEST_FACT = 1 << 20  # bytes
_making = threading.Lock()
_made: list[Path] = []  # this process's own folder


def cache_folder() -> Path:
    """The folder that outlives a start; one for this process alone if the home's cannot be trusted.

    Raises OSError where no folder can be written to.
    """
    folder, _ = _home_folder()
    if folder is not None:
        return folder
    with _making:  # models that load at the same time share one
        temporary = _temporary_folder()
    if temporary is None:
        raise OSError(errno.EROFS, "no folder can be written to")
    return temporary


def _home_folder() -> tuple[Path | None, str]:
    """Makes the home's folder, or says why it cannot be used."""
    try:
        folder = Path.home() / ".cache" / "rerank-grpc"
    except RuntimeError:
        return None, "the user has no home"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        return None, f"{folder} cannot be made: {obstacle(folder.parent, error, writing=True)}"
    if not writable:
        return None, f"{folder} cannot be written to"
    if found.st_uid != os.geteuid():
        return None, f"{folder} belongs to another user, {found.st_uid}"
    if found.st_mode & 0o022:
        return None, f"others may write to {folder}: chmod 700"
    return folder, ""


@functools.cache
def _temporary_folder() -> Path | None:
    """Makes a folder that goes with the process, and says once that the next start will not find it."""
    _, objection = _home_folder()
    remedy = "every start is a first one: let HOME be a folder that the user can write to"
    extra = {"event": "nothing_kept"}
    try:
        folder = Path(tempfile.mkdtemp(prefix="rerank-grpc-"))
    except OSError:
        log.warning("%s, and no temporary folder either, so %s", objection, remedy, extra=extra)
        return None
    log.warning("what is found out is kept in %s only: %s, so %s", folder, objection, remedy, extra=extra)
    _made.append(folder)
    atexit.register(remove_temporary)
    return folder


def remove_temporary() -> None:
    """Removes this process's own folder, if there is one, before an end that skips atexit's functions."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)


class Kept:
    """Facts of one kind, a file each; a damaged or foreign file counts as absent, and is written anew."""

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        try:
            self._folder = (folder or cache_folder()) / kind
        except OSError:  # nothing is kept: a path below a file is neither read nor written
            self._folder = Path(os.devnull) / kind

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
        text = json.dumps({"key": dict(key), "value": dict(value), "digest": _digest(value)})
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path(key), text.encode(), private=True)
        except OSError:
            pass

    def _path(self, key: Key) -> Path:
        return self._folder / f"{_digest(key)}.json"


def _digest(fact: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(fact), sort_keys=True).encode()).hexdigest()[:32]
