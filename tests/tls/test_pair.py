"""A certificate and its key are checked as a client would see them, and each fault has one clear line."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from rerank_grpc.tls.pair import Pair, TlsFiles
from rerank_grpc.tls.pem import BadPem, MismatchedPair
from tests.authority import HERE, Authority, Issued


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pairs") / "ours")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Issued:
    return authority.issue("server", *HERE)


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def own_signed(folder: Path, *algorithm: str, extension: str = "basicConstraints=CA:FALSE") -> Issued:
    made = Issued(folder / "own.pem", folder / "own.key")
    openssl("genpkey", "-algorithm", *algorithm, "-out", made.key)
    subject = ("-subj", "/CN=own", "-addext", extension)
    openssl("req", "-x509", "-new", "-key", made.key, "-days", "2", *subject, "-out", made.cert)
    return made


def refusal(cert: Path, key: Path, client_ca: Path | None = None) -> tuple[str, str]:
    with pytest.raises(BadPem) as caught:
        TlsFiles(cert, key, client_ca).read()
    assert "\n" not in str(caught.value)
    return caught.value.argument, str(caught.value)


def test_a_good_pair_tells_its_names_and_its_end(authority: Authority, server: Issued):
    pair = TlsFiles(server.cert, server.key, authority.cert).read()
    assert pair.names == ("localhost", "127.0.0.1")
    assert re.fullmatch(r"for localhost, 127\.0\.0\.1, until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(pair))
    assert "PRIVATE" not in repr(pair)
    assert "CERTIFICATE" not in repr(pair)


def test_a_chain_counts_from_its_first_certificate(authority: Authority, server: Issued, tmp_path: Path):
    chain = tmp_path / "chain.pem"
    chain.write_bytes(server.cert.read_bytes() + authority.cert.read_bytes())
    assert TlsFiles(chain, server.key).read().names == ("localhost", "127.0.0.1")
    chain.write_bytes(authority.cert.read_bytes() + server.cert.read_bytes())
    role, text = refusal(chain, server.key)
    assert role == "--tls-cert"
    assert text.endswith("have its own certificate come first")


def test_a_file_of_both_serves_as_both(server: Issued, tmp_path: Path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"Subject: \xc3\xbc\n" + server.key.read_bytes() + server.cert.read_bytes())
    assert TlsFiles(both, both).read().names


def test_a_certificate_of_another_key_may_be_on_its_way(authority: Authority, server: Issued):
    other = authority.issue("other", *HERE)
    with pytest.raises(MismatchedPair, match="the certificate does not fit the key") as caught:
        TlsFiles(server.cert, other.key).read()
    assert str(server.cert) in str(caught.value)
    assert str(other.key) in str(caught.value)


@pytest.mark.parametrize(
    ("days", "says"),
    [((-2, -1), "has expired: renew it"), ((0.5, 1), "is not valid yet: wait for its time, or set")],
)
def test_a_certificate_is_valid_now(authority: Authority, days: tuple[float, float], says: str):
    made = authority.issue("untimely", *HERE, begins=days[0], ends=days[1])
    role, text = refusal(*made)
    assert role == "--tls-cert"
    assert says in text


def test_a_certificate_is_one_that_clients_take(tmp_path: Path):
    weak = own_signed(tmp_path, "RSA", "-pkeyopt", "rsa_keygen_bits:1024")
    assert "the certificate is refused as too weak (ee key too small)" in refusal(*weak)[1]
    only_client = own_signed(
        tmp_path, "EC", "-pkeyopt", "ec_paramgen_curve:P-256", extension="extendedKeyUsage=clientAuth"
    )
    assert "is not for servers: have one made with serverAuth" in refusal(*only_client)[1]


@pytest.mark.parametrize(
    "algorithm", [("ED25519",), ("ED448",), ("EC", "-pkeyopt", "ec_paramgen_curve:P-521")], ids=str
)
def test_a_key_that_grpc_cannot_sign_by_is_refused(algorithm: tuple[str, ...], tmp_path: Path):
    assert "make one of P-256 or RSA" in refusal(*own_signed(tmp_path, *algorithm))[1]


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(server: Issued, tmp_path: Path):
    for command in ("pkey", "ec"):
        locked = tmp_path / "locked.key"
        openssl(command, "-in", server.key, "-aes256", "-passout", "pass:secret", "-out", locked)
        role, text = refusal(server.cert, locked)
        assert role == "--tls-key"
        assert "the key needs a passphrase" in text


def cut(path: Path, folder: Path) -> Path:
    whole = path.read_text()
    begin = whole.index("-----BEGIN")
    made = folder / f"cut-{path.name}"
    made.write_text(whole[: begin + (len(whole) - begin) * 2 // 3])
    return made


def test_each_file_that_is_none_is_named(authority: Authority, server: Issued, tmp_path: Path):
    cert, key = server
    empty, folder = tmp_path / "empty", tmp_path
    empty.touch()
    der = tmp_path / "server.der"
    openssl("x509", "-in", cert, "-outform", "der", "-out", der)
    cases = [
        ((key, key), "--tls-cert", "it holds a key and no certificate"),
        ((cert, cert), "--tls-key", "it holds a certificate and no private key"),
        ((empty, key), "--tls-cert", "it is empty"),
        ((cert, empty), "--tls-key", "it is empty"),
        ((der, key), "--tls-cert", "it holds no certificate in PEM"),
        ((tmp_path / "no", key), "--tls-cert", f"cannot read '{tmp_path}/no': no such file or directory"),
        ((cert, folder), "--tls-key", f"cannot read '{folder}': is a directory"),
        ((cut(cert, folder), key), "--tls-cert", "is damaged or cut off"),
        ((cert, cut(key, folder)), "--tls-key", "is damaged, cut off or of no known kind"),
        ((cert, key, empty), "--tls-client-ca", "it is empty"),
        ((cert, key, key), "--tls-client-ca", "it holds a key and no certificate"),
        ((cert, key, cert), "--tls-client-ca", "it holds no certificate of an authority"),
        ((cert, key, cut(authority.cert, folder)), "--tls-client-ca", "is damaged or cut off"),
    ]
    for files, role, says in cases:
        named, text = refusal(*files)
        assert (named, says in text) == (role, True), text
        assert str(files[("--tls-cert", "--tls-key", "--tls-client-ca").index(role)]) in text


def test_contents_are_read_once(authority: Authority, server: Issued, tmp_path: Path):
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(server.cert.read_bytes())
    key.write_bytes(server.key.read_bytes())
    pair: Pair = TlsFiles(cert, key).read()
    cert.write_text("another")
    key.unlink()
    assert pair.context().minimum_version.name == "TLSv1_2"
