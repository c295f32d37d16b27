"""The page on grpcurl and buf curl: its commands run as they stand, and what it says of buf is so."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.authority import Authority
from tests.client.scripted_server import ScriptedServer
from tests.command import Served, environment, served
from tests.operations import ROOT, Block, anchors, blocks
from tests.ports import free_port
from tests.test_readme import BUF

PAGE = ROOT / "docs/grpcurl.md"
BLOCKS = blocks([PAGE])
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
TOKEN = "page-token"
REQUEST = '{"query": "a", "documents": [{"text": "b"}]}'


class Place(NamedTuple):
    """A folder to work in, and the servers that stand where the page's stand, by the end of a marker."""

    folder: Path
    servers: Mapping[str, Served]

    def local(self, text: str, kind: str) -> str:
        """Puts the tests' addresses in the place of the page's."""
        server = self.servers[kind]
        admin = next(line.split()[-1] for line in server.said if line.startswith("admin port"))
        usual = (("127.0.0.1:50051", server.target), ("127.0.0.1:50052", admin))
        for theirs, ours in (*usual, ("rerank.internal:50051", server.target)):
            text = text.replace(theirs, ours)
        return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("page")
    authority = Authority(folder / "ca")
    pair = authority.issue("here", "IP:127.0.0.1")
    client = authority.issue("client", "DNS:client")
    for file, name in ((authority.cert, "ca.pem"), (client.cert, "client.pem"), (client.key, "client.key")):
        shutil.copy(file, folder / name)
    (folder / "proto").symlink_to(ROOT / "proto")
    for block in BLOCKS:
        if block.action == "file":
            (folder / block.argument).write_text(block.text)
    (folder / "bin").mkdir()
    (folder / "bin/buf").symlink_to(BUF.resolve())
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / "bin/python").chmod(0o755)
    tls = ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-client-ca", str(authority.cert)]
    admin = ["--admin-port", "0"]
    with (
        served(*admin) as plain,
        served(*admin, RERANK_TOKENS=TOKEN) as locked,
        served(*admin, *tls[:4]) as encrypted,
        served(*admin, *tls) as mutual,
    ):
        servers = {"": plain, "a token": locked, "TLS": encrypted, "a client certificate": mutual}
        yield Place(folder, servers)


def need(tool: str) -> None:
    """Skips a test where a tool is missing; fails in CI, which brings buf."""
    if BUF.exists() if tool == "buf" else bool(shutil.which(tool)):
        return
    if os.environ.get("CI") and tool == "buf":
        pytest.fail("buf is missing: `make lint` installs it")
    pytest.skip(f"{tool} is missing")


def bash(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    own = environment(PATH=path, PYTHONPATH=str(ROOT), RERANK_TOKEN=TOKEN, NO_PROXY="127.0.0.1")
    own.pop("BUF_TIMEOUT", None)
    return subprocess.run(
        ["bash", "-uo", "pipefail", "-c", text],
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        timeout=60,
    )


def buf(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs `buf curl` in this repository."""
    need("buf")
    own = environment(NO_PROXY="127.0.0.1")
    return subprocess.run(
        [str(BUF), "curl", *words], cwd=ROOT, env=own, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_each_command_of_the_page_does_what_it_is_there_for(block: Block, place: Place):
    match = re.fullmatch(r"(run|grpcurl)(?: fails (\d+))?(?: with ([\w ]+))?", block.action)
    assert match is not None, "a comment above it says what it prints"
    need("buf" if match[1] == "run" else "grpcurl")
    assert block.text.lstrip("( ").startswith("grpcurl") == (match[1] == "grpcurl")
    done = bash(place.local(block.text, match[3] or ""), place.folder)
    assert done.returncode == int(match[2] or 0), done.stderr
    assert re.search(block.argument, done.stderr if match[2] else done.stdout), done
    assert match[2] or not done.stderr


def test_the_pages_links_lead_somewhere():
    text = PAGE.read_text("utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        if not file.startswith("https://"):
            target = (PAGE.parent / file) if file else PAGE
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target.read_text("utf-8")), link


def test_the_files_that_commands_read_are_the_pages_own(place: Place):
    read = {name for block in COMMANDS for name in re.findall(r"(?:< |@)([\w.]+)", block.text)}
    made = {name for block in BLOCKS for name in re.findall(r"> ([\w.]+)", block.text)}
    assert read <= {block.argument for block in BLOCKS if block.action == "file"} | made | {"headers"}


# What the page says of buf


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


def test_buf_sends_a_deadline_only_by_its_timeout(scripted: ScriptedServer):
    url = f"http://{scripted.target}/rerank.v1.RerankService/Rerank"
    words = ("--protocol", "grpc", "--schema", "proto", "-d", REQUEST)
    buf(*words, url)
    buf(*words, "--timeout", "50s", url)
    without, limited = (call.time_remaining for call in scripted.calls)
    assert without > 86_400
    assert 0 < limited <= 50
    refused = buf(*words, "-H", "grpc-timeout: 5S", url)
    assert (refused.returncode, len(scripted.calls)) == (1, 2)
    assert "reserved" in refused.stderr


def test_buf_speaks_connect_unless_told_to_speak_grpc(place: Place):
    url = f"http://{place.servers[''].target}/rerank.v1.RerankService/Health"
    assert buf("--schema", "proto", url).returncode > 0
    assert buf("--schema", "proto", "--protocol", "grpc", url).returncode == 0


def test_buf_needs_a_header_for_reflection_where_a_token_is_wanted(place: Place):
    url = f"http://{place.servers['a token'].target}/rerank.v1.RerankService/Health"
    words = ("--protocol", "grpc", "-H", f"authorization: Bearer {TOKEN}")
    done = buf(*words, url)
    assert (done.returncode, "failed to find service" in done.stderr) == (1, True)
    assert buf(*words, "--reflect-header", "*", url).returncode == 0


def test_buf_tells_a_server_that_is_not_there_only_by_the_schema():
    url = f"http://127.0.0.1:{free_port()}/rerank.v1.RerankService/Health"
    done = buf("--protocol", "grpc", url)
    assert (done.returncode, "failed to find service" in done.stderr) == (1, True)
    done = buf("--protocol", "grpc", "--schema", "proto", url)
    assert done.returncode == 8 * 14
    assert "connection refused" in done.stderr
