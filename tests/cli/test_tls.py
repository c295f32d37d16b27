"""The commands over TLS: by their options, by the settings of a server here, and how each failure is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer

from rerank_grpc.cli import main
from rerank_grpc.cli.parser import parse
from rerank_grpc.client import core, unavailable
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import read_client_settings, read_rest_settings
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.authority import HERE, Authority
from tests.client.scripted_server import ScriptedServer, health, reply

Serve = Callable[..., ScriptedServer]


class Paper:
    """Certificates of two CAs, as the texts of their paths."""

    def __init__(self, folder: Path) -> None:
        ca, other = Authority(folder / "ca"), Authority(folder / "other")
        self.ca, self.other_ca = str(ca.cert), str(other.cert)
        self.here = tuple(map(str, ca.issue("here", *HERE)))
        self.named = tuple(map(str, ca.issue("named", "DNS:rerank.internal")))
        self.old = tuple(map(str, ca.issue("old", *HERE, begins=-2, ends=-1)))
        self.alice = tuple(map(str, ca.issue("alice", "DNS:alice")))
        self.eve = tuple(map(str, other.issue("eve", "DNS:eve")))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a look for the reason of a failure last longer than a pause of a busy machine."""
    monkeypatch.setattr(core, "LOOK_SECONDS", 30.0)
    monkeypatch.setattr(unavailable, "PROBE_SECONDS", 30.0)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Paper:
    return Paper(tmp_path_factory.mktemp("paper"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a scripted server with a certificate and key; with a client CA it wants one of its callers."""
    with ExitStack() as stack:

        def serve(pair: tuple[str, ...] | None, client_ca: str | None = None) -> ScriptedServer:
            credentials = None
            if pair is not None:
                cert, key = (Path(path).read_bytes() for path in pair)
                trusted = Path(client_ca).read_bytes() if client_ca else None
                credentials = grpc.ssl_server_credentials([(key, cert)], trusted, client_ca is not None)
            server = ScriptedServer(credentials=credentials, probe=HealthServicer())
            server.otherwise = reply(health(pb.MODEL_STATE_READY, True))
            assert server.probe is not None
            server.probe.set("", health_pb2.HealthCheckResponse.SERVING)
            server.start()
            stack.callback(server.stop)
            return server

        yield serve


def test_a_ca_alone_means_tls(paper: Paper, serve: Serve, monkeypatch, capsys):
    server = serve(paper.here)
    assert main(["health", "--target", server.target, "--ca", paper.ca]) == 0
    monkeypatch.setenv("RERANK_CA", paper.ca)
    assert main(["health", "--target", server.target]) == 0
    assert main(["health", "--target", server.target, "--tls"]) == 0
    assert capsys.readouterr().err == ""


def test_a_certificate_and_another_name_are_given_by_options_or_variables(paper, serve, monkeypatch, capsys):
    server = serve(paper.named, paper.ca)
    cert, key = paper.alice
    options = ["--ca", paper.ca, "--cert", cert, "--key", key, "--server-name", "rerank.internal"]
    assert main(["health", "--target", server.target, *options]) == 0
    variables = {"CA": paper.ca, "CERT": cert, "KEY": key, "SERVER_NAME": "rerank.internal", "TLS": "on"}
    for name, text in variables.items():
        monkeypatch.setenv(f"RERANK_{name}", text)
    assert main(["health", "--target", server.target]) == 0
    assert capsys.readouterr().err == ""


def test_a_switch_takes_no_value_from_the_words_that_follow():
    parsed = parse(["rerank", "--tls", "what is a panda?", "docs.txt"])
    assert (parsed.query, parsed.files, parsed.flags["tls"]) == ("what is a panda?", ["docs.txt"], "on")


@pytest.mark.parametrize(
    ("pair", "options", "says"),
    [
        ("here", lambda paper: ["--ca", paper.other_ca], "signed by none of the CAs of '"),
        ("named", lambda paper: ["--ca", paper.ca], "is for rerank.internal, not for 127.0.0.1"),
        ("old", lambda paper: ["--ca", paper.ca], "has expired on "),
        ("here", lambda _: [], "it speaks TLS there: call it with --tls"),
        (None, lambda paper: ["--ca", paper.ca], "it speaks no TLS there: call it without --tls"),
    ],
)
def test_a_failure_is_one_line_that_begins_with_the_target(pair, options, says, paper, serve, capsys):
    server = serve(pair and getattr(paper, pair))
    assert main(["models", "--target", server.target, *options(paper)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"rerank-grpc: error: {server.target}: ")
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert says in said.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cert", "alice.pem"], "--cert: needs its private key: give key too"),
        (["--key", "alice.key"], "--key: needs the certificate that it belongs to"),
        (["--ca", "none.pem"], "--ca: cannot read 'none.pem': no such file or directory: check the path"),
        (["--ca", "alice.key"], "--ca: 'alice.key': it holds a key and no certificate"),
        (
            ["--cert", "alice.pem", "--key", "here.key"],
            "--cert: 'alice.pem': the certificate does not fit the key 'here.key'",
        ),
        (["--server-name", "a"], "--server-name: is for TLS: give tls or ca too"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(options, says, paper, monkeypatch, capsys):
    monkeypatch.chdir(Path(paper.ca).parent)
    assert main(["health", "--target", "far:1", *options]) == 2
    assert capsys.readouterr().err.startswith(f"rerank-grpc: error: {says}")
    upstream = {
        f"upstream-{name.removeprefix('--')}": text
        for name, text in zip(options[::2], options[1::2], strict=True)
    }
    with pytest.raises(OptionError, match=f"^--upstream-{says.partition(':')[0].removeprefix('--')}: "):
        read_rest_settings(upstream, {})


def test_a_variable_is_named_where_it_is_what_is_wrong(paper: Paper):
    with pytest.raises(OptionError, match=r"^RERANK_TLS: is off, and ca is for TLS"):
        read_client_settings({"ca": paper.ca}, {"RERANK_TLS": "off"})
    with pytest.raises(OptionError, match=r"^RERANK_CA: cannot read "):
        read_client_settings({}, {"RERANK_CA": "/none/such"})
    with pytest.raises(OptionError, match=r"^RERANK_TLS: 'yes' is none of on, off"):
        read_client_settings({}, {"RERANK_TLS": "yes"})


def test_the_key_may_come_from_a_pipe_and_shows_nowhere(paper: Paper, tmp_path: Path):
    reading, writing = os.pipe()
    cert, key = paper.alice
    os.write(writing, Path(key).read_bytes())
    os.close(writing)
    settings = read_client_settings({"target": "a", "cert": cert, "key": f"/dev/fd/{reading}"}, {})
    os.close(reading)
    assert settings.tls is not None
    assert settings.tls.key == Path(key).read_bytes()
    assert "PRIVATE" not in repr(settings)


def test_a_token_in_plaintext_to_another_machine_is_warned_of_once(capsys):
    for target, warned in (("192.0.2.7:1", True), ("127.0.0.1:1", False), ("unix:/none/such", False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RERANK_TOKEN", "canary")
            assert main(["models", "--target", target, "--timeout", "0.2"]) == 1
        said = capsys.readouterr().err
        assert ("rerank-grpc: warning: the token goes to 192.0.2.7:1 in plaintext" in said) is warned
        assert "canary" not in said


def test_a_unix_socket_is_a_target(tmp_path: Path, capsys):
    server = ScriptedServer(address=f"unix:{tmp_path}/rerank.sock")
    server.otherwise = reply(health(pb.MODEL_STATE_READY, True))
    server.start()
    try:
        for target in (f"unix:{tmp_path}/rerank.sock", f"unix://{tmp_path}/rerank.sock"):
            assert main(["health", "--target", target]) == 0
    finally:
        server.stop()
    assert main(["health", "--target", f"unix:{tmp_path}/none.sock"]) == 1
    assert "no such socket: start the server" in capsys.readouterr().err
