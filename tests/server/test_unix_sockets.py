"""gRPC and REST on Unix sockets: who may call, and what becomes of the file."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from rerank_grpc.cli.serve import rest_beside
from rerank_grpc.client import Client
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.errors import ConfigurationError, Unauthenticated
from rerank_grpc.server.server import RerankServer
from rerank_grpc.tls.pair import TlsFiles
from tests.authority import HERE, Authority
from tests.command import served
from tests.support import WAIT, CountingRunner, ScriptedLoader, serving


def get(path: Path, *headers: str) -> bytes:
    """Asks REST for the models over its socket; returns the first line of the answer."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(WAIT)
        caller.connect(str(path))
        lines = ("GET /v1/models HTTP/1.1", "host: here", "connection: close", *headers, "", "")
        caller.sendall("\r\n".join(lines).encode())
        return b"".join(iter(lambda: caller.recv(65_536), b"")).partition(b"\r\n")[0]


def settings_of(folder: Path, **settings: object) -> ServerSettings:
    rest = RestSettings(host=f"unix:{folder}/rest")
    own = ServerSettings(host=f"unix:{folder}/grpc", rest=rest)
    return replace(own, **settings)  # type: ignore[arg-type]


def test_both_answer_at_their_sockets_with_tokens_and_remove_them(tmp_path: Path):
    settings = settings_of(tmp_path, access_tokens=("t0ken",))
    with serving(settings, runner=CountingRunner()) as server:
        rest = rest_beside(server)
        assert rest is not None
        rest.start()
        assert (server.port, rest.port) == (0, 0)
        for name in ("grpc", "rest"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o660
        with Client(settings.host, token="t0ken") as client:
            assert client.rerank("q", ["d"]).results
        with Client(settings.host) as client, pytest.raises(Unauthenticated):
            client.rerank("q", ["d"])
        assert get(tmp_path / "rest", "authorization: Bearer t0ken") == b"HTTP/1.1 200 OK"
        assert get(tmp_path / "rest") == b"HTTP/1.1 401 Unauthorized"
        rest.stop(5)
        assert not (tmp_path / "rest").exists()
    assert not (tmp_path / "grpc").exists()


def test_where_both_have_sockets_nothing_listens_on_a_port(tmp_path: Path):
    """Or any user of the machine would call past the mode of the socket."""
    settings, before = settings_of(tmp_path), listening(os.getpid())
    with serving(settings, runner=CountingRunner()) as server:
        rest = rest_beside(server)
        assert rest is not None
        rest.start()
        assert get(tmp_path / "rest") == b"HTTP/1.1 200 OK"
        assert server.local_port is None
        own = listening(os.getpid()) - before  # those of an earlier test may be closed at any moment
        assert len(own) == (server.admin_port is not None)
        rest.stop(5)


def listening(process: int) -> set[str]:
    """Finds the TCP ports that a process listens at, by the inodes of their sockets."""
    folder, inodes = Path(f"/proc/{process}"), set[str]()
    for each in (folder / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself has been closed
            inodes.add(os.readlink(each))
    tables = [(folder / "net" / kind).read_text() for kind in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_a_living_servers_socket_is_not_taken_and_a_killed_ones_is(tmp_path: Path):
    path = tmp_path / "grpc"
    with served("--host", f"unix:{path}") as first:
        assert first.target == f"unix:{path}"
        with pytest.raises(
            ConfigurationError, match=r"\(--host\): a server listens there: choose another path"
        ):
            RerankServer(settings_of(tmp_path), loader=ScriptedLoader())
        with Client(f"unix:{path}") as client:
            assert client.rerank("q", ["d"]).results
        first.stop(signal.SIGKILL)
    assert path.is_socket()
    with serving(settings_of(tmp_path), runner=CountingRunner()), Client(f"unix:{path}") as client:
        assert client.rerank("q", ["d"]).results


def test_with_a_client_ca_a_caller_at_a_socket_needs_a_token(tmp_path: Path):
    authority = Authority(tmp_path / "ours")
    shown = authority.issue("server", *HERE)
    files = TlsFiles(shown.cert, shown.key, authority.cert)
    settings = settings_of(tmp_path, tls=files, access_tokens=("t0ken",))
    with serving(settings, runner=CountingRunner()) as server:
        rest = rest_beside(server)
        assert rest is not None
        rest.start()
        with Client(settings.host) as client, pytest.raises(Unauthenticated):
            client.rerank("q", ["d"])
        with Client(settings.host, token="t0ken") as client:
            assert client.rerank("q", ["d"]).results
        assert get(tmp_path / "rest") == b"HTTP/1.1 401 Unauthorized"
        assert get(tmp_path / "rest", "authorization: Bearer t0ken") == b"HTTP/1.1 200 OK"
        rest.stop(5)


def test_a_path_that_cannot_be_is_one_line(tmp_path: Path):
    settings = replace(ServerSettings(), host=f"unix:{tmp_path}/no/grpc")
    with pytest.raises(
        ConfigurationError, match=r"^cannot listen on unix:\S+ \(--host\): the folder \S+: no such"
    ):
        RerankServer(settings, loader=ScriptedLoader())
