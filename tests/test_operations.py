"""The operators' pages: each block is run as it stands, or read as what it is, or says why it is not."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from grpc_health.v1 import health_pb2

from rerank_grpc.cli.parser import _build, parse
from rerank_grpc.config.options import REST_OPTIONS, SERVER_OPTIONS
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings_file import read_file
from tests.command import Served, environment, served
from tests.deploy.kubernetes import KUBERNETES, validate
from tests.deploy.systemd import complaints
from tests.operations import PAGES, ROOT, Block, anchors, blocks, inline, read
from tests.stubs import HealthStub
from tests.support import channel_of, wait_for
from tests.test_readme import BUF, as_buf_curl

BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.action == "run"]
SERVE = [block for block in BLOCKS if block.action == "serve"]
SILENT = [block for block in BLOCKS if not block.action]
# Options of other programs, which sentences name: pip, docker, podman, buildah, and our benchmarks.
OTHERS = {
    "--extra-index-url",
    "--volume",
    "--user",
    "--timestamp",
    "--health-start-period",
    "--cpus",
    "--cpuset-cpus",
    "--tmpfs",
    "--memory",
    "--limits",
}
IDS = re.compile(r'"(server|socket)_id": \d+')


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """Serves the embedded model at free ports, as the pages' commands find it at the usual ones."""
    with served("--rest-port", "0", "--admin-port", "0", "--metrics-port", "0") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Makes a folder to work in, with this repository's deploy/ and a machine's /etc."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    for name in ("systemd/system", "rerank"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    return tmp_path


def of(blocks: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks, ids=str)


def local(text: str, server: Served, folder: Path) -> str:
    """Puts a server of the tests, and a folder of theirs, in the place of the usual ones."""
    admin = next(line.split()[-1] for line in server.said if line.startswith("admin port"))
    for usual, ours in (
        ("127.0.0.1:50051", server.target),
        ("127.0.0.1:50052", admin),
        ("http://127.0.0.1:6006", server.url),
        ("http://127.0.0.1:9090/metrics", server.metrics_url),
        ("/etc/", f"{folder}/etc/"),
    ):
        text = text.replace(usual, ours)
    return text


def bash(text: str, folder: Path, **variables: str) -> str:
    """Runs a block as it stands, with our own command in the place of an installed one."""
    command = folder / ".bin/rerank-grpc"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rerank_grpc "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    own = environment(PYTHONPATH=str(ROOT), NO_PROXY="127.0.0.1", PATH=path, **variables)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def grpcurl(text: str) -> str:
    """Does by buf what a block's grpcurl does; an id is taken from the answer before, as a person would."""
    if not BUF.exists():
        if os.environ.get("CI"):
            pytest.fail("buf is missing: `make lint` installs it")
        pytest.skip("buf is missing: `make lint` installs it")
    answers: list[str] = []
    for line in text.splitlines():
        ours = IDS.sub(lambda match: f'"{match[1]}_id": {_last_id(match[1], answers)}', line)
        done = subprocess.run(
            as_buf_curl(shlex.split(ours)), capture_output=True, text=True, timeout=60, env=environment()
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        answers.append(done.stdout)
    return "".join(answers)


@contextlib.contextmanager
def kept_open(server: Served, text: str) -> Iterator[None]:
    """Keeps a connection open to each port of the server that a block may ask about."""
    ports = {re.findall(r"127\.0\.0\.1:(\d+)", each)[0] for each in (server.target, text)}
    with contextlib.ExitStack() as stack:
        for port in ports:
            channel = stack.enter_context(channel_of(int(port)))
            HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        yield


def _last_id(kind: str, answers: list[str]) -> str:
    """Finds the first id of a kind in the last answer that has one."""
    found = (re.search(rf'"{kind}Id": ?"(\d+)"', answer) for answer in reversed(answers))
    return next(match[1] for match in found if match)


@of(RUN)
def test_a_block_prints_what_its_marker_says(server, folder, block):
    ours = local(block.text, server, folder)
    if block.text.startswith("grpcurl"):
        with kept_open(server, ours):
            said = grpcurl(ours)
    else:
        said = bash(ours, folder, RERANK_TARGET=server.target, NEW="new-token", OLD="old-token")
    assert block.argument
    assert re.search(block.argument, said, re.DOTALL), said


@of(SERVE)
def test_a_server_of_a_block_answers_health_and_ends_by_sigterm(server, folder, block):
    # One server stands for several targets.
    targets = re.sub(r"\brerank-\d:50051\b", server.target, block.text)
    assert targets != block.text
    ports = "--rest-port 0 --metrics-port 0"
    script = local(targets, server, folder).replace(
        "rerank-grpc rest", f"{sys.executable} -m rerank_grpc rest {ports}"
    )
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-ec", re.sub(rf"({re.escape(sys.executable)})", r"exec \1", script)],
            cwd=folder, stderr=output, env=environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip
    try:
        wait_for(lambda: "Ctrl-C stops it." in log.read_text() or process.poll() is not None, 60)
        (port,) = re.findall(r"serves REST at http://127\.0\.0\.1:(\d+)", log.read_text())
        asked = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        asked.request("GET", "/health")
        answer = asked.getresponse()
        said = answer.read().decode()
        asked.close()
        assert answer.status == 200
        assert re.search(block.argument, said), said
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()


@of(SILENT)
def test_a_block_without_a_command_is_what_it_says_it_is(tmp_path, block):
    match block.language:
        case "toml":
            path = tmp_path / "settings.toml"
            path.write_text(block.text)
            assert read_file(str(path), "--config", (*SERVER_OPTIONS, *REST_OPTIONS))
        case "yaml":
            for each in yaml.safe_load_all(block.text):
                if "apiVersion" in each:
                    validate(each, KUBERNETES[0])
                elif set(each) == {"spec"}:  # the part of a pod that matters to the page
                    validate(
                        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "page"}} | each,
                        KUBERNETES[0],
                    )
                else:
                    assert set(each) <= {"services", "volumes", "networks", "configs", "secrets"}
        case "json":
            json.loads(block.text)
        case "ini":
            assert complaints(tmp_path, block.text) == ""
        case language:
            pytest.fail(f"{block}: {language or 'text'} without a marker: run:, serve: or not run:")


