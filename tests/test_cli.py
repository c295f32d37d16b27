"""The command line, by real processes, and what it prints, by pure functions."""

import argparse
import contextlib
import errno
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rerank_grpc import cli
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.cli import serve, terminal
from rerank_grpc.cli.serve import Ports, rest_summary, summary
from rerank_grpc.cli.terminal import Row, Screen, bar, cells, clip, printable, ranking, table
from rerank_grpc.config.settings import ModelSpec, RestSettings, ServerSettings
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.pair import TlsFiles
from rerank_grpc.types import ModelInfo, State
from tests.command import Served, changed, environment, full_pipe, run, served
from tests.ports import free_port
from tests.support import wait_for

QUERY = "How do I reset my password?"
HEAD = "model served size tokens languages licence good for"
SERVE = ("serve", "--port", "0", "--admin-port", "off", "--metrics-port", "off")
LINES = "The office is closed.\n\nChoose Forgot password in the settings.\r\n茶はおいしい\x1b[31m\n"


@pytest.fixture(scope="module")
def server():
    with served(RERANK_TOKENS="s3cret") as server:
        yield server


def call(server, *arguments, **options):
    return run(*arguments, RERANK_TARGET=server.target, RERANK_TOKEN="s3cret", **options)


# What is printed


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_ranking_fits_its_width(width):
    texts = ["short", "long " * 100, "熊猫是一种哺乳动物" * 20, "é" * 300, "e\u0301" * 300]
    rows = [Row(1 - n / 5, f"docs.txt:{n}", text) for n, text in enumerate(texts)]
    lines = list(ranking(rows, Screen(width)))
    assert len(lines) == len(rows)
    assert max(map(cells, lines)) <= max(width, 33)
    if width >= 80:
        assert max(map(cells, lines)) >= width - 1


def test_wide_characters_keep_columns_aligned():
    infos = [ModelInfo("模型", State.READY, revision="abc"), ModelInfo("bge", State.LOADING)]
    head, first, second = terminal.models(infos, Screen(80))
    assert cells(first[: first.index("READY")]) == head.index("state") == second.index("LOADING")


def test_models_are_listed_with_how_each_is_read_and_scored():
    read = ModelInfo("a", State.READY, pooling="last", activation="identity", prompt_source="catalogue.toml")
    head, first, second = terminal.models([read, ModelInfo("b", State.UNLOADED)], Screen())
    assert head.split() == ["model", "state", "pooling", "activation", "prompt"]
    assert first.split() == ["a", "READY", "last", "identity", "catalogue.toml"]
    assert second.split() == ["b", "UNLOADED"]


def test_what_is_not_a_terminal_gets_whole_lines():
    (line,) = ranking([Row(0.5, "1", "word " * 100)], Screen())
    assert line.endswith("word")
    assert len(line) > 500


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a�[2Jb"),
        ("\u202eevil", "�evil"),
        ("a\tb\nc\x85d", "a b c�d"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\ud800", "�"),
        (" 熊猫 ", "熊猫"),
    ],
)
def test_nothing_of_a_document_commands_the_terminal(text, shown):
    assert printable(text) == shown


def test_cells_and_clip_count_what_a_terminal_shows():
    assert (cells("熊a"), cells("e\u0301"), cells("")) == (3, 1, 0)
    assert [clip("熊猫熊猫", width) for width in (8, 7, 4, 2, 1, 0)] == [
        "熊猫熊猫",
        "熊猫熊…",
        "熊…",
        "…",
        "…",
        "",
    ]


@pytest.mark.parametrize("score", [-1, 0, 0.01, 0.5, 0.999, 1, 2])
def test_a_bar_is_as_long_as_its_score(score):
    for unicode in (True, False):
        assert cells(bar(score, 10, unicode=unicode)) == 10
    assert bar(score, 10).count("█") == int(max(0, min(score, 1)) * 10 + 1 / 16)


def test_a_table_too_wide_becomes_blocks():
    lines = list(table(["name", "value"], [["a", "x" * 50], ["b", ""]], Screen(30)))
    assert lines == ["name   a", "value  " + "x" * 22 + "…", "", "name   b"]


