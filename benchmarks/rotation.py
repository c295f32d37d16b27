"""Counts the calls that fail while a server's certificate is replaced, and broken ones are put in its place.

    python benchmarks/rotation.py

A server in a process of its own asks its callers for certificates. A fixed number of calls a second goes to
gRPC and to REST, over connections that are kept and over new ones. Each certificate is of an authority of its
own, and soon after each change callers trust the authority before it no more: a server that kept the old
certificate would fail every call over a new connection. Prints the figures; exits with 1 where a call failed.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.authority import HERE, Authority, Issued
from tests.command import Served, served

CALLS_PER_SECOND = 50.0
ROTATIONS = 10
SETTLE_SECONDS = 6.0  # between two changes: 10 of them, and 4 broken ones, take 3,000 calls and more
TIMEOUT = 20.0
REQUEST = pb.RerankRequest(query="q", documents=[pb.Document(text="d")])
BODY = json.dumps({"query": "q", "documents": ["d"]}).encode()
TRIES = 400


class Figures(NamedTuple):
    """What came of a run: calls by kind, failures with their reasons, and what the metrics say."""

    calls: Counter[str]
    failures: list[str]
    taken: int
    refused: int


class Folder:
    """The folder of a Secret as Kubernetes mounts it: its files are links through one that is exchanged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._version = 0
        root.mkdir()

    def path(self, name: str) -> Path:
        return self.root / name

    def exchange(self, issued: Issued) -> None:
        """Exchanges both files at once, as the kubelet does."""
        self._version += 1
        version = self.root / f"..{self._version}"
        version.mkdir()
        (version / "tls.crt").write_bytes(issued.cert.read_bytes())
        (version / "tls.key").write_bytes(issued.key.read_bytes())
        beside = self.root / "..data_tmp"
        beside.symlink_to(version.name)
        beside.replace(self.root / "..data")
        for name in ("tls.crt", "tls.key"):
            if not self.path(name).is_symlink():
                self.path(name).symlink_to(f"..data/{name}")

    def one_after_the_other(self, issued: Issued) -> None:
        """Renames a new certificate into place, and more than a second later its key, as certbot might."""
        self._rename("tls.crt", issued.cert.read_bytes())
        time.sleep(1.3)
        self._rename("tls.key", issued.key.read_bytes())

    def in_place(self, issued: Issued) -> None:
        """Writes the two files in place, the key first."""
        self.path("tls.key").write_bytes(issued.key.read_bytes())
        self.path("tls.crt").write_bytes(issued.cert.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        self.path(name).write_bytes(content)

    def _rename(self, name: str, content: bytes) -> None:
        target = self.path(name).resolve()
        beside = target.with_name("new")
        beside.write_bytes(content)
        beside.replace(target)


class Callers:
    """Calls at a fixed rate, over kept and new connections of gRPC and REST, with what `trusted` holds."""

    def __init__(self, grpc_target: str, rest_port: int, own: Issued, trusted: bytes) -> None:
        self._target = f"localhost:{grpc_target.rpartition(':')[2]}"
        self._rest_port, self._own = rest_port, own
        self.trusted = trusted
        self.calls: Counter[str] = Counter()
        self.failures: list[str] = []
        self._ending = threading.Event()
        self._kept_channel = self._channel()
        self._kept = threading.local()
        self._open: list[http.client.HTTPSConnection] = []
        self._kinds: list[tuple[str, Callable[[], None]]] = [
            ("gRPC, kept", self._grpc_kept),
            ("gRPC, new", self._grpc_new),
            ("REST, kept", self._rest_kept),
            ("REST, new", self._rest_new),
        ]
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        self._kept_channel.close()
        for connection in self._open:
            connection.close()

    def _run(self) -> None:
        """Sends each call at its time, however long those before it take."""
        began, number = time.monotonic(), 0
        with ThreadPoolExecutor(32) as pool:
            while not self._ending.wait(max(0.0, began + number / CALLS_PER_SECOND - time.monotonic())):
                pool.submit(self._call, *self._kinds[number % len(self._kinds)])
                number += 1

    def _call(self, kind: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            text = error.details() if isinstance(error, grpc.RpcError) else str(error)
            self.failures.append(f"{kind}: {type(error).__name__}: {text}")
        self.calls[kind] += 1

    def _channel(self) -> grpc.Channel:
        key, cert = self._own.key.read_bytes(), self._own.cert.read_bytes()
        credentials = grpc.ssl_channel_credentials(self.trusted, key, cert)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        return grpc.secure_channel(self._target, credentials, options=options)

    def _grpc_kept(self) -> None:
        rerank_pb2_grpc.RerankServiceStub(self._kept_channel).Rerank(REQUEST, timeout=TIMEOUT)

    def _grpc_new(self) -> None:
        with self._channel() as channel:
            rerank_pb2_grpc.RerankServiceStub(channel).Rerank(REQUEST, timeout=TIMEOUT)

    def connection(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cadata=self.trusted.decode())
        context.load_cert_chain(*self._own)
        return http.client.HTTPSConnection("localhost", self._rest_port, context=context, timeout=TIMEOUT)

    def _rest_kept(self) -> None:
        if not hasattr(self._kept, "connection"):
            self._kept.connection = self.connection()
            self._open.append(self._kept.connection)
        self._post(self._kept.connection)

    def _rest_new(self) -> None:
        with closing(self.connection()) as connection:
            self._post(connection)

    def _post(self, connection: http.client.HTTPSConnection) -> None:
        connection.request("POST", "/v1/rerank", BODY)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {text!r}")


def reloads(server: Served, outcome: str) -> int:
    """Reads how many changes of the files the server has taken or refused."""
    with urllib.request.urlopen(server.metrics_url, timeout=TIMEOUT) as answer:
        text = answer.read().decode()
    found = re.search(rf'^rerank_tls_reloads_total{{outcome="{outcome}"}} (\S+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else -1


def wait_for(server: Served, outcome: str, count: int) -> None:
    """Waits until so many changes were taken or refused; a while, and no longer."""
    for _ in range(TRIES):
        if reloads(server, outcome) >= count:
            return
        time.sleep(0.05)


def broken(folder: Folder, strangers: Authority) -> list[Callable[[Issued], None]]:
    """Makes what puts a broken certificate in the place of a good one."""
    expired = strangers.issue("expired", *HERE, begins=-2, ends=-1)
    other = strangers.issue("other", *HERE)
    return [
        lambda good: folder.write("tls.crt", good.cert.read_bytes()[:200]),
        lambda good: folder.exchange(Issued(other.cert, good.key)),
        lambda _good: folder.exchange(expired),
        lambda _good: folder.path("tls.key").resolve().unlink(),
    ]


def run(rotations: int = ROTATIONS, settle_seconds: float = SETTLE_SECONDS) -> Figures:
    """Rotates under load so many times, with the broken certificates spread among them."""
    with tempfile.TemporaryDirectory() as root:
        folder = Folder(Path(root) / "tls")
        clients = Authority(Path(root) / "clients")
        authorities = [Authority(Path(root) / f"server-{n}") for n in range(rotations + 2)]
        folder.exchange(authorities[0].issue("server", *HERE))
        arguments = ["--rest-port", "0", "--metrics-port", "0", "--tls-client-ca", str(clients.cert)]
        arguments += ["--tls-cert", str(folder.path("tls.crt")), "--tls-key", str(folder.path("tls.key"))]
        with served(*arguments) as server:
            port = int(server.url.rpartition(":")[2])
            both = authorities[0].cert.read_bytes() + authorities[1].cert.read_bytes()
            callers = Callers(server.target, port, clients.issue("caller"), both)
            callers.start()
            try:
                _rotate(server, callers, folder, authorities, rotations, settle_seconds)
            finally:
                callers.stop()
            taken, refused = reloads(server, "taken"), reloads(server, "refused")
    return Figures(callers.calls, callers.failures, taken, refused)


def _rotate(
    server: Served,
    callers: Callers,
    folder: Folder,
    authorities: list[Authority],
    rotations: int,
    settle_seconds: float,
) -> None:
    ways = [folder.exchange, folder.one_after_the_other, folder.in_place]
    mishaps = broken(folder, authorities[-1])
    for number in range(1, rotations + 1):
        time.sleep(settle_seconds)
        issued = authorities[number].issue("server", *HERE)
        ways[number % len(ways)](issued)
        wait_for(server, "taken", number)
        # Callers trust the new authority and the next one: the old one's certificate is worth nothing.
        callers.trusted = authorities[number].cert.read_bytes() + authorities[number + 1].cert.read_bytes()
        if number % 2 == 0 and mishaps:
            refused = reloads(server, "refused")
            time.sleep(settle_seconds / 2)
            mishaps.pop(0)(issued)
            wait_for(server, "refused", refused + 1)


def main() -> int:
    """Prints the figures; 1 where a call failed."""
    figures = run()
    for kind, count in sorted(figures.calls.items()):
        print(f"{kind:12} {count:6,} calls")
    print(f"{'failed':12} {len(figures.failures):6,} of {figures.calls.total():,}")
    for text in figures.failures[:10]:
        print(f"  {text}")
    print(f"certificates: {figures.taken} taken, {figures.refused} refused")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
