"""The certificate in force: renewed from its files, kept where new ones are bad, and warned of in time."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from rerank_grpc.tls.pair import TlsFiles
from rerank_grpc.tls.serving import DAY_SECONDS, Certificates
from tests.authority import Authority, Issued


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("serving") / "ours")


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TlsFiles:
    put(authority.issue("first", "DNS:first", ends=30), tmp_path)
    return TlsFiles(tmp_path / "cert", tmp_path / "key")


def put(issued: Issued, folder: Path) -> None:
    (folder / "cert").write_bytes(issued.cert.read_bytes())
    (folder / "key").write_bytes(issued.key.read_bytes())
    (folder / "key").chmod(0o600)


def look(certificates: Certificates) -> None:
    for _ in range(2):
        certificates._watched.look()


def test_a_new_pair_is_taken_and_a_bad_one_is_not(
    files: TlsFiles, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "rerank_grpc.tls.serving")
    certificates = Certificates(files)
    look(certificates)
    first = certificates.context
    assert (certificates.pair.names, certificates.snapshot()[1:], caplog.messages) == (("first",), (0, 0), [])
    put(authority.issue("second", "DNS:second", ends=30), tmp_path)
    look(certificates)
    assert certificates.context is not first
    assert certificates.pair.names == ("second",)
    assert caplog.messages.pop() == f"the certificate was read again: {certificates.pair}"
    put(authority.issue("old", "DNS:old", begins=-2, ends=-1), tmp_path)
    look(certificates)
    assert certificates.pair.names == ("second",)
    assert certificates.snapshot() == (certificates.pair.expires, 1, 1)
    assert "has expired: renew it" in caplog.messages.pop()


def test_a_key_that_everybody_can_read_is_told(files: TlsFiles, caplog: pytest.LogCaptureFixture):
    files.key.chmod(0o644)
    certificates = Certificates(files)
    certificates.watch()
    certificates.close()
    text = f"{files.key} is a key that every user of this machine can read: chmod o-rwx it"
    assert caplog.messages == [text]


def test_a_certificate_that_ends_soon_is_warned_of_once_a_day(
    files: TlsFiles, authority: Authority, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    certificates = Certificates(files)
    now = certificates.pair.expires - 8 * DAY_SECONDS
    monkeypatch.setattr(time, "time", lambda: now)
    for hours, warnings in [(0, 0), (23, 0), (25, 1), (26, 1), (48, 1), (50, 2), (24 * 9, 3)]:
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3_600)
        certificates.look_at_clock()
        assert len(caplog.messages) == warnings, hours
    assert "ends in 7.0 days: renew it" in caplog.messages[0]
    assert "has ended, and clients refuse it" in caplog.messages[2]
    monkeypatch.undo()
    put(authority.issue("third", "DNS:third", ends=3), tmp_path)
    look(certificates)
    assert "ends in 3.0 days" in caplog.messages[-1]