@pytest.mark.parametrize(
    ("width", "begin"),
    [
        (None, [HEAD]),
        (160, [HEAD]),
        (
            80,
            [
                "BAAI/bge-reranker-base",
                "  278M, 512 tokens, zh en, licence MIT; Chinese and English on modest hardware",
                "BAAI/bge-reranker-large",
            ],
        ),
        (
            50,
            [
                "BAAI/bge-reranker-base",
                "  278M, 512 tokens, zh en, licence MIT; Chinese",
                "  and English on modest hardware",
                "BAAI/bge-reranker-large",
            ],
        ),
    ],
)
def test_the_known_models_fit_the_terminal(width, begin):
    lines = list(terminal.available(tuple(builtin()), Screen(width)))
    empty = lines.index("")
    longest_id = max(len(known.id) for known in builtin())
    assert max(map(cells, lines)) <= max(width or 1000, longest_id + 2)
    assert [line.split() for line in lines[: len(begin)]] == [line.split() for line in begin]
    refused = [line for line in lines if line.startswith("not served:")]
    assert refused == [line for line in lines[empty + 1 :] if not line.startswith("  ")]
    assert len(refused) == sum(bool(known.unsupported) for known in builtin())
    assert any(line.startswith("not served: jinaai/jina-reranker-v3: it reads ") for line in refused)
    assert any("use Qwen/Qwen3-Reranker-0.6B" in line for line in lines[empty:])


def test_a_tables_last_column_gives_way_down_to_a_width():
    rows = [["a" * 20, "b" * 100]]
    head, line = table(["first", "last"], rows, Screen(60))
    assert (head, line) == ("first                 last", "a" * 20 + "  " + "b" * 37 + "…")
    assert len(list(table(["first", "last"], rows, Screen(51)))) == 2
    assert list(table([], [], Screen(20))) == [""]


def test_a_missing_token_beyond_loopback_is_a_loud_warning():
    def lines(**settings):
        return "\n".join(summary(ServerSettings(**settings), Ports(50051, 50052), (), 0, Screen(80)))

    assert "WARNING: 0.0.0.0:50051 can be reached" in lines(host="0.0.0.0")
    assert "WARNING: [::]:50051" in lines(host="::")
    assert "WARNING" not in lines(host="0.0.0.0", access_tokens=("canary",))
    for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8"):
        assert "WARNING" not in lines(host=host)
    assert "canary" not in lines(access_tokens=("canary",))
    assert "REST at 0.0.0.0 can be reached" in lines(rest=RestSettings(host="0.0.0.0"))
    assert "WARNING" not in lines(rest=RestSettings(host="0.0.0.0", port=None))
    of_metrics = "the metrics at 0.0.0.0 can be read from other machines"
    assert of_metrics in lines(metrics_host="0.0.0.0", access_tokens=("canary",))
    assert "WARNING" not in lines(metrics_host="0.0.0.0", metrics_port=None)


def test_the_banner_says_what_needs_no_token():
    def access(tokens=0, **settings):
        # Those in force: a file may hold others than at the start.
        lines = summary(ServerSettings(**settings), Ports(50051, 50052), (), tokens, Screen(80))
        return next(line for line in lines if line.startswith("authentication")).removeprefix(
            "authentication  "
        )

    assert access() == access(reflection="open") == "none: any caller is served"
    assert access(1, access_tokens=("canary",)) == "one token"
    assert access(2, access_tokens=("a",)) == "one of 2 tokens"
    assert access(2, access_tokens=("a",), reflection="open") == (
        "one of 2 tokens, but for health and reflection"
    )


def test_the_banner_says_where_the_metrics_are():
    def lines(port, **settings):
        return list(summary(ServerSettings(**settings), Ports(50051, None, None, port), (), 0, Screen(80)))

    assert "metrics         http://127.0.0.1:9090/metrics" in lines(9090)
    assert "metrics         http://[::1]:9999/metrics" in lines(9999, metrics_host="::1", metrics_port=0)
    assert "metrics         off" in lines(None, metrics_port=None)


def test_the_rest_server_says_where_its_metrics_are_and_who_can_read_them():
    def lines(port, **settings):
        return list(rest_summary(RestSettings(targets=("127.0.0.1:1",), **settings), 6006, port))

    first, second, last = lines(9091)
    assert first.endswith("serves REST at http://127.0.0.1:6006, from 127.0.0.1:1")
    assert second == "The metrics are at http://127.0.0.1:9091/metrics"
    assert last == "Ctrl-C stops it."
    assert "NOTE: the metrics at 0.0.0.0 can be read" in "\n".join(lines(1, metrics_host="0.0.0.0"))
    assert lines(None, metrics_host="0.0.0.0", metrics_port=None) == [first, last]


