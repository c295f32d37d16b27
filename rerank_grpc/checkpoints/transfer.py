"""Transfers one file from the hub into its cache: continued where it ended, checked, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rerank_grpc.checkpoints.disk import COMMIT, SHA256, digest_of, written
from rerank_grpc.errors import ModelLoadError

ETAG = re.compile(r"[\w.-]{1,200}")
CHUNK_BYTES = 64 << 10  # at most this much is lost with a connection, and a progress bar moves as often
MOST_LOST, PAUSE_SECONDS = 5, 1.0  # connections lost in a row without a byte; the pause after each


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it; an unknown property is None."""

    name: str
    size: int | None = None
    sha256: str | None = None
    git_id: str | None = None


class Progress:
    """The listener of a download; this one does nothing."""

    def begin(self, name: str, total: int | None, done: int) -> None:
        """Starts a file of `total` bytes, `done` of which are on disk."""

    def advance(self, count: int) -> None:
        """Takes in `count` further bytes; negative where the file starts anew."""

    def end(self) -> None:
        """Ends the file, which is complete and checked."""


class Transfer:
    """One file on its way into the cache at `root`."""

    def __init__(self, hub_id: str, commit: str, root: Path, file: RemoteFile, progress: Progress) -> None:
        self._hub_id, self._commit, self._root = hub_id, commit, root
        self._file, self._progress = file, progress

    def run(self) -> None:
        """Transfers the file, checks it and links it into its snapshot."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        url = hf_hub_url(self._hub_id, self._file.name, revision=self._commit)
        remote = get_hf_file_metadata(url, retry_on_errors=True)
        if not remote.etag or not ETAG.fullmatch(remote.etag):
            raise ModelLoadError(f"{self._hub_id}: the hub gives no ETag for {self._file.name}")
        blob = self._root / "blobs" / remote.etag
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            lock = self._root.parent / ".locks" / self._root.name / f"{remote.etag}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):  # another process may transfer the same file
                if not blob.exists():
                    size = self._file.size if remote.size is None else remote.size
                    self._fill(blob, url, remote.location, size)
        with written(self._root / "snapshots" / self._commit / self._file.name) as path:
            try:
                path.symlink_to(os.path.relpath(blob, path.parent))
            except OSError:  # a file system, or a Windows account, without links
                shutil.copy(blob, path)

    def _fill(self, blob: Path, url: str, location: str, size: int | None) -> None:
        """Completes a blob's `.incomplete` file, checks it and renames it."""
        partial = blob.with_name(f"{blob.name}.incomplete")
        with partial.open("ab") as file:
            if size is not None and file.tell() > size:
                _empty(file)
            self._progress.begin(self._file.name, size, file.tell())
            # The token is for the hub, not for the storage that it points to.
            same = location.split("/")[2:3] == url.split("/")[2:3]
            if file.tell() != size:
                self._append(file, location, token=None if same else False)
            file.flush()
            os.fsync(file.fileno())
            if reason := _mismatch(partial, self._file, blob.name):
                partial.unlink()
                name = f"{self._hub_id}: {self._file.name}"
                raise ModelLoadError(f"{name} arrived damaged ({reason}): fetch it again")
            partial.replace(blob)
        self._progress.end()

    def _append(self, file: BinaryIO, location: str, *, token: bool | None) -> None:
        """Appends the missing bytes, over as many connections as are lost on the way."""
        lost = 0
        while True:
            begun = file.tell()
            try:
                for chunk in self._receive(file, location, token=token):
                    file.write(chunk)
                    self._progress.advance(len(chunk))
                return
            except OSError:  # the disk is full, or the hub refuses
                raise
            except Exception:  # the classes of a lost connection belong to the client's own HTTP library
                lost = 0 if file.tell() > begun else lost + 1
                if lost > MOST_LOST:
                    raise
            time.sleep(PAUSE_SECONDS)

    def _receive(self, file: BinaryIO, location: str, *, token: bool | None) -> Iterator[bytes]:
        """Asks for the bytes behind the file's end; empties the file if all of them come instead."""
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        done = file.tell()
        headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
        if done:
            headers["Range"] = f"bytes={done}-"
        with http_stream_backoff(
            "GET",
            location,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),
            retry_on_status_codes=(408, 429),  # the client waits and asks again
        ) as response:
            hf_raise_for_status(response)
            if done and response.status_code == 200:
                _empty(file)
                self._progress.advance(-done)
            yield from response.iter_bytes(chunk_size=CHUNK_BYTES)


def _mismatch(path: Path, file: RemoteFile, etag: str) -> str:
    """Says how a file differs from the hub's description of it; "" if it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    expected = file.sha256 or (etag if SHA256.fullmatch(etag) else None)
    if expected is not None:
        return "" if digest_of(path) == expected else f"its SHA-256 is not {expected}"
    if file.git_id and COMMIT.fullmatch(file.git_id):
        found = digest_of(path, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
        return "" if found == file.git_id else f"its git id is not {file.git_id}"
    return ""


def _empty(file: BinaryIO) -> None:
    file.seek(0)  # truncating alone would leave `tell` where it was
    file.truncate()
