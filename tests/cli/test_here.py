"""`rerank-grpc health --here`: it finds the container's own server, and asks it as its role is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer

from rerank_grpc.cli import ask, main
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import read_listening
from rerank_grpc.config.running import role_of, server_command
from tests.client.scripted_server import ScriptedServer


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/opt/rerank/bin/python /opt/service/bin/rerank-grpc serve", "serve"),
        ("/opt/rerank/bin/python /opt/service/bin/rerank-grpc rest --target a:1", "rest --target a:1"),
        ("python -m rerank_grpc serve --port 6000", "serve --port 6000"),
        ("rerank-grpc serve", "serve"),
        ("/opt/rerank/bin/python /opt/service/bin/rerank-grpc health --here", None),
        ("python -m rerank_grpc", None),
        ("sh -c rerank-grpc serve", None),  # one word: the shell's own child is the server
        ("/sbin/docker-init -- rerank-grpc serve", "serve"),
        ("/usr/bin/tini -s -- rerank-grpc serve --port 6000", "serve --port 6000"),
        ("python -X dev -W error -m rerank_grpc rest --target a:1", "rest --target a:1"),
        ("rerank-grpc health --target rerank-grpc", None),
        ("vim rerank-grpc.txt serve", None),
        ("", None),
    ],
)
def test_a_server_is_told_by_its_command_line(line: str, command: str | None):
    words = line.split(" ") if not line.startswith("sh ") else ["sh", "-c", line[6:]]
    assert role_of(words) == (command and command.split())


def processes(root: Path, *rows: tuple[int, str, str]) -> Path:
    """Lays out what /proc tells of some processes: number, mount namespace, command line."""
    for number, namespace, line in rows:
        folder = root / str(number)
        (folder / "ns").mkdir(parents=True)
        (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in line.split()))
    (root / "self").symlink_to(str(rows[-1][0]))
    return root


def test_the_server_of_this_container_is_found_behind_an_init(tmp_path: Path):
    listed = processes(
        tmp_path,
        (1, "7", "/sbin/docker-init -v"),
        (8, "7", "python rerank-grpc rest --target a:1"),
        (20, "7", "python rerank-grpc health --here"),
    )
    assert server_command(listed) == ["rest", "--target", "a:1"]


def test_a_server_of_another_container_is_passed_over(tmp_path: Path):
    rows = [(5, "6", "rerank-grpc serve --port 1"), (11, "7", "rerank-grpc serve --port 2"), (20, "7", "sh")]
    assert server_command(processes(tmp_path / "shared", *rows)) == ["serve", "--port", "2"]
    assert server_command(processes(tmp_path / "alone", rows[0], rows[2])) is None
    assert server_command(tmp_path / "nothing") is None


def test_the_address_comes_from_the_servers_flags_variables_and_file(tmp_path: Path):
    assert read_listening({}, {}) == ("127.0.0.1", 50051)
    assert read_listening({}, {}, rest=True) == ("127.0.0.1", 6006)
    assert read_listening({"port": "7"}, {"RERANK_HOST": "0.0.0.0", "RERANK_PORT": "8"}) == ("127.0.0.1", 7)
    assert read_listening({}, {"RERANK_REST_HOST": "::", "RERANK_REST_PORT": "9"}, rest=True) == ("::1", 9)
    (tmp_path / "rerank.toml").write_text('port = 10\ntoken-file = "/none/such"\n')
    assert read_listening({"config": str(tmp_path / "rerank.toml")}, {}) == ("127.0.0.1", 10)
    with pytest.raises(OptionError, match="RERANK_PORT: the system chooses the port"):
        read_listening({}, {"RERANK_PORT": "0"})


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(probe=HealthServicer())
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("state", "status"),
    [(health_pb2.HealthCheckResponse.SERVING, 0), (health_pb2.HealthCheckResponse.NOT_SERVING, 1)],
)
def test_serve_is_asked_by_grpc_without_a_token(
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: Any,
    status: int,
):
    assert server.probe is not None
    server.probe.set("", state)
    # This machine runs other servers too; which one is meant is tested above.
    monkeypatch.setattr(ask, "server_command", lambda: ["serve", "--port", str(server.port)])
    monkeypatch.setenv("RERANK_TOKEN_FILE", "/none/such")
    assert main(["health", "--here", "--json"]) == status
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"role": "serve", "address": f"127.0.0.1:{server.port}", "serving": status == 0}


@pytest.mark.parametrize("role", ["serve", "rest"])
def test_a_server_that_does_not_answer_is_unhealthy_in_one_line(
    role: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = {"serve": ["serve", "--port", "1"], "rest": ["rest", "--rest-port", "1"]}[role]
    monkeypatch.setattr(ask, "server_command", lambda: arguments)
    assert main(["health", "--here", "--timeout", "2"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "127.0.0.1:1" in said.err


def test_without_a_server_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(ask, "server_command", lambda: None)
    assert main(["health", "--here"]) == 1
    assert capsys.readouterr().err == "rerank-grpc: error: no rerank-grpc serve or rest runs here\n"


@pytest.mark.parametrize("flags", [["--model", "bge"], ["--target", "a:1"], ["--token-file", "x"]])
def test_it_takes_nothing_that_names_another_server(flags: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["health", "--here", *flags]) == 2
    assert f"takes no {flags[0]}" in capsys.readouterr().err