def test_the_rest_server_says_that_strangers_call_by_its_certificate():
    def told(**settings):
        upstream = TlsSources(ca="ca.pem", cert="c.pem", key="k.pem")
        own = RestSettings(targets=("127.0.0.1:1",), upstream_tls=upstream, **settings)
        return "\n".join(rest_summary(own, 6006, None))

    note = "whoever reaches 127.0.0.1:6006 without a token calls the servers by the certificate"
    assert note in told()
    assert note not in told(access_tokens=("t0ken",))


LIMITED = b"""
[shop]
token = "canary"
documents_per_second = 5
"""
SHARED = LIMITED.replace(b"documents_per_second = 5", b"queue_share = 0.5")
BY_CERTIFICATE = b"""
[search]
[crawler]
certificate = true
[ops]
token = "canary"
certificate = true
"""


def remarks_of(content, **settings):
    """Lists what both starts remark on a token file: `serve` and `rest` alone."""
    file = TokenFile.of(Path("nowhere"), content)
    own = summary(ServerSettings(token_file=file, **settings), Ports(1), (), 1, Screen(80))
    alone = rest_summary(RestSettings(targets=("127.0.0.1:1",), token_file=file, **settings), 6006, None)
    return [
        [line.removeprefix(f"{mark}: ") for line in lines if line.startswith(mark)]
        for mark, lines in (("WARNING", own), ("NOTE", alone))
    ]


@pytest.mark.parametrize("content", [LIMITED, SHARED])
def test_rest_alone_says_that_limits_hold_at_the_servers(content):
    note = "the rates and queue shares of --token-file hold where the servers behind have the file too."
    assert remarks_of(content) == [[], [note]]


def test_a_start_says_of_whom_it_asks_no_certificate():
    remark = (
        "search and 1 more of --token-file can call by certificate alone,"
        " and none is asked for without --tls-client-ca."
    )
    assert remarks_of(BY_CERTIFICATE) == [[remark], [remark]]
    tls = TlsFiles(Path("cert"), Path("key"), Path("ca"))
    assert remarks_of(BY_CERTIFICATE, tls=tls) == [[], []]
    assert remarks_of(b"canary\n") == [[], []]


