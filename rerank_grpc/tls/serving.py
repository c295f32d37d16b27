"""The certificate that a server shows: renewed when its files change, and watched for its end."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from rerank_grpc.files.watched import WatchedFiles
from rerank_grpc.tls.pair import Pair, TlsFiles, readable_by_all

log = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0
WARNING_DAYS = 7  # before the end, and then one warning a day
LOOK_SECONDS = 600.0  # between two looks at the clock: a laptop or a virtual machine may have slept


class CertificateSnapshot(NamedTuple):
    """The certificate in force, and what has become of new ones since the start."""

    expires: float  # as Unix time
    taken: int
    refused: int


class Certificates:
    """The pair that a process's servers show, from `watch` to `close` that of the files as they are now.

    Any thread may read `pair` and `context`, without a lock: both are replaced as a whole, and only by a
    pair that has passed every check of a start.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.pair: Pair = files.pair or files.read()
        self.context: ssl.SSLContext = self.pair.context()
        self._taken = self._refused = 0
        self._warned_at = 0.0
        self._watched = WatchedFiles(files.paths, self._take, self._count_refusal)
        self._closing = threading.Event()

    @property
    def names_callers(self) -> bool:
        """Whether every caller needs a certificate, which names it."""
        return self._files.client_ca is not None

    def snapshot(self) -> CertificateSnapshot:
        """Tells the state for a scrape."""
        return CertificateSnapshot(self.pair.expires, self._taken, self._refused)

    def watch(self) -> None:
        """Begins to read the files again when they change, and to look at the clock."""
        if readable_by_all(self._files.key):
            text = "%s is a key that every user of this machine can read: chmod o-rwx it"
            log.warning(text, self._files.key, extra={"event": "key_readable", "path": str(self._files.key)})
        self._watched.start()
        threading.Thread(target=self._look_at_clock, name="tls-expiry", daemon=True).start()

    def close(self) -> None:
        """Reads the files no more."""
        self._closing.set()
        self._watched.stop()

    def _take(self, contents: Sequence[bytes]) -> None:
        """Puts new contents in force; raises BadPem."""
        pair = self._files.pair_of(contents)
        if (pair.chain, pair.key, pair.client_ca) == (self.pair.chain, self.pair.key, self.pair.client_ca):
            return
        self.context = pair.context()
        self.pair = pair
        self._taken += 1
        fields = {"event": "certificate_read", "names": pair.names, "expires": pair.end}
        log.info("the certificate was read again: %s", pair, extra=fields)
        self._warned_at = 0.0
        self.look_at_clock()

    def _count_refusal(self) -> None:
        self._refused += 1

    def _look_at_clock(self) -> None:
        while True:
            self.look_at_clock()
            if self._closing.wait(LOOK_SECONDS):
                return

    def look_at_clock(self) -> None:
        """Warns, once a day, of a certificate that ends soon."""
        now, expires = time.time(), self.pair.expires
        if expires - now > WARNING_DAYS * DAY_SECONDS or now < self._warned_at + DAY_SECONDS:
            return
        self._warned_at = now
        days = (expires - now) / DAY_SECONDS
        state = f"ends in {days:.1f} days" if days > 0 else "has ended, and clients refuse it"
        text = "the certificate of %s %s: renew it, it is read again when it changes"
        fields = {"event": "certificate_ends", "expires": self.pair.end}
        log.warning(text, self._files.cert, state, extra=fields)
