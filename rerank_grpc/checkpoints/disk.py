"""Files on the disk: digested, read as JSON, and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import Any

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.files.watched import without_waiting
from rerank_grpc.kept import Kept

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE_BYTES = 16 << 20  # left free by a download or a conversion
# The age of a change from which on a later one has another time, on every file system.
SETTLED_NS = 2_000_000_000


def unreadable(path: Path, error: OSError) -> ModelLoadError:
    """Makes the error of a file that is not damaged, but cannot be read as it is mounted, linked or owned."""
    return ModelLoadError(f"{path}: cannot be read: {obstacle(path, error)}")


@contextmanager
def files_told() -> Iterator[None]:
    """Raises ModelLoadError where the block fails at a file or folder that it cannot read."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:  # of tempfile
            places = "no folder for temporary files can be written to"
            raise ModelLoadError(f"{places}: mount one, such as a tmpfs at /tmp") from error
        if error.errno is None or not isinstance(error.filename, str | os.PathLike):
            raise
        raise unreadable(Path(error.filename), error) from error


def check_listed(directory: Path) -> None:
    """Raises ModelLoadError for a folder that cannot be listed: patterns would find nothing in it."""
    try:
        with os.scandir(directory):
            pass
    except OSError as error:
        raise unreadable(directory, error) from error


def is_file(path: Path) -> bool:
    """Tells whether a file is there; raises ModelLoadError where something is there that cannot be read."""
    try:
        with open(path, "rb", opener=without_waiting):
            return True
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return False
        raise unreadable(path, error) from error


def free_if_short(directory: Path, needed: int) -> int | None:
    """Returns the free bytes of a directory's disk if `needed` would not fit; else None."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return free if needed and needed + SPARE_BYTES > free else None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields a temporary name for a file or link, which gets its own name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(path: Path, digest: Callable[[], hashlib._Hash] = hashlib.sha256) -> str:
    """Digests a whole file, by default with SHA-256; returns hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, digest).hexdigest()


def kept_digest(name: str, paths: Sequence[Path], digest: Callable[[], str]) -> str:
    """Returns a digest of files, which is made again only when one of them has changed.

    `name` tells it from other digests of the same files. A file that has changed has another ctime, which a
    program cannot set. A change goes unnoticed where a file system makes its times up, as some mounts do,
    and where the medium damages a file.
    """
    before = [_identity(path) for path in paths]
    kept, key = Kept("digests"), {"digest": name, "files": json.dumps(before)}
    found = (kept.read(key) or {}).get("digest")
    if isinstance(found, str):
        return found
    changed = max(path.stat().st_ctime_ns for path in paths)
    settled, made = time_ns() - changed > SETTLED_NS, digest()
    if settled and [_identity(path) for path in paths] == before:
        kept.write(key, {"digest": made})
    return made


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, read only where it is not known."""
    return kept_digest("sha256", [path], lambda: digest_of(path))


def _identity(path: Path) -> list[str | int]:
    """Names a file's content, as far as the file system tells it."""
    found = path.stat()
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return [str(path.resolve()), found.st_size, *times, found.st_ino, found.st_dev]


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object from a JSON file; raises ModelLoadError."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: not a JSON object: copy it again")
    return value


def read_json_list(path: Path) -> list[Any]:
    """Reads a list from a JSON file; raises ModelLoadError."""
    value = _read_json(path)
    if not isinstance(value, list):
        raise ModelLoadError(f"{path}: not a JSON list: copy it again")
    return value


def check_types(table: Mapping[str, Any], types: Mapping[str, type], path: Path) -> None:
    """Raises ModelLoadError for a value of another type than its key has; None is of every type."""
    for name, expected in types.items():
        value = table.get(name)
        # In Python, True is an int too.
        if value is not None and (
            not isinstance(value, expected) or isinstance(value, bool) > (expected is bool)
        ):
            raise ModelLoadError(
                f"{path}: {name[:60]!r} is {_shown(value)} where {expected.__name__} is expected: "
                "copy it again"
            )


def _shown(value: Any) -> str:
    """Writes the beginning of a value, of which only short ones are written whole."""
    short = isinstance(value, int | float | None) or (isinstance(value, str) and len(value) <= 40)
    return repr(value)[:40] if short else f"a {type(value).__name__}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise ModelLoadError(f"{path}: no such file: copy the whole checkpoint") from None
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise ModelLoadError(f"{path}: cannot be read as JSON ({reason}): copy it again") from error
