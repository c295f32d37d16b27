"""Transfers one file from the hub into its cache: continued where it ended, checked, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rerank_grpc.errors import ModelLoadError

SHA256 = re.compile(r"[0-9a-f]{64}")
ETAG = re.compile(r"[\w.-]{1,200}")
BLOCK = 1 << 20
CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it; what it does not say is None."""

    name: str
    size: int | None = None
    sha256: str | None = None
    git_id: str | None = None


class Progress(Protocol):
    """What is told how far a download is."""

    def begin(self, name: str, size: int | None, done: int) -> None:
        """A file is to be transferred, of which so many bytes are there."""

    def advance(self, count: int) -> None:
        """So many further bytes of it are there; negative where it starts anew."""

    def end(self) -> None:
        """It is complete and checked."""


class Silence:
    """The Progress that nobody watches."""

    def begin(self, name: str, size: int | None, done: int) -> None:
        """Says nothing."""

    def advance(self, count: int) -> None:
        """Says nothing."""

    def end(self) -> None:
        """Says nothing."""


class Transfer:
    """One file on its way into the cache."""

    def __init__(self, hub_id: str, commit: str, root: Path, file: RemoteFile, progress: Progress) -> None:
        self._hub_id, self._commit, self._root = hub_id, commit, root
        self._file, self._progress = file, progress
        self._place = root / "snapshots" / commit / file.name

    def _lock(self, etag: str) -> Path:
        path = self._root.parent / ".locks" / self._root.name / f"{etag}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self) -> None:
        """Transfers, checks and shows it."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        url = hf_hub_url(self._hub_id, self._file.name, revision=self._commit)
        remote = get_hf_file_metadata(url, retry_on_errors=True)
        if not remote.etag or not ETAG.fullmatch(remote.etag):
            raise ModelLoadError(f"{self._hub_id}: the hub gives no ETag for {self._file.name}")
        blob = self._root / "blobs" / remote.etag
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            with WeakFileLock(self._lock(remote.etag)):  # another process may be at the same file
                if not blob.exists():
                    self._fill(blob, url, remote.location, remote.size)
        replace(self._place, lambda path: _link(path, blob))

    def _fill(self, blob: Path, url: str, location: str, size: int | None) -> None:
        partial = blob.with_name(f"{blob.name}.incomplete")
        with partial.open("ab") as file:
            size = self._file.size if size is None else size
            if size is not None and file.tell() > size:
                file.truncate(0)
            self._progress.begin(self._file.name, size, file.tell())
            self._transfer(file, url, location, size)
            file.flush()
            os.fsync(file.fileno())
            reason = difference(partial, self._file, blob.name)
            if reason:
                partial.unlink()
                raise ModelLoadError(
                    f"{self._hub_id}: {self._file.name} arrived damaged ({reason}): fetch it again"
                )
            partial.replace(blob)
        self._progress.end()

    def _transfer(self, file: Any, url: str, location: str, size: int | None) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        # The client's own 10 MiB would be lost with a connection, and make a bar stand still for as long.
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
        # The token is for the hub, not for where it keeps its files.
        same = location.split("/")[2:3] == url.split("/")[2:3]
        http_get(
            location,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(token=None if same else False),
            expected_size=size,
            displayed_filename=self._file.name,
            tqdm_class=_bar_class(self._progress),
        )


def difference(path: Path, file: RemoteFile, etag: str) -> str:
    """Says how a file differs from what the hub says of it; "" if it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    expected = file.sha256 or (etag if SHA256.fullmatch(etag) else None)
    if expected is not None:
        found = _digest(path, hashlib.sha256())
        return "" if found == expected else f"its SHA-256 is not {expected}"
    if file.git_id and re.fullmatch(r"[0-9a-f]{40}", file.git_id):
        found = _digest(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
        return "" if found == file.git_id else f"its git id is not {file.git_id}"
    return ""


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file or link under a temporary name, and then gives it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    write(temporary)
    temporary.replace(path)


def _link(path: Path, blob: Path) -> None:
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # a file system, or a Windows account, without links
        shutil.copy(blob, path)


def _bar_class(progress: Progress) -> Any:
    """Makes what the hub's client takes for a progress bar."""

    class Bar:
        def __init__(self, **_: object) -> None:
            self.update = progress.advance

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar
