"""The README's own commands run, and its table of options is the real one."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_grpc.checkpoints.catalogue import read_catalogue
from rerank_grpc.config.options import CONFIG_OPTION, SERVER_OPTIONS
from tests.command import environment, served
from tests.loadtest.support import unhurried_commands
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
BUF = ROOT / "tools/buf/node_modules/.bin/buf"
PAGES = ("README.md", "README.zh-CN.md")
BENCH_STEP = r"(?m)^\d+ calls/s for \d+\.\d s\n"  # said by bench on stderr, as it goes on


@pytest.fixture(scope="module")
def servers():
    """Serves the embedded model without a token, and with one: by the marker of a block."""
    with served("--rest-port", "0") as open_, served("--rest-port", "0", RERANK_TOKENS="TOKEN") as locked:
        yield {"test": open_, "test with a token": locked}


def blocks(page):
    """Reads the fenced blocks that are marked as to be tested: (marker, language, text)."""
    return re.findall(r"<!-- (test(?: with a token)?) -->\n```(\w+)\n(.*?)```", read(page), re.DOTALL)


def as_buf_curl(command):
    """Turns a grpcurl command line into the arguments of buf that do the same."""
    assert command[:2] == ["grpcurl", "-plaintext"]
    arguments, data = command[2:], []
    if arguments[0] == "-H":
        data, arguments = ["--header", arguments[1], "--reflect-header", arguments[1]], arguments[2:]
    if arguments[0] == "-d":
        data, arguments = [*data, "--data", arguments[1]], arguments[2:]
    target, method = arguments
    curl = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    if method == "list":
        return [*curl, "--list-services", f"http://{target}"]
    return [*curl, *data, f"http://{target}/{method}"]


def execute(language, text, folder):
    """Runs one block as it stands and returns what it prints."""
    if language == "python":
        command = [sys.executable, "-c", text]
    elif text.startswith("grpcurl"):
        if not BUF.exists():
            if os.environ.get("CI"):
                pytest.fail("buf is missing: `make lint` installs it")
            pytest.skip("buf is missing: `make lint` installs it")
        command = as_buf_curl(shlex.split(text))
    else:
        script = f'rerank-grpc() {{ {shlex.quote(sys.executable)} -m rerank_grpc "$@"; }}\n{text}'
        command = ["bash", "-euc", script]
    own = unhurried_commands(folder) if " bench " in text else {"PYTHONPATH": str(ROOT)}
    # In capitals, which curl reads and gRPC does not: our own commands need no such help.
    variables = environment(NO_PROXY="127.0.0.1", **own)
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
    said = re.sub(BENCH_STEP, "", done.stderr)
    assert (done.returncode, said) == (0, "")
    return done.stdout


EXPECTED = (
    r'(?s)"index": ?1.*"relevanceScore".*"relevanceScore"',
    r'"results":\[\{"index":1,"relevance_score":0\.\d+.*\{"index":0,"relevance_score":0\.\d+',
    r"(?s)^0\.\d\d  Open Settings[^\n]+\n0\.\d\d  Our office",
    r"(?s)grpc\.health\.v1\.Health.*rerank\.v1\.RerankService",
    r'(?s)"id": ?"faq-17".*"relevanceScore"',
    r"^1 embedded$",
    r"(?s)^(?=.*Open Settings)(?=.*Our office)0\.\d\d  O[^\n]+\n0\.\d\d  O",
    r"(?s)^1 0\.\d+ .*Open Settings.*embedded \(default\).*embedded is READY",
    r'"relevanceScore"',
    r'(?s)embedded \(default\).*"results":\[\{"index":0,"relevance_score":0\.\d+',
    r"^ScoredDocument\(index=0, relevance_score=0\.\d+",
    r'(?s)^\[\{"index":1,"score":0\.\d+\}.*"id":"embedded".*"status":"healthy"',
    r"(?s)answered/s.*p99.*\n5/s ",
    r"(?s)^(?!.*s3cret)(?=.*\nport +50061 +variable RERANK_PORT\n)(?=.*\nrest-port +off +file rerank.toml\n)"
    r"(?=.*\ndevice +cpu +flag --device\n).*\ntokens +1 token +file /.*/tokens\n$",
    r'^\{"id": 1, "results": \[\{"index": 1, "relevance_score": 0\.\d+.*\{"index": 0, "relevance_score": 0',
)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_the_pages_commands_do_what_they_say(servers, page, number, tmp_path):
    marker, language, text = blocks(page)[number]
    server = servers[marker]
    ours = text.replace("127.0.0.1:50051", server.target).replace("http://127.0.0.1:6006", server.url)
    if "rerank-grpc" in ours:
        ours = f"export RERANK_TARGET={server.target}\n{ours}"
    assert re.search(EXPECTED[number], execute(language, ours, tmp_path))


@pytest.mark.parametrize("page", PAGES)
def test_every_marked_block_is_expected(page):
    assert len(blocks(page)) == len(EXPECTED)


@pytest.mark.parametrize("page", PAGES)
def test_tls_and_two_callers_of_different_rights_take_five_commands(page, tmp_path):
    """Exactly as they stand: only the ports are others."""
    setup, call, limits = re.findall(r"<!-- test of callers -->\n```sh\n(.*?)```", read(page), re.DOTALL)
    *prepare, serve = setup.replace("\\\n", "").splitlines()
    assert len([*prepare, serve, *call.splitlines()]) == 5
    execute("sh", "\n".join([f"exec 2>/dev/null; {prepare[0]}", *prepare[1:]]), tmp_path)
    port, rest = free_port(), free_port()
    ports = ["--port", str(port), "--rest-port", str(rest)]
    with served(*ports, *shlex.split(serve.removeprefix("rerank-grpc serve")), folder=tmp_path):
        export = f"export RERANK_PORT={port}\n"
        assert re.match(r"1 0\.\d+ .*Forgot password", execute("sh", export + call, tmp_path))
        told = execute("sh", export + limits.replace("localhost:6006", f"localhost:{rest}"), tmp_path)
    assert re.search(r"(?s)embedded \(default\).*monitor lacks the right 'rerank'", told)
    kept = (tmp_path / "callers.toml").read_text()
    assert not any((tmp_path / f"{name}.token").read_text().strip() in kept for name in ("search", "monitor"))


def test_both_pages_have_the_same_commands():
    english, chinese = map(blocks, PAGES)
    assert chinese == english


@pytest.mark.parametrize("page", PAGES)
def test_the_first_screen_shows_how_to_call_it(page):
    first = read(page).partition("\n## ")[0]
    shown = re.findall(r"(?m)^<!-- test -->\n```\w+\n(grpcurl|curl|from rerank_grpc)", first)
    assert shown == ["grpcurl", "curl", "from rerank_grpc"]
    assert "\n|" not in first


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_options_is_the_real_one(page):
    rows = re.findall(
        r"^\| `--(\S+) (.*?)` \| `(\w+)` \| (?:`(.*?)`)? ?\| (.+) \|$", read(page), re.MULTILINE
    )
    options = (CONFIG_OPTION, *SERVER_OPTIONS)
    said = [
        (name, metavar.replace("\\|", "|"), variable, value) for name, metavar, variable, value, _ in rows
    ]
    assert said == [(option.name, option.metavar, option.variable, option.default_text) for option in options]
    if page == "README.md":
        assert [row[-1] for row in rows] == [option.help for option in options]


@pytest.mark.parametrize(
    "page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/structures.md", "docs/models.md"]
)
def test_links_lead_to_files_that_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", read(page))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_links_or_shows_is_in_git(page):
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    links = {link.rstrip("/") for link in re.findall(r"\]\((?!https?:)([^)#]+)", read(page))}
    assert {"docs/images/top.svg", "benchmarks/results/cpu.svg"} <= links
    assert [
        link for link in links if not any(name == link or name.startswith(f"{link}/") for name in tracked)
    ] == []


def test_the_tables_of_models_are_the_catalogues():
    command = [sys.executable, "scripts/models_table.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_table_that_differs_is_written_anew():
    written = runpy.run_path(str(ROOT / "scripts/models_table.py"))["written"]
    with pytest.raises(ValueError, match=r"docs/models\.md: no <!-- models: told -->"):
        written("docs/models.md", "no markers")
    page = read("README.md")
    other = page.replace("| `BAAI/bge-reranker-v2-m3` | 568M", "| `BAAI/bge-reranker-v2-m3` | 1M")
    assert other != page
    assert written("README.md", other) == page


def test_the_example_of_a_catalogue_is_one(tmp_path):
    (text,) = re.findall(r"<!-- catalogue -->\n```toml\n(.*?)```", read("docs/models.md"), re.DOTALL)
    (tmp_path / "own.toml").write_text(text)
    entry = read_catalogue(tmp_path / "own.toml").find("acme/reranker")
    assert entry is not None
    assert [piece.count("{") for piece in entry.prompt["segments"]] == [0, 3, 0]
    assert entry.prompt["answers"] == ["yes", "no"]


def test_the_demos_example_is_the_readmes():
    demo = (ROOT / "scripts/demo.py").read_text("utf-8")
    shown = re.search(r"```text\nQuery: (.*?)```", read("README.md"), re.DOTALL)
    assert shown is not None
    query, _, *lines = shown[1].splitlines()
    assert f'"{query}"' in demo
    for line in lines:
        assert f'"{line.partition("]  ")[2]}"' in demo


def read(page):
    return (ROOT / page).read_text("utf-8")
