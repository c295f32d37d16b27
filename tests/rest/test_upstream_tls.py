"""REST calls its gRPC servers by TLS, and follows the files of its certificates."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from rerank_grpc.client import unavailable
from rerank_grpc.tls.channel import TlsSources
from tests.authority import HERE, Authority, Issued
from tests.client.scripted_server import ScriptedServer, scored
from tests.rest.support import post, rest_server
from tests.support import WAIT, wait_for

CALL = {"query": "q", "documents": ["a"]}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours"), Authority(folder / "others")


@pytest.fixture(scope="module")
def pair(authorities: tuple[Authority, Authority]) -> Issued:
    return authorities[0].issue("here", *HERE)


@pytest.fixture
def server(authorities: tuple[Authority, Authority], pair: Issued) -> Iterator[ScriptedServer]:
    """Wants a certificate of its callers."""
    shown = [(pair.key.read_bytes(), pair.cert.read_bytes())]
    server = ScriptedServer(
        credentials=grpc.ssl_server_credentials(shown, authorities[0].cert.read_bytes(), True)
    )
    server.start()
    yield server
    server.stop()


def status(port: int) -> int:
    return post(port, "/v1/rerank", CALL).status


def test_new_certificates_are_taken_and_calls_in_progress_end_where_they_are(
    authorities: tuple[Authority, Authority], server: ScriptedServer, tmp_path: Path
):
    ours, others = authorities
    # Copied over, as somebody renews them by hand.
    cert, key = tmp_path / "rest.pem", tmp_path / "rest.key"
    mine, theirs = ours.issue("rest"), others.issue("rest")
    install(mine, cert, key)
    began, going_on = threading.Event(), threading.Event()

    def slow(request: Any, _context: Any) -> Any:
        began.set()
        assert going_on.wait(60)
        return scored(request)

    server.script.append(slow)
    sources = TlsSources(ours.cert, cert, key).held()
    with rest_server(server.port, upstream_tls=sources) as port:
        statuses: list[int] = []
        calling = threading.Thread(target=lambda: statuses.append(status(port)))
        calling.start()
        assert began.wait(20)
        install(theirs, cert, key)
        wait_for(lambda: status(port) == 503)
        install(mine, cert, key)
        wait_for(lambda: status(port) == 200)
        going_on.set()
        calling.join()
        assert statuses == [200]


def install(issued: Issued, cert: Path, key: Path) -> None:
    shutil.copy(issued.cert, cert)
    shutil.copy(issued.key, key)


def test_a_broken_file_leaves_what_was_in_force(
    authorities: tuple[Authority, Authority], server: ScriptedServer, tmp_path: Path, caplog
):
    ours, _ = authorities
    mine = ours.issue("rest-2")
    cert = tmp_path / "rest.pem"
    shutil.copy(mine.cert, cert)
    sources = TlsSources(ours.cert, cert, mine.key).held()
    with caplog.at_level(logging.INFO), rest_server(server.port, upstream_tls=sources) as port:
        cert.write_text("broken")
        wait_for(lambda: "is not read again, and what it held before stays in force" in caplog.text)
        assert "it holds no certificate in PEM" in caplog.text
        assert status(port) == 200


def test_the_log_says_why_a_server_is_away_and_callers_are_not_told(
    authorities: tuple[Authority, Authority], server: ScriptedServer, caplog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unavailable, "PROBE_SECONDS", WAIT)
    sources = TlsSources(authorities[1].cert).held()
    with rest_server(server.port, upstream_tls=sources) as port:
        reply = post(port, "/v1/rerank", CALL)
    assert reply.status == 503
    assert b".pem" not in reply.raw
    assert "the server's certificate is signed by none of the CAs of '" in caplog.text
