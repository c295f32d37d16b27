"""`rerank-grpc config` and `--config`, by real processes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.cli.parser import parse
from rerank_grpc.cli.setup.config import options
from rerank_grpc.config.options import CONFIG_OPTION, REST_OPTIONS, SERVER_OPTIONS
from tests.command import environment, run, served


def rows(text: str) -> dict[str, list[str]]:
    """Reads a printed table: the value and the origin of each setting."""
    head, *lines = text.splitlines()
    value, origin = head.index("value"), head.index("from")
    return {line[:value].strip(): [line[value:origin].strip(), line[origin:].strip()] for line in lines}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rerank.toml"
    path.write_text('port = 6000\ngrace = 7\ntoken-file = "tokens"\nalias = ["tiny=embedded"]\n')
    (tmp_path / "tokens").write_text("canary-one\ncanary-two\n")
    return str(path)


def test_it_prints_what_holds_and_where_it_came_from(file: str):
    done = run("config", "--config", file, "--device", "cpu", RERANK_GRACE="8", RERANK_TOKENS="canary-three")
    assert (done.returncode, done.stderr) == (0, "")
    assert "canary" not in done.stdout
    assert "\x1b" not in done.stdout
    told = rows(done.stdout)
    assert list(told) == [*(option.name for option in SERVER_OPTIONS), "tokens"]
    folder = str(Path(file).parent)
    assert told["device"] == ["cpu", "flag --device"]
    assert told["grace"] == ["8", "variable RERANK_GRACE"]
    assert told["port"] == ["6000", f"file {file}"]
    assert told["alias"] == ["tiny=embedded", f"file {file}"]
    assert told["token-file"] == [f"{folder}/tokens", f"file {file}"]
    assert told["tokens"] == ["3 tokens", f"file {folder}/tokens, variable RERANK_TOKENS"]
    assert told["catalogue"] == ["none", "default"]
    assert told["max-batch-tokens"] == ["auto", "default"]


def test_it_prints_those_of_rest_too():
    done = run(
        *("config", "--for", "rest", "--target", "a:1", "--target", "b:2"),
        RERANK_UPSTREAM_TOKEN="canary",
        RERANK_REST_PORT="7007",
        RERANK_PORT="1",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "canary" not in done.stdout
    told = rows(done.stdout)
    assert list(told) == [*(option.name for option in REST_OPTIONS), "tokens", "upstream token"]
    assert told["target"] == ["a:1, b:2", "flag --target"]
    assert told["rest-port"] == ["7007", "variable RERANK_REST_PORT"]
    assert told["upstream token"] == ["set", "variable RERANK_UPSTREAM_TOKEN"]


def test_what_it_prints_as_toml_gives_the_same_settings(file: str, tmp_path: Path):
    first = run("config", "--config", file, "--host", "0.0.0.0", "--toml")
    assert (first.returncode, first.stderr) == (0, "")
    assert "canary" not in first.stdout
    (tmp_path / "deeper").mkdir()
    copy = tmp_path / "deeper" / "copy.toml"
    copy.write_text(first.stdout)
    before = rows(run("config", "--config", file, "--host", "0.0.0.0").stdout)
    after = rows(run("config", RERANK_CONFIG=str(copy)).stdout)
    assert {name: value for name, (value, _) in after.items()} == {
        name: value for name, (value, _) in before.items()
    }
    assert after["host"][1] == f"file {copy}"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "abc"], "--port: 'abc' is not a port"),
        (["--prot", "1"], "unknown option --prot; did you mean --port?"),
        (
            ["--for", "rest", "--model", "x"],
            "--model: `rerank-grpc rest` has no such option: see config --for",
        ),
        (["--target", "a:1"], "--target: `rerank-grpc serve` has no such option: see config --for"),
        (["--for", "rest", "--rest-port", "off"], "--rest-port: 'off' leaves nothing to run"),
        (["--for", "top"], "invalid choice: 'top'"),
        (["--pin", "x"], "--pin: no model is named 'x'"),
        (["--config", "no/such.toml"], "--config: cannot read 'no/such.toml': no such file"),
        (["--token-file", "no/such"], "--token-file: cannot read 'no/such': no such file"),
    ],
)
def test_what_the_server_would_refuse_is_one_line_and_exit_2(arguments: list[str], complaint: str):
    done = run("config", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("rerank-grpc: error: ")
    assert complaint in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["rest"], ["config"], ["config", "--toml"], ["health"]])
def test_a_bad_file_is_one_line_for_every_command(tmp_path: Path, command: list[str]):
    (tmp_path / "rerank.toml").write_text("prot = 1\n")
    done = run(*command, RERANK_CONFIG=str(tmp_path / "rerank.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"rerank-grpc: error: {tmp_path}/rerank.toml: prot: unknown key; did you mean port?\n"
    )


def test_the_server_obeys_the_file_and_health_finds_it_there(tmp_path: Path):
    path = tmp_path / "rerank.toml"
    (tmp_path / "tokens").write_text("s3cret\n")
    # The port of the flag wins.
    path.write_text('port = 1\ntoken-file = "tokens"\nalias = ["tiny=embedded"]\n')
    with served("--config", str(path)) as server:
        refused = run("models", RERANK_TARGET=server.target)
        assert "token" in refused.stderr
        listed = run("models", RERANK_TARGET=server.target, RERANK_TOKEN="s3cret")
        assert "tiny" in listed.stdout
        # As in a container: the same file says where the server is and which token it wants.
        path.write_text(f'port = {server.target.rpartition(":")[2]}\ntoken-file = "tokens"\n')
        health = run("health", RERANK_CONFIG=str(path))
        assert (health.returncode, health.stderr) == (0, "")


def test_it_needs_the_base_install_alone(file: str):
    missing = ("torch", "transformers", "numpy", "grpc_health", "starlette", "rich", "structlog")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        f"from rerank_grpc.cli import main; sys.exit(main(['config', '--config', {file!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["serve", "rest", "config"])
def test_its_help_names_the_file_and_its_variable(command: str):
    done = run(command, "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config FILE" in done.stdout
    assert "[RERANK_CONFIG]" in done.stdout
    assert "examples:\n  " in done.stdout


def test_it_takes_every_option_of_both_servers_once():
    names = [option.name for option in options()]
    assert len(names) == len(set(names))
    assert set(names) == {option.name for option in (CONFIG_OPTION, *SERVER_OPTIONS, *REST_OPTIONS)}
    assert parse(["config"]).of == "serve"


def test_a_shell_completes_the_file():
    script = run("completion", "bash").stdout
    assert "_shtab_rerank_grpc_config___config_COMPGEN=_shtab_compgen_files" in script
    assert "_shtab_rerank_grpc_serve___config_COMPGEN=_shtab_compgen_files" in script


def test_a_narrow_terminal_gets_a_block_for_each_setting():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank_grpc", "config", "--models-dir", "/a/" + "long/" * 20],
        stdout=theirs,
        env=environment(TERM="xterm", NO_COLOR="1", COLUMNS="60"),
    )
    os.close(theirs)
    said = b""
    while b"tokens" not in said.rpartition(b"\n\r\n")[2] and b"setting  tokens" not in said:
        said += os.read(ours, 65_536)
    assert process.wait(60) == 0
    os.close(ours)
    assert max(map(len, said.decode().splitlines())) <= 60
