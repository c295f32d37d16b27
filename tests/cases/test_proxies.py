"""Rows 1 and 22: proxies of the environment, and targets as people type them; in real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rerank_grpc.client import Client, DeadlineExceeded, ServerUnavailable
from rerank_grpc.config.targets import read_target
from tests.command import Served, environment, run, served
from tests.rest.support import get, post

DEAD = "http://user:s3cret@127.0.0.1:9"
PROXIES = dict.fromkeys(("grpc_proxy", "https_proxy", "http_proxy"), DEAD)
# Of a net for documentation: nobody has it.
FAR = "192.0.2.7:50051"
NAMED = "through the proxy 127.0.0.1:9 of {}: add 192.0.2.7 to no_proxy to go without it"
CALL = {"query": "q", "documents": ["one", "two"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with every proxy variable in its environment."""
    with served("--rest-port", "0", **PROXIES) as server:
        yield server


@pytest.fixture(params=list(PROXIES))
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only proxy variable in the environment, also in that of the processes to come."""
    for name in (*PROXIES, "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(request.param, DEAD)
    return str(request.param)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.case(1)
def test_rest_reaches_its_own_process(server: Served) -> None:
    port = port_of(server.url)
    assert get(port, "/health").status == 200
    assert get(port, "/v1/models").json["data"][0]["id"] == "embedded"
    reply = post(port, "/v1/rerank", CALL)
    assert (reply.status, len(reply.json["results"])) == (200, 2)


@pytest.mark.case(1)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1", "dns:///localhost"])
def test_the_command_line_reaches_this_machine(server: Served, host: str) -> None:
    target = f"{host}:{port_of(server.target)}"
    for command in (["health"], ["models"], ["rerank", "q", "-"]):
        done = run(*command, "--target", target, stdin="one\ntwo\n", **PROXIES)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.case(1)
def test_a_rest_server_of_its_own_reaches_this_machine(server: Served) -> None:
    with rest_process(server.target, **PROXIES) as (port, said):
        assert get(port, "/health").status == 200
        assert post(port, "/v1/rerank", CALL).status == 200
    assert not any("proxy" in line for line in said)


@pytest.mark.case(1)
@pytest.mark.parametrize("command", [["health"], ["models"], ["rerank", "q", "-"]], ids=lambda each: each[0])
def test_an_error_through_a_proxy_names_it_on_the_command_line(variable: str, command: list[str]) -> None:
    done = run(*command, "--target", FAR, stdin="one\n")
    assert done.returncode == 1
    assert NAMED.format(variable) in done.stderr
    assert "s3cret" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.case(1)
def test_rests_log_names_the_proxy_and_its_callers_are_not_told(variable: str) -> None:
    with rest_process(FAR) as (port, said):
        for reply in (post(port, "/v1/rerank", CALL), get(port, "/v1/models")):
            assert reply.status == 503
            assert b"127.0.0.1:9" not in reply.raw
            assert b"proxy" not in reply.raw
        assert get(port, "/health").status == 503
    named = NAMED.format(variable)
    assert any(line.startswith("NOTE: 192.0.2.7:50051 is called") and named in line for line in said)
    assert any(f"rerank server {FAR} is away" in line and named in line for line in said)
    assert "s3cret" not in "".join(said)


@contextmanager
def rest_process(target: str, **variables: str) -> Iterator[tuple[int, list[str]]]:
    """Runs `rerank-grpc rest` for as long as the block runs; yields its port, and its lines."""
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", target, "--rest-port", "0"]
    command += ["--metrics-port", "off"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, encoding="utf-8", env=environment(**variables)
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if "Ctrl-C" in line:
            break
    reader = threading.Thread(target=said.extend, args=[process.stderr])
    reader.start()
    url = next(word.rstrip(",") for line in said for word in line.split() if word.startswith("http://"))
    try:
        yield port_of(url), said
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stderr.close()


@pytest.mark.case(1)
def test_a_callers_own_options_win(server: Served, variable: str) -> None:
    through = [("grpc.enable_http_proxy", 1)]
    with Client(server.target, retries=0, options=through) as client, pytest.raises(ServerUnavailable):
        client.health()
    with Client(server.target) as client:
        assert client.health().serving
    with Client(FAR, retries=0, timeout=1, options=[("grpc.enable_http_proxy", 0)]) as client:
        with pytest.raises((ServerUnavailable, DeadlineExceeded)) as failed:
            client.health()
        assert "proxy" not in str(failed.value)


@pytest.mark.case(1)
def test_a_wait_in_vain_names_the_proxy(variable: str) -> None:
    with Client(FAR) as client, pytest.raises(DeadlineExceeded) as late:
        client.wait_until_ready(0.5)
    assert NAMED.format(variable) in str(late.value)


@pytest.mark.case(22)
@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:50051", "https://rerank.internal", "grpc://h:1", "h:http", "h:0", "a b", "h:1/p"],
)
@pytest.mark.parametrize(
    "command", [["health"], ["models"], ["rerank", "q", "-"], ["rest"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_what_is_no_target_is_one_line_and_status_2(command: list[str], target: str, by: str) -> None:
    given = ["--target", target] if by == "flag" else []
    variables = {} if given else {"RERANK_TARGET": target}
    done = run(*command, *given, stdin="one\n", **variables)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    origin = "--target" if given else "RERANK_TARGET"
    assert f"{origin}: {target!r} is not HOST:PORT" in done.stderr


@pytest.mark.case(22)
@pytest.mark.parametrize(
    ("given", "called"),
    [
        ("127.0.0.1", "127.0.0.1:50051"),
        ("localhost", "localhost:50051"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("rerank.internal", "rerank.internal:50051"),
    ],
)
def test_a_target_without_a_port_is_called_at_the_default_one(given: str, called: str) -> None:
    assert read_target(given) == called
    with Client(given) as by_name, Client(called) as by_port:
        targets = {vars(client)["_replicas"].first.target for client in (by_name, by_port)}
        assert targets == {called}


@pytest.mark.case(22)
def test_a_unix_socket_is_no_port(tmp_path: object) -> None:
    done = run("health", "--target", f"unix:{tmp_path}/none.sock", "--timeout", "5", https_proxy=DEAD)
    assert done.returncode == 1
    assert "none.sock" in done.stderr
    assert "proxy" not in done.stderr
