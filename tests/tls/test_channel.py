"""The TLS of a channel: what its sources may be, and what is read of a certificate."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.tls import channel
from rerank_grpc.tls.certificate import called_by, certificate_of, fits, names_of
from rerank_grpc.tls.channel import ChannelTls, TlsSources
from rerank_grpc.tls.diagnosis import PROBE_SECONDS, probe
from tests.authority import Authority
from tests.ports import refusing_port


def named(*names: str, common: str = "old") -> dict[str, Any]:
    """Makes what Python decodes of a certificate."""
    kinds = [("IP Address" if name[0].isdigit() else "DNS", name) for name in names]
    return {"subject": ((("commonName", common),),), "subjectAltName": tuple(kinds)}


@pytest.mark.parametrize(
    ("certificate", "name", "fitting"),
    [
        (named("rerank.internal"), "rerank.internal", True),
        (named("rerank.internal"), "RERANK.internal.", True),
        (named("rerank.internal"), "a.rerank.internal", False),
        (named("*.rerank.internal"), "a.rerank.internal", True),
        (named("*.rerank.internal"), "a.b.rerank.internal", False),
        (named("*.rerank.internal"), "rerank.internal", False),
        (named("10.0.0.1", "a"), "10.0.0.1", True),
        (named("a"), "10.0.0.1", False),
        (named("0:0:0:0:0:0:0:1", "a"), "[::1]", True),
        (named("a"), "old", False),
        (named(), "old", True),
    ],
)
def test_a_certificate_fits_the_names_that_it_is_for(certificate: Any, name: str, fitting: bool):
    assert fits(certificate, name) is fitting


def test_a_server_can_be_called_by_a_name_of_its_certificate():
    for certificate in (named("*.a", "b"), named("10.0.0.1"), named()):
        name = called_by(certificate)
        assert name is not None
        assert fits(certificate, name)
    assert called_by({}) is None


def test_an_expired_certificate_is_read_too(tmp_path: Path):
    issued = Authority(tmp_path / "ca").issue("old", "DNS:old.internal", begins=-2, ends=-1)
    decoded = certificate_of(issued.cert.read_bytes(), issued.key.read_bytes())
    assert names_of(decoded) == ("old.internal",)
    assert "notAfter" in decoded


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


def test_a_look_at_a_server_that_says_nothing_ends_in_time():
    """And one at a server that is not there finds nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        assert probe(("127.0.0.1", silent.getsockname()[1]), None, 0.2).problem is None
        assert time.monotonic() - begin < PROBE_SECONDS
    with refusing_port() as port:
        assert probe(("127.0.0.1", port), ChannelTls()).problem is None
    assert probe("/none/such.sock", None).problem is None
