"""Certificates and keys as PEM: what may stand around them, and what is read of a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from rerank_grpc.tls import pem
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.names import names_of
from rerank_grpc.tls.pem import certificate_of, shake_hands, trusting
from tests.authority import Authority


def test_an_expired_certificate_is_read_too(tmp_path: Path):
    issued = Authority(tmp_path / "ca").issue("old", "DNS:old.internal", begins=-2, ends=-1)
    decoded = certificate_of(issued.cert.read_bytes(), issued.key.read_bytes())
    assert names_of(decoded) == ("old.internal",)
    assert "notAfter" in decoded


def test_text_in_any_alphabet_may_stand_around_pem_and_the_last_line_be_open(tmp_path: Path):
    authority = Authority(tmp_path / "ca")
    cert, key = (path.read_bytes().strip() for path in authority.issue("alice"))
    noted = "# Zürich\n".encode()
    tls = TlsSources(noted + authority.cert.read_bytes().strip(), noted + cert, noted + key).load()
    assert tls.context().cert_store_stats()["x509_ca"] == 1


def test_a_handshake_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pem, "_ROUNDS", 0)
    authority = Authority(tmp_path / "ca")
    with pytest.raises(ssl.SSLWantReadError):
        shake_hands(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trusting("ca", authority.cert.read_bytes()))
