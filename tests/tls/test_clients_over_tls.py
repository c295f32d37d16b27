"""The real server over TLS, with a private CA, and its real callers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rerank_grpc.cli import ask, main
from rerank_grpc.client import AsyncClient, Client, TlsError, TlsProblem
from rerank_grpc.tls.channel import TlsSources
from tests.authority import HERE, Authority, Issued
from tests.command import Served, environment, run, served
from tests.rest.support import post, rest_server

ROOT = Path(__file__).parents[2]
BUF = ROOT / "tools/buf/node_modules/.bin/buf"
TOKEN = "s3cret"
QUERY, DOCUMENTS = "reset password", ["Closed today.", "Forgot password?"]
BODY = json.dumps({"query": QUERY, "documents": DOCUMENTS})


class Server(NamedTuple):
    """A server that is called by its target, and REST at its URL, by who trusts `ca`."""

    process: Served
    ca: Path
    pair: Issued
    alice: Issued

    @property
    def target(self) -> str:
        return str(self.process.target)

    @property
    def port(self) -> int:
        return int(self.target.rpartition(":")[2])

    @property
    def presenting(self) -> dict[str, Any]:
        """Makes the arguments of a client that presents a certificate."""
        return {"ca": self.ca, "cert": self.alice.cert, "key": self.alice.key}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Issued, Issued]:
    ca = Authority(tmp_path_factory.mktemp("papers") / "ca")
    return ca.cert, ca.issue("here", *HERE), ca.issue("alice", "DNS:alice")


@pytest.fixture(scope="module")
def server(papers: tuple[Path, Issued, Issued]) -> Iterator[Server]:
    ca, pair, alice = papers
    options = ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--rest-port", "0"]
    with served(*options, RERANK_TOKENS=TOKEN) as process:
        yield Server(process, ca, pair, alice)


@pytest.fixture(scope="module")
def mutual(papers: tuple[Path, Issued, Issued]) -> Iterator[Server]:
    ca, pair, alice = papers
    options = ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(ca)]
    with served(*options, "--rest-port", "0") as process:
        yield Server(process, ca, pair, alice)


def test_pythons_clients_rerank(server: Server):
    async def ask_it() -> Any:
        async with AsyncClient(server.target, ca=server.ca, token=TOKEN) as client:
            return await client.rerank(QUERY, DOCUMENTS)

    with Client(server.target, ca=server.ca.read_bytes(), token=TOKEN) as client:
        assert client.wait_until_ready(20).serving
        assert client.rerank(QUERY, DOCUMENTS).results == asyncio.run(ask_it()).results
        assert [result.index for result in client.stream_rerank(QUERY, DOCUMENTS)] != []


def test_the_name_in_a_certificate_lets_its_caller_in(mutual: Server):
    with Client(mutual.target, **mutual.presenting) as client:
        assert client.rerank(QUERY, DOCUMENTS).results[0].index == 1
    with Client(mutual.target, ca=mutual.ca) as client, pytest.raises(TlsError) as caught:
        client.health()
    assert caught.value.problem is TlsProblem.CLIENT_CERTIFICATE_MISSING


def test_the_command_line_ranks(server: Server, tmp_path: Path):
    (tmp_path / "lines").write_text("\n".join(DOCUMENTS))
    words = ("rerank", QUERY, str(tmp_path / "lines"), "--json", "--target", server.target)
    done = run(*words, "--ca", str(server.ca), RERANK_TOKEN=TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["results"][0]["text"] == DOCUMENTS[1]
    told = run(*words, RERANK_TOKEN=TOKEN)
    assert told.returncode == 1
    assert "it speaks TLS there: call it with --tls" in told.stderr


def curl(*words: str) -> dict[str, Any]:
    """Calls by curl; it is skipped only where there is none."""
    if shutil.which("curl") is None:
        if os.environ.get("CI"):
            pytest.fail("curl is missing")
        pytest.skip("curl is missing")
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--noproxy", "*", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def test_curl_calls_rest(server: Server, mutual: Server):
    assert server.process.url.startswith("https://")
    token = ("-H", f"Authorization: Bearer {TOKEN}")
    reply = curl("--cacert", str(server.ca), *token, "-d", BODY, f"{server.process.url}/v1/rerank")
    assert reply["results"][0]["index"] == 1
    own = ("--cert", str(mutual.alice.cert), "--key", str(mutual.alice.key))
    reply = curl("--cacert", str(mutual.ca), *own, "-d", BODY, f"{mutual.process.url}/v1/rerank")
    assert reply["results"][0]["index"] == 1


def buf_curl(url: str, *words: str) -> dict[str, Any]:
    """Calls the contract by buf curl, which stands for grpcurl too."""
    if not BUF.exists():
        if os.environ.get("CI"):
            pytest.fail("buf is missing: `make lint` installs it")
        pytest.skip("buf is missing: `make lint` installs it")
    data = json.dumps({"query": QUERY, "documents": [{"text": text} for text in DOCUMENTS]})
    method = f"{url}/rerank.v1.RerankService/Rerank"
    command = [str(BUF), "curl", "--schema", str(ROOT / "proto"), *words, "-d", data, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_buf_curl_calls_grpc_and_rest(protocol: str, server: Server, mutual: Server):
    for called, words in (
        (server, ("-H", f"Authorization: Bearer {TOKEN}")),
        (mutual, ("--cert", str(mutual.alice.cert), "--key", str(mutual.alice.key))),
    ):
        url = f"https://{called.target}" if protocol == "grpc" else called.process.url
        reply = buf_curl(url, "--protocol", protocol, "--cacert", str(called.ca), *words)
        assert reply["results"][0]["index"] == 1


def test_rest_in_a_process_of_its_own_calls_its_servers_by_tls(server: Server, mutual: Server):
    sources = TlsSources(server.ca).held()
    with rest_server(server.port, upstream_tls=sources, upstream_token=TOKEN) as port:
        reply = post(port, "/v1/rerank", json.loads(BODY), authorization=f"Bearer {TOKEN}")
        assert (reply.status, reply.json["results"][0]["index"]) == (200, 1)
    sources = TlsSources(**mutual.presenting).held()
    with rest_server(mutual.port, upstream_tls=sources) as port:
        assert post(port, "/v1/rerank", json.loads(BODY)).status == 200
    with rest_server(mutual.port, upstream_tls=TlsSources(server.ca).held()) as port:
        assert post(port, "/v1/rerank", json.loads(BODY)).status == 503


class Here(NamedTuple):
    """A server's command line, as the health check finds it."""

    words: list[str]
    variables: dict[str, str]


