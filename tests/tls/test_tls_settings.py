"""The files of TLS are given together, and what is wrong with one is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import read_rest_settings, read_settings
from rerank_grpc.tls.pair import TlsFiles
from tests.authority import HERE, Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


def test_flags_variables_and_a_file_give_tls_and_rest_alone_takes_it_too(
    authority: Authority, tmp_path: Path
):
    cert, key = authority.issue("server", *HERE)
    files = TlsFiles(cert, key, authority.cert)
    flags = {"tls-cert": str(cert), "tls-key": str(key), "tls-client-ca": str(authority.cert)}
    variables = {
        f"RERANK_{name.upper().replace('-', '_')}": text for name, text in flags.items() if text is not None
    }
    written = tmp_path / "rerank.toml"
    written.write_text("\n".join(f'{name} = "{text}"' for name, text in flags.items()))
    for settings in (
        read_settings(flags, {}),
        read_settings({}, variables),
        read_settings({"config": str(written)}, {}),
        read_rest_settings(flags, {}),
    ):
        assert settings.tls == files
        assert settings.tls.pair is not None
        assert settings.tls.pair.names == ("localhost", "127.0.0.1")
        assert settings.tls.pair.client_ca == authority.cert.read_bytes()
    assert read_settings({}, {}).tls is None


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (("tls-cert",), "--tls-key"),
        (("tls-key",), "--tls-cert"),
        (("tls-client-ca",), "--tls-cert and --tls-key"),
    ],
)
def test_a_part_of_tls_alone_is_refused(authority: Authority, given: tuple[str, ...], missing: str):
    with pytest.raises(OptionError) as caught:
        read_settings({name: str(authority.cert) for name in given}, {})
    text = f"--{given[0]}: TLS needs a certificate and its key: give {missing} too"
    assert str(caught.value) == text


def test_what_is_wrong_names_the_option_and_the_file(authority: Authority, tmp_path: Path):
    server, other = authority.issue("server", *HERE), authority.issue("other", *HERE)
    flags = {"tls-cert": str(server.cert), "tls-key": str(other.key)}
    with pytest.raises(OptionError, match=rf"^--tls-cert: '{server.cert}': the certificate does not fit"):
        read_settings(flags, {})
    with pytest.raises(OptionError, match=r"^RERANK_TLS_KEY: cannot read '/nowhere': no such file"):
        read_settings({"tls-cert": str(server.cert)}, {"RERANK_TLS_KEY": "/nowhere"})


@pytest.mark.parametrize("name", ["host", "rest-host"])
def test_a_unix_socket_is_an_absolute_path_without_a_port(name: str):
    port = name.replace("host", "port")
    settings = read_settings({name: "unix:/run/rerank.sock"}, {})
    assert (settings.host if name == "host" else settings.rest.host) == "unix:/run/rerank.sock"
    with pytest.raises(OptionError, match=rf"^--{port}: a Unix socket \(unix:/run/a\) has no port"):
        read_settings({name: "unix:/run/a", port: "0"}, {})
    with pytest.raises(OptionError, match="is no absolute path of a socket"):
        read_settings({name: "unix:rerank.sock"}, {})
    with pytest.raises(OptionError, match=r"or a socket as unix:/run/rerank\.sock$"):
        read_settings({name: "/run/rerank.sock"}, {})


def test_rest_listens_at_no_socket_of_grpc_and_the_other_ports_at_none():
    assert read_settings({"host": "unix:/run/rerank.sock"}, {}).rest.host == "127.0.0.1"
    assert read_settings({"rest-host": "unix:/run/a", "rest-port": "off"}, {}).rest.port is None
    for name in ("admin-host", "metrics-host"):
        with pytest.raises(OptionError, match="this port is never a Unix socket"):
            read_settings({name: "unix:/run/a"}, {})
