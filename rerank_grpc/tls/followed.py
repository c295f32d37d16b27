"""The TLS of a caller whose files are read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank_grpc.files.watched import WatchedFiles
from rerank_grpc.tls.channel import ARGUMENTS, TlsSources
from rerank_grpc.tls.pem import FileContent

log = logging.getLogger(__name__)


class FollowedSources:
    """The sources of a caller's TLS, from `watch` to `close` those of the files as they are now.

    New contents that cannot be used leave the ones before in force, as WatchedFiles has it.
    """

    def __init__(self, sources: TlsSources) -> None:
        self.value = sources
        given = ((name, getattr(sources, name)) for name in ARGUMENTS)
        self._paths = {name: content.path for name, content in given if isinstance(content, FileContent)}
        self._renew: Callable[[TlsSources], object] = lambda _: None
        self._watched = WatchedFiles(list(map(Path, self._paths.values())), self._take)

    def watch(self, renew: Callable[[TlsSources], object]) -> None:
        """Begins to read the files again; `renew` gets new sources, on another thread."""
        self._renew = renew
        if self._paths:
            self._watched.start()

    def close(self) -> None:
        """Reads the files no more."""
        self._watched.stop()

    def _take(self, contents: Sequence[bytes]) -> None:
        """Puts new contents in force; raises BadPem."""
        held: dict[str, Any] = {
            name: FileContent(content, path)
            for (name, path), content in zip(self._paths.items(), contents, strict=True)
        }
        found = replace(self.value, **held)
        if found == self.value:
            return
        found.load()
        self.value = found
        log.info("the certificates for the servers were read again", extra={"event": "upstream_tls_read"})
        self._renew(found)
