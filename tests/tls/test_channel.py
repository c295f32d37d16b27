"""The TLS of a channel: what its sources may be."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from rerank_grpc.client import core
from rerank_grpc.tls import channel, diagnosis
from rerank_grpc.tls.channel import ChannelTls, TlsSources
from rerank_grpc.tls.diagnosis import probe
from tests.authority import Authority
from tests.ports import refusing_port
from tests.support import WAIT


def test_the_systems_cas_are_taken_where_none_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(Authority(tmp_path / "ca").cert.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    tls = TlsSources().load()
    assert (tls.ca, tls.place) == (bundle.read_bytes(), "the CAs that this system trusts")
    assert TlsSources().load(public=True) == ChannelTls()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(channel, "_SYSTEM_FILES", ())
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert TlsSources().load() == ChannelTls()


def test_what_was_read_once_keeps_the_name_of_its_file(tmp_path: Path):
    ca = Authority(tmp_path / "ca").cert
    held = TlsSources(ca).held()
    ca.unlink()
    assert held.load().place == f"the CAs of '{ca}'"


def test_a_look_lasts_two_seconds_at_most() -> None:
    """As is documented: other tests give looks more."""
    assert diagnosis.PROBE_SECONDS == core.LOOK_SECONDS == 2


def test_a_look_at_a_server_that_says_nothing_ends_in_time(monkeypatch: pytest.MonkeyPatch):
    """And one at a server that is not there finds nothing."""
    # A busy machine takes long; what went by another time than the one given would take longer.
    monkeypatch.setattr(diagnosis, "PROBE_SECONDS", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        assert probe(("127.0.0.1", silent.getsockname()[1]), None, 0.2).problem is None
        assert time.monotonic() - begin < WAIT
    with refusing_port() as port:
        assert probe(("127.0.0.1", port), ChannelTls()).problem is None
    assert probe("/none/such.sock", None).problem is None
