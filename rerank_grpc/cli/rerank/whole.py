"""Reads a file as one document, and finds those of a directory."""

from __future__ import annotations

import codecs
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping

from rerank_grpc.cli.rerank.lines import name_of, opened
from rerank_grpc.cli.rerank.records import DocumentRecord, ReadingOptions, problem_of
from rerank_grpc.files.lines import decode
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.limits import LIMITS

_MOST_BYTES = 4 * LIMITS.characters + len(codecs.BOM_UTF8)


def read_whole(path: str, options: ReadingOptions) -> Iterator[DocumentRecord]:
    """Reads a file as a document unless it is blank; raises ConfigurationError where it cannot be read."""
    name = name_of(path)
    with opened(path) as stream:
        data = stream.read(_MOST_BYTES + 1)
    options.progress(len(data))
    text, problem = decode(data[:_MOST_BYTES].removeprefix(codecs.BOM_UTF8))
    if len(data) > _MOST_BYTES and b"\0" not in data:
        problem = f"has more than the {LIMITS.characters:,} characters of a document: split it"
    if problem := problem or problem_of(text):
        options.bad(f"{name}: {problem}")
    elif text.strip():
        yield DocumentRecord(text, name)


class FolderSearch:
    """A search for the files of a directory, which notes what it leaves out, by reason.

    Links to directories are not followed, so that none leads round in a circle.
    """

    def __init__(self, options: ReadingOptions) -> None:
        self._options = options
        self.left: dict[str, list[str]] = defaultdict(list)

    def files(self, folder: str) -> Iterator[str]:
        """Finds the files in a directory and below, in the order of their names."""
        for parent, folders, names in os.walk(folder, onerror=self._unreadable):
            folders.sort()
            for name in folders:
                if name.startswith("."):
                    self.left["hidden"].append(os.path.join(parent, name))
                elif os.path.islink(os.path.join(parent, name)):
                    self.left["linked directory"].append(os.path.join(parent, name))
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(names):
                path = os.path.join(parent, name)
                if reason := self._reason(path):
                    self.left[reason].append(path)
                else:
                    yield path

    def _reason(self, path: str) -> str:
        """Says why a file is left out; "" where it is read, or cannot be looked at."""
        if os.path.basename(path).startswith("."):
            return "hidden"
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return "not a regular file"
            with open(path, "rb") as stream:
                data = stream.read(_MOST_BYTES)
        except OSError:
            return ""  # reading it says why
        if not data.strip():
            return "empty"
        return "not UTF-8 text" if _is_binary(data) else ""

    def _unreadable(self, error: OSError) -> None:
        self._options.bad(f"cannot list {error.filename}: {obstacle(error.filename, error)}")


def told(left: Mapping[str, list[str]]) -> str:
    """Says what was left out of directories, in one line."""
    return "left out " + ", ".join(
        f"{len(paths):,} {reason} ({paths[0]}{', …' if len(paths) > 1 else ''})"
        for reason, paths in sorted(left.items())
    )


def _is_binary(data: bytes) -> bool:
    """Tells bytes that are no text; the end of those that were read may cut a character in two."""
    if b"\0" in data:
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < _MOST_BYTES)
    except UnicodeDecodeError:
        return True
    return False
