"""Why no server answers: read from gRPC's words, and found out by a connection where those do not tell."""

from __future__ import annotations

import re
import threading
import time

from rerank_grpc.client.errors import ServerUnavailable, TlsError
from rerank_grpc.config.targets import Proxy, endpoints_of
from rerank_grpc.tls.channel import ChannelTls
from rerank_grpc.tls.diagnosis import PROBE_SECONDS, Endpoint, Peer, is_worth_a_look, probe, read_status, told

# What was found is believed for so long; callers of a server that is away make no further connections.
BELIEVED_SECONDS = 5.0

_ADDRESS = re.compile(r"(?:ipv[46]:[^\s,]+:[0-9]+|unix:[^\s:]+)(?=: )")
_REFUSED = "onnection refused"
# gRPC takes the first bytes of "HTTP/1.1 …" for a frame, of the type "/".
_HTTP1 = re.compile(r"got frame type 79|http1\.x server", re.IGNORECASE)
_NAME = re.compile(r"lookup failed|could not resolve|not found", re.IGNORECASE)


class Inquiry:
    """Finds out why the server of one client does not answer; threads may share one.

    `tls` is None where the channel is in plaintext. Behind a proxy, and with credentials that the caller has
    made (`opaque`), only gRPC's words are read: a connection of our own would be another one.
    """

    def __init__(self, target: str, tls: ChannelTls | None, proxy: Proxy | None, *, opaque: bool) -> None:
        self._target = target
        self._tls = tls
        self._proxy = proxy
        self._may_connect = proxy is None and not opaque
        self._lock = threading.Lock()
        self._found = Peer()
        self._until = 0.0

    def needs_time(self, error: ServerUnavailable) -> bool:
        """Tells whether `explain` may connect, and so take up to two seconds."""
        text = error.message
        return self._may_connect and (is_worth_a_look(text) or self._refused_by_one(text))

    def explain(self, error: ServerUnavailable, remaining: float) -> ServerUnavailable:
        """Makes the error that tells more, within the seconds that remain to a call; else gives it back."""
        peer = read_status(error.message)
        if self.needs_time(error):
            found = self._look(self._endpoints(error.message), remaining)
            # The words are of the very attempt that failed; the connection adds names and times.
            if peer.problem in (None, found.problem):
                peer = found
        if peer.problem is None:
            return self._plain(error)
        return self._error(peer, error)

    def look(self, remaining: float) -> TlsError | None:
        """Looks without an error's words, because a call that waits for its server has none."""
        if not self._may_connect:
            return None
        peer = self._look(endpoints_of(self._target), remaining)
        return None if peer.problem is None else self._error(peer)

    def _look(self, endpoints: list[Endpoint], remaining: float) -> Peer:
        with self._lock:
            if time.monotonic() >= self._until and endpoints and remaining > 0:
                self._found = probe(endpoints[0], self._tls, min(PROBE_SECONDS, remaining))
                self._until = time.monotonic() + BELIEVED_SECONDS
            return self._found

    def _endpoints(self, text: str) -> list[Endpoint]:
        """Takes the address that the words name; the target may stand for several."""
        address = None if self._refused_by_one(text) else _ADDRESS.search(text)
        return endpoints_of(address[0] if address else self._target)

    def _refused_by_one(self, text: str) -> bool:
        """Tells whether one address of a name refused, as localhost's [::1] may: others may tell more."""
        address = _ADDRESS.search(text) if _REFUSED in text else None
        return address is not None and endpoints_of(address[0]) != endpoints_of(self._target)

    def _error(self, peer: Peer, error: ServerUnavailable | None = None) -> TlsError:
        assert peer.problem is not None
        text = told(peer, self._target, self._tls) + (f" ({self._proxy})" if self._proxy else "")
        return TlsError(text, problem=peer.problem, retry_after=error.retry_after if error else None)

    def _plain(self, error: ServerUnavailable) -> ServerUnavailable:
        text = error.message
        if self._proxy is not None:  # which may be what refuses
            return error
        if _HTTP1.search(text):
            text = f"{self._target}: an HTTP/1 server listens there, not gRPC: name the port of gRPC"
        elif _REFUSED in text:
            text = f"{self._target}: no server listens there: start it, or name its address and port"
        elif "No such file" in text and self._target.startswith("unix:"):
            text = f"{self._target}: no such socket: start the server, or name its socket"
        elif "ermission denied" in text and self._target.startswith("unix:"):
            text = f"{self._target}: this user may not call it: run as one of the socket's group"
        elif "resolving" in text and _NAME.search(text):
            text = f"{self._target}: no such host: check the name"
        return type(error)(text, metadata=error.metadata, retry_after=error.retry_after)