@of([block for block in BLOCKS if block.action])
def test_a_marker_is_one_of_three_and_says_more(block):
    assert block.action in ("run", "serve", "not run")
    assert len(block.argument) >= 2
    # What is not run may be a sample of what is printed, too.
    assert block.language == "sh" or (block.action == "not run" and block.language in ("", "text"))


def our_commands(text: str) -> Iterator[list[str]]:
    """Finds the command lines of ours in a text of a shell: their words behind the program's name."""
    for line in text.replace("\\\n", " ").splitlines():
        for found in re.findall(r"(?:^|[ /|(])rerank-grpc ([a-z][^|>&;#)]*)", line.split("kubectl")[0]):
            yield shlex.split(found)


@of([block for block in BLOCKS if block.action == "not run" and "rerank-grpc " in block.text])
def test_the_commands_of_a_block_that_is_not_run_are_ours(block):
    for words in our_commands(block.text):
        if words[0] not in ("|", "--version"):
            assert parse(words).run


@of([block for block in BLOCKS if block.action == "not run"])
def test_files_that_a_block_names_are_there(block):
    for path in re.findall(r"(?<![\w/])deploy/[\w./-]+", block.text):
        assert (ROOT / path).exists()


def our_options() -> set[str]:
    """Collects the options of all our commands."""
    _, commands = _build()
    return {
        text for command in commands.values() for action in command._actions for text in action.option_strings
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_options_and_variables_within_lines_are_ours(path):
    for code in inline(path.read_text("utf-8")):
        command = re.match(r"(?:[A-Z_]+=\S+ )*rerank-grpc ([a-z].*)", code)
        if command and not command[1].endswith("..."):
            check_command(shlex.split(command[1]))
        if option := re.match(r"--[a-z][\w-]+", code):
            assert option[0] in {*our_options(), *OTHERS}, code
        for variable in re.findall(r"\bRERANK_[A-Z_]*[A-Z]", code):
            read_settings({}, {variable: ""})  # which raises OptionError for one that is not ours


def check_command(words: list[str]) -> None:
    """Parses a command line of ours; a command that is named alone may lack what it needs to run."""
    if len(words) == 1 or words[-1] == "--help":
        with pytest.raises(SystemExit):
            parse([words[0], "--help"])
    else:
        assert parse(words).command == words[0]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "docs/kubernetes.md"], ids=lambda path: path.stem)
def test_links_lead_to_files_and_headings_that_exist(path):
    page = path.read_text("utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page):
        there = path.parent / target if target else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text("utf-8")), f"{target}#{anchor}"


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\(operations/([\w-]+\.md)", read("")))
    assert {path.name for path in PAGES[1:]} <= linked


def test_every_page_fits_on_a_few_screens():
    long = {path.stem: len(path.read_text("utf-8").splitlines()) for path in PAGES}
    assert {name: lines for name, lines in long.items() if lines > 200} == {}