def test_the_banner_says_which_pages_may_call_and_who_takes_other_names():
    def lines(*aliases, **rest):
        model = ModelSpec("a", "embedded", aliases)
        settings = ServerSettings(models=(model,), rest=RestSettings(**rest))
        return list(summary(settings, Ports(50051, 50052, 6006), (), 0, Screen(80)))

    assert "REST            http://127.0.0.1:6006" in lines()
    own = "REST            http://127.0.0.1:6006, for pages of https://a.example, https://b.example too"
    assert own in lines(cors=("https://a.example", "https://b.example"))
    assert "REST            http://127.0.0.1:6006, for pages of every origin too" in lines(cors=("*",))
    assert "other names     a" in lines("b", "*")
    assert not any(line.startswith("other names") for line in lines("b"))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["serve", "--port=abc"], "--port: 'abc' is not a port"),
        (["serve", "--mod", "x"], "unknown option --mod; did you mean --model?"),
        (["serve", "extra"], "unknown argument extra"),
        (["sevre"], "invalid choice: 'sevre'"),
        ([], "COMMAND"),
        (["rerank", "query"], "FILE"),
        (["rerank", "query", "-", "--top-n", "0"], "--top-n: '0' is not a whole number above 0"),
        (["health", "--timeout", "never"], "--timeout: 'never' is not"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_2(arguments, complaint):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("rerank-grpc: error: ")
    assert complaint in done.stderr


def test_an_unknown_variable_is_one_line_and_exit_2():
    done = run("serve", RERANK_PROT="1")
    assert done.returncode == 2
    assert done.stderr == (
        "rerank-grpc: error: RERANK_PROT: unknown environment variable; did you mean RERANK_PORT?\n"
    )


@pytest.mark.parametrize("command", ["", "serve", "rest", "rerank", "models", "health", "top", "completion"])
def test_help_has_examples_and_names_every_variable(command):
    done = run(*command.split(), "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "examples:\n  " in done.stdout
    if command == "serve":
        assert {"RERANK_MODELS", "RERANK_PORT", "RERANK_TOKENS", "ACCESS_TOKEN"} <= set(
            re.findall(r"\w+", done.stdout)
        )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "x=no/such/dir/anywhere"], "no/such/dir/anywhere"),
        (["--host", "203.0.113.1"], "203.0.113.1"),
    ],
)
def test_what_cannot_start_is_said_without_a_traceback(arguments, complaint):
    done = run(*SERVE, *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("rerank-grpc: error: ")
    assert complaint in last


def test_a_model_that_failed_to_load_has_one_line_with_a_time():
    done = run(*SERVE, "--model", "x=no/such/dir", HF_HUB_OFFLINE="1")
    (line,) = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR   model x failed to load, attempt 1: ", line)


def test_progress_on_a_terminal_is_replaced_by_what_follows():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rerank_grpc", *SERVE]
    process = subprocess.Popen(
        [*command, "--rest-port", "off"], stderr=theirs, env=environment(TERM="xterm", NO_COLOR="1")
    )
    os.close(theirs)
    said = b""
    while b"Ctrl-C stops it." not in said:
        said += os.read(ours, 65_536)
    process.kill()
    process.wait()
    os.close(ours)
    progress, _, rest = said.decode().rpartition(" ready\r\x1b[2K")
    assert "loading embedded" in progress
    assert re.match(r"\d{4}-.* INFO    model embedded is ready after |\r\n", rest)


def test_a_second_server_on_the_same_port_says_so(server):
    port = server.target.rpartition(":")[2]
    done = run(*SERVE, "--port", port)
    assert done.returncode == 1
    assert f":{port}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ver"], "verify"),
        (["serve", "--connection"], "--connection-age"),
        (["rest", "--tar"], "--target"),
        (["completion", ""], "bash zsh"),
        (["models", "--av"], "--available"),
        (["tok"], "token"),
        (["top", "--on"], "--once"),
    ],
)
def test_a_shell_completes_commands_and_options(words, completed):
    script = run("completion", "bash").stdout
    typed = " ".join(f"'{word}'" for word in words)
    asked = f"""{script}
        COMP_WORDS=(rerank-grpc {typed}); COMP_CWORD={len(words)}
        _shtab_rerank_grpc rerank-grpc '{words[-1]}' '{["rerank-grpc", *words][-2]}'
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == (f"{completed}\n", "")


def test_a_package_that_is_missing_is_one_line():
    code = "import sys; sys.modules['shtab'] = None; from rerank_grpc.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "completion", "zsh"], capture_output=True, text=True)
    needs = "completion needs shtab, which is not installed"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'rerank-grpc: error: {needs}: pip install "rerank-grpc[completion]"\n'


# Calls


def test_rerank_prints_a_ranked_table(server):
    done = call(server, "rerank", QUERY, "-", stdin=LINES)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"1 0\.\d{4} █+\S* +3  Choose Forgot password in the settings\.", first)
    assert len(rest) == 2
    assert "\x1b" not in done.stdout


def test_rerank_prints_json_that_says_where_each_document_stood(server, tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfReset a password by mail.\n")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    answer = json.loads(call(server, "rerank", QUERY, *files, "--json", "--top-n", "3").stdout)
    assert answer["model"] == "embedded"
    assert len(answer["results"]) == 3
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    places = {(result["index"], result["file"], result["line"]) for result in answer["results"]}
    assert {(1, files[0], 3), (3, files[1], 1)} <= places


def test_models_and_health_tell_the_state(server):
    done = call(server, "models")
    assert re.search(r"^embedded \(default\) +READY +1110a243fdf4 ", done.stdout, re.MULTILINE)
    assert json.loads(call(server, "models", "--json").stdout)["models"][0]["state"] == "ready"
    done = call(server, "health")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("embedded is READY")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rerank", QUERY, "-", "--model", "bgee"], "bgee"),
        (["rerank", "", "-"], "query"),
        (["rerank", QUERY, "no-such.txt"], "cannot read no-such.txt: no such file"),
        (["health", "--model", "bgee"], "bgee"),
        (["models", "--target", "127.0.0.1:1", "--timeout", "2"], "127.0.0.1:1"),
    ],
)
def test_a_call_that_fails_is_one_line_and_exit_1(server, arguments, complaint):
    done = call(server, *arguments, stdin=LINES)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("rerank-grpc: error: ")
    assert complaint in done.stderr


def test_a_wrong_token_and_bad_input_are_refused(server, tmp_path):
    done = run("models", "--target", server.target, RERANK_TOKEN="canary")
    assert (done.returncode, "canary" in done.stderr) == (1, False)
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\n")
    done = call(server, "rerank", QUERY, str(tmp_path / "bad.txt"))
    assert "bad.txt:2: is not UTF-8" in done.stderr
    assert call(server, "rerank", QUERY, "-", stdin="\n \n").returncode == 1


def test_a_reader_that_leaves_is_no_error(server):
    command = f"{sys.executable} -m rerank_grpc rerank q - | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        input="document " * 500 + "\n" + "another\n" * 500,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(RERANK_TARGET=server.target, RERANK_TOKEN="s3cret"),
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", str(128 + signal.SIGPIPE))


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_is_for_terminals_that_want_it(server, variables):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank_grpc", "models"],
        stdout=theirs,
        env=environment(
            RERANK_TARGET=server.target, RERANK_TOKEN="s3cret", **({"TERM": "xterm"} | variables)
        ),
    )
    os.close(theirs)
    said = b""
    try:
        with contextlib.suppress(OSError):  # Linux's end of a terminal
            while select.select([ours], [], [], 60)[0] and (part := os.read(ours, 65_536)):
                said += part
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
    assert said
    assert (b"\x1b[" in said) == (not variables)
    os.close(ours)


def test_a_call_imports_no_torch():
    heavy = "{'torch', 'transformers', 'numpy'} & {*sys.modules}"
    code = f"import sys, rerank_grpc.cli, rerank_grpc.client; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


# Stopping


@pytest.mark.clock
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(number):
    server = Served("--grace", "5")
    begin = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - begin < 5
    assert "calls in progress have 5 s" in "".join(server.said)


def test_only_a_server_that_is_called_takes_calls_for_a_second_more(tmp_path):
    assert serve._LEAVING_SECONDS == 1
    # A second may be a busy machine's own, so here it is eight; and the call is never long ago.
    longer = changed(tmp_path, "rerank_grpc.cli.serve", _LEAVING_SECONDS=8.0, _QUIET_SECONDS=60.0)
    for calls, leaves in ((0, False), (1, True)):
        server = Served(**longer)
        for _ in range(calls):
            assert run("rerank", "--target", server.target, "query", "-", stdin="document\n").returncode == 0
        assert server.stop(signal.SIGTERM) == 0
        (seconds,) = re.findall(r"drained after ([\d.]+) s", "".join(server.said))
        assert (float(seconds) >= 8) is leaves


def test_a_signal_before_anything_is_served_ends_it():
    command = [sys.executable, "-m", "rerank_grpc", *SERVE]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    assert "starting" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def hanging_call(target):
    """Opens a call that sends headers and no body, and returns when the server has it."""
    import grpc
    from grpc_health.v1 import health_pb2

    from tests.stubs import HealthStub
    from tests.support import NO_PROXY

    channel = grpc.insecure_channel(target, [NO_PROXY])
    grpc.channel_ready_future(channel).result(60)  # what is called before that may be sent in any order
    method: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
        "/rerank.v1.RerankService/Rerank"
    )
    gate = socket.socketpair()
    call = method.future(message for message in iter(lambda: gate[0].recv(1), b""))
    # A server takes a connection's calls in order: the answer to this one says that it has the first.
    HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    return channel, call, gate


@pytest.mark.clock
def test_a_half_sent_rest_call_does_not_keep_the_server_from_draining():
    import grpc
    from grpc_health.v1 import health_pb2

    from tests.stubs import HealthStub
    from tests.support import NO_PROXY

    server = Served("--grace", "10", "--rest-port", "0")
    host, port = server.url.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port))) as half,
        grpc.insecure_channel(server.target, [NO_PROXY]) as channel,
    ):
        half.sendall(b"POST /rerank HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
        watch = HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - begin < 5
        watch.cancel()
    assert server.process.wait(20) == 0
    server.close()


def test_a_signal_drains_though_nobody_reads_the_log_any_more():
    command = [sys.executable, "-m", "rerank_grpc", *SERVE]
    command += ["--rest-port", "off"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", env=environment())
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    target = next(line for line in lines if "serves rerank.v1 at " in line).split()[-1]
    assert any("Ctrl-C stops it." in line for line in lines)
    process.stderr.close()
    assert run("rerank", "--target", target, "query", "-", stdin="document\n").returncode == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0


@pytest.mark.clock
@pytest.mark.parametrize("second", [False, True])
def test_a_hung_call_ends_with_the_grace_or_by_a_second_signal(second):
    grace = 10 if second else 2
    server = Served("--grace", str(grace))
    channel, call, gate = hanging_call(server.target)
    begin = time.monotonic()
    if second:
        server.process.send_signal(signal.SIGTERM)
        while not any("calls in progress" in line for line in server.said):
            assert time.monotonic() - begin < 5
    status = server.stop(signal.SIGTERM)
    seconds = time.monotonic() - begin
    assert seconds < (grace - 2 if second else grace + 2)
    assert status == (128 + signal.SIGTERM if second else 0)
    gate[1].close()
    call.cancel()
    channel.close()
    gate[0].close()


# A log that nobody reads


def status_of_health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/health")
        return connection.getresponse().status


def send_garbage(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        caller.sendall(b"garbage\r\n\r\n")
        assert caller.recv(100).startswith(b"HTTP/1.1 400")


@contextlib.contextmanager
def unread(*arguments):
    """Runs a command whose log is full before its first line."""
    with full_pipe() as writing:
        command = [sys.executable, "-m", "rerank_grpc", *arguments]
        process = subprocess.Popen(command, stderr=writing, env=environment())
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.mark.clock
@pytest.mark.parametrize(
    ("arguments", "health"),
    [
        (SERVE, 200),
        (["rest", "--target", "127.0.0.1:1", "--metrics-port", "off"], 503),
    ],
)
def test_a_log_that_nobody_reads_stops_neither_start_nor_service_nor_end(arguments, health):
    port, grace = free_port(), 2
    with unread(*arguments, "--rest-port", str(port), "--grace", str(grace)) as process:
        wait_for(lambda: status_of_health(port) == health, seconds=60)
        for _ in range(20):
            send_garbage(port)
        assert status_of_health(port) == health
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        assert time.monotonic() - begin < grace + 2


@pytest.mark.clock
def test_a_call_that_hangs_ends_with_the_grace_though_nobody_reads_the_log():
    port, grace = free_port(), 2
    with unread(*SERVE, "--port", str(port), "--rest-port", "off", "--grace", str(grace)) as process:
        channel, call, gate = hanging_call(f"127.0.0.1:{port}")
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        assert time.monotonic() - begin < grace + 2
        gate[1].close()
        call.cancel()
        channel.close()
        gate[0].close()


def test_what_cannot_start_ends_though_nobody_reads_why():
    with unread(*SERVE, "--host", "203.0.113.1") as process:
        assert process.wait(60) == 1


def test_a_flood_of_garbage_does_not_fill_the_log():
    with served("--rest-port", "0") as server:
        port = int(server.url.rpartition(":")[2])
        before = len(server.said)
        for _ in range(2_000):
            send_garbage(port)
        assert server.stop(signal.SIGTERM) == 0
        log = server.said[before:]
    assert sum(map(len, log)) < 10_000
    assert any(" more like this in " in line for line in log)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "OSError: Cannot allocate memory"),
        (BlockingIOError(errno.EAGAIN, "Try again"), "BlockingIOError: Try again"),
        (TimeoutError("timed\nout"), "TimeoutError: timed out"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "BrokenPipeError: Broken pipe"),
        (OSError(errno.ENOSPC, "No space", "/x"), "/x: the disk is full: free some of it"),
        (OSError(), "OSError: it gives no reason"),
    ],
)
def test_an_error_of_the_system_that_is_not_the_outputs_is_named_in_one_line(error, line, monkeypatch, capfd):
    def run(_):
        print("some output")
        raise error

    monkeypatch.setattr(cli, "parse", lambda _: argparse.Namespace(flags={}, run=run))
    assert cli.main([]) == 1
    assert capfd.readouterr() == ("some output\n", f"rerank-grpc: error: {line}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_the_command_quietly(unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rerank_grpc", "models", "--available"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("arguments", [("models", "--available"), ("--help",), ("config", "--toml")])
def test_output_that_cannot_be_written_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rerank_grpc", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment(),
            timeout=60,
        )
    line = "rerank-grpc: error: the output cannot be written: the disk is full: free some of it\n"
    assert (done.returncode, done.stderr) == (1, line)
