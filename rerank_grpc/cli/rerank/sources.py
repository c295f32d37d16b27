"""Decides how each file that was named is read, and reads them one after the other."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rerank_grpc.cli.rerank.formats import FORMATS, SUFFIXES, WITH_FIELDS
from rerank_grpc.cli.rerank.lines import STDIN
from rerank_grpc.cli.rerank.records import DocumentRecord, ReadingOptions
from rerank_grpc.cli.rerank.whole import FolderSearch
from rerank_grpc.config.options import OptionError
from rerank_grpc.errors import ConfigurationError


class DocumentSource(NamedTuple):
    """A file with its format, a key of FORMATS; `found` where it was in a directory that was named."""

    path: str
    format: str
    found: bool = False


def size_of(sources: Sequence[DocumentSource]) -> int:
    """Adds up the bytes of files; 0 where those of one are not known, as of stdin."""
    total = 0
    for source in sources:
        try:
            found = os.stat(source.path)
        except OSError:
            return 0
        if not stat.S_ISREG(found.st_mode):
            return 0
        total += found.st_size
    return total


def sources_of(paths: Sequence[str], format: str, search: FolderSearch) -> list[DocumentSource]:
    """Finds the files that are read, each in `format`, or in that of its suffix where it is "".

    A directory stands for the files in it, each a document unless `format` says otherwise. Raises
    ConfigurationError for a directory without a file.
    """
    if paths.count(STDIN) > 1:
        raise OptionError("- stands for stdin, which can be read only once")
    found = []
    for path in paths:
        if path == STDIN or not os.path.isdir(path):
            found.append(DocumentSource(path, format or SUFFIXES.get(Path(path).suffix.lower(), "lines")))
            continue
        inside = [DocumentSource(file, format or "file", True) for file in search.files(path)]
        if not inside:
            raise ConfigurationError(
                f"{path}: no documents: the directory has no text file that is not hidden"
            )
        found += inside
    return found


def check_fields(sources: Sequence[DocumentSource], given: Sequence[str]) -> None:
    """Raises OptionError where an option names a field, and no file has fields."""
    if given and not any(source.format in WITH_FIELDS for source in sources):
        formats = " and ".join(sorted({source.format for source in sources}))
        raise OptionError(
            f"{given[0]} is for jsonl and csv, and the files are read as {formats}: see --format"
        )


def read(sources: Sequence[DocumentSource], options: ReadingOptions) -> Iterator[DocumentRecord]:
    """Reads the documents of files; raises ConfigurationError for one that cannot be read."""
    for source in sources:
        documents = FORMATS[source.format](source.path, options)
        if not source.found:
            yield from documents
            continue
        try:
            yield from documents
        except ConfigurationError as error:  # it went after it was found, or none may read it
            options.bad(str(error))