def here(called: Server, *, mutual: bool) -> Here:
    pair = {"tls-cert": called.pair.cert, "tls-key": called.pair.key}
    options = {**pair, **({"tls-client-ca": called.ca} if mutual else {}), "port": called.port}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    variables = {f"RERANK_{name.upper().replace('-', '_')}": str(value) for name, value in options.items()}
    return Here(["serve", *words], variables)


def test_the_health_check_of_a_container_needs_no_option(server: Server, mutual: Server, monkeypatch, capsys):
    for called in (server, mutual):
        monkeypatch.setattr(
            ask, "server_command", lambda called=called: here(called, mutual=called is mutual).words
        )
        assert main(["health", "--here"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count(" is serving") == 2


def test_the_health_check_outlives_a_file_that_no_longer_fits(server: Server, tmp_path, monkeypatch, capsys):
    """The server keeps what it had: a broken certificate in the file is no reason to end it."""
    words = here(server, mutual=False).words
    words[words.index("--tls-cert") + 1] = str(tmp_path / "broken.pem")
    (tmp_path / "broken.pem").write_text("broken")
    monkeypatch.setattr(ask, "server_command", lambda: words)
    assert main(["health", "--here"]) == 0, capsys.readouterr().err


def test_the_health_check_of_rest_by_tls(server: Server, mutual: Server, monkeypatch, capsys):
    for called in (server, mutual):
        options = here(called, mutual=called is mutual).words[1:-2]
        words = ["rest", *options, "--rest-port", called.process.url.rpartition(":")[2]]
        monkeypatch.setattr(ask, "server_command", lambda words=words: words)
        assert main(["health", "--here"]) == 0, capsys.readouterr().err


def test_a_client_without_a_target_calls_the_server_here_by_its_own_certificate(server, mutual, papers):
    for called, token in ((server, {"RERANK_TOKENS": TOKEN}), (mutual, {})):
        variables = here(called, mutual=called is mutual).variables | token
        for options in ((), ("--tls",)):
            done = run("models", *options, **variables)
            assert (done.returncode, done.stderr) == (0, "")
            assert "embedded" in done.stdout
    done = run("models", RERANK_TLS="off", **here(server, mutual=False).variables)
    assert "it speaks TLS there" in done.stderr


def test_a_token_is_not_sent_to_another_certificate_than_the_servers_own(server, papers, tmp_path):
    other = Authority(tmp_path / "other").issue("here", *HERE)
    variables = here(server, mutual=False).variables | {"RERANK_TOKENS": TOKEN}
    variables |= {"RERANK_TLS_CERT": str(other.cert), "RERANK_TLS_KEY": str(other.key)}
    done = run("models", **variables)
    assert done.returncode == 1
    assert f"signed by none of the CAs of '{other.cert}'" in done.stderr


def test_a_socket_of_this_machine_is_called_by_its_path(tmp_path: Path, monkeypatch, capsys):
    host = f"unix:{tmp_path}/rerank.sock"
    rest = f"unix:{tmp_path}/rest.sock"
    options = ["--host", host, "--rest-host", rest, "--admin-port", "off", "--metrics-port", "off"]
    command = [sys.executable, "-m", "rerank_grpc", "serve", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment()) as process:
        try:
            with Client(host) as client:
                client.wait_until_ready(60)
            assert main(["health", "--target", f"unix://{tmp_path}/rerank.sock"]) == 0
            for words in (["serve", "--host", host], ["rest", "--rest-host", rest]):
                monkeypatch.setattr(ask, "server_command", lambda words=words: words)
                assert main(["health", "--here"]) == 0, capsys.readouterr().err
            monkeypatch.setenv("RERANK_HOST", host)
            assert main(["health"]) == 0
        finally:
            process.kill()
    assert capsys.readouterr().err == ""
