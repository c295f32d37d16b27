"""`rerank-grpc bench` as an operator runs it, against the real server over gRPC and REST."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import grpc
import pytest

from benchmarks.fixed_service import fixed_service
from tests.command import environment, run, served
from tests.loadtest.support import unhurried_commands
from tests.ports import free_port
from tests.support import wait_for

SMALL = ("--documents", "1..3", "--words", "5..10")
SHORT = (*SMALL, "--duration", "1", "--warm-up", "0.2")


@pytest.fixture(scope="module")
def server():
    with served("--rest-port", "0", RERANK_TOKENS="s3cret") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _unhurried(tmp_path_factory):
    """Lets the commands' drivers be late."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in unhurried_commands(tmp_path_factory.mktemp("unhurried")).items():
            patch.setenv(name, text)
        yield


def bench(server, *arguments, **options):
    return run("bench", *arguments, RERANK_TARGET=server.target, RERANK_TOKEN="s3cret", **options)


def started(command, variables):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, env=variables, encoding="utf-8")


def count_calls(server):
    """Counts the calls that a server has logged."""
    return sum("code=OK" in line or "Rerank OK" in line for line in server.said)


def figures(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_rate_is_measured_over_grpc(server):
    done = bench(server, "--rate", "20", *SHORT, "--seed", "7")
    assert done.returncode == 0, done.stderr
    head, names, row, *remarks = done.stdout.splitlines()
    assert re.match(
        r"gRPC, embedded fp32 cpu, seed 7; latencies in milliseconds from each call's planned time", head
    )
    assert names.split()[:3] == ["load", "sent/s", "answered/s"]
    assert row.startswith("20/s ")
    assert re.search(r" 0 of \d+ ", row)
    assert "pairs that cost nothing, as identical ones were known or being scored: 0.0%" in remarks
    assert "20 calls/s for 1.2 s" in done.stderr


def test_rest_is_measured_as_grpc_is(server):
    found = figures(bench(server, "--rest", server.url, "--rate", "20", *SHORT, "--seed", "7", "--json"))
    (step,) = found["steps"]
    assert found["transport"] == "REST"
    assert found["server"] == {"name": "embedded"}
    assert step["errors"] == {}
    assert step["calls"] == step["answered"] > 5
    assert step["tokens_rate"] > 0
    assert step["cached_share"] is None  # REST does not tell it


def test_pairs_that_cost_nothing_are_told(server, tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"query": "q", "documents": ["a " * 200, "b " * 200]}) + "\n")
    done = bench(server, "--replay", str(path), "--concurrency", "8", "--duration", "1", "--warm-up", "0")
    match = re.search(r"identical ones were known or being scored: (.*)%: they make", done.stdout)
    assert match, done.stdout
    assert float(match[1]) > 5  # callers who ask for the same at the same time


def test_a_sweep_writes_a_chart_and_what_it_takes_to_repeat_it(server, tmp_path):
    folder = tmp_path / "new" / "results"
    done = bench(server, "--rate", "5..20", "--steps", "3", *SHORT, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "bench.json").read_text("utf-8"))
    assert [step["rate"] for step in found["steps"]] == [5, 12.5, 20]
    assert found["texts"] == {"kind": "made", "documents": [1, 3], "words": [5, 10], "query_words": 8}
    assert found["server"]["precision"] == "fp32"
    assert {"seed", "version", "grpcio", "arrivals", "duration", "warm_up"} <= found.keys()
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_callers_in_turn_are_measured():
    options = ("--concurrency", "2", *SMALL, "--warm-up", "0", "--duration", "60", "--json")
    command = [sys.executable, "-m", "rerank_grpc", "bench", *options]
    with (
        fixed_service(0.01) as (target, service),
        started(command, environment(RERANK_TARGET=target)) as process,
    ):
        assert process.stderr.readline().startswith("2 callers ")
        called = service.calls
        wait_for(lambda: service.calls > called + 20)  # of which at most six began before the measured time
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    (step,) = json.loads(said)["steps"]
    assert step["callers"] == 2
    assert step["late_p99"] is None
    assert step["answered"] > 2


def test_a_recording_is_sent_at_its_times(server, tmp_path):
    path = tmp_path / "calls.jsonl"
    rows = [{"query": f"q{n}", "documents": ["a", "b"], "at": 100 + n / 10} for n in range(11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    replay = ("--replay", str(path), "--warm-up", "0.3", "--json")
    found = figures(bench(server, *replay))
    (step,) = found["steps"]
    assert found["arrivals"] == "recorded"
    assert found["texts"] == {"kind": "recorded", "file": "calls.jsonl", "calls": 11}
    assert step["calls"] == 8  # behind three that warmed up
    assert (found["duration"], found["left_out"]) == (pytest.approx(0.8), 0)
    assert step["rate"] == pytest.approx(10)
    assert figures(bench(server, *replay, "--speed", "2"))["steps"][0]["calls"] == 5
    done = bench(server, *replay[:-1], "--duration", "0.5")
    assert re.search(r" 0 of 5 ", done.stdout)
    assert "recorded calls behind --duration, which were not sent: 3" in done.stdout
    done = bench(server, "--replay", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "none of the 11 calls, which take 1 s, lies behind the --warm-up of 5 s" in done.stderr


# The objective


@pytest.fixture
def ahead():
    """Goes, with what it starts, before what else the machine does, where it may: its pauses are no queue."""
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    yield
    with contextlib.suppress(AttributeError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.clock
@pytest.mark.usefixtures("ahead")
def test_the_highest_rate_that_meets_the_objective_is_found():
    # 25 calls a second are all that it can do: above, the queue grows for as long as calls come, at 25.8 so
    # slowly that p90 is 150 ms behind 4 s. A pause of this machine can only make it find less.
    with fixed_service(0.04) as (target, _):
        limits = ("--rate", "20..27", "--slo", "p90=150ms", "--arrivals", "constant")
        sizes = (*SMALL, "--duration", "4", "--warm-up", "0.2")
        done = run("bench", "--target", target, *limits, *sizes)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    match = re.fullmatch(
        r"the highest rate that meets p90 ≤ 150 ms is ([0-9.]+) calls/s \(.* documents/s\), measured twice",
        said,
    )
    assert match, said
    assert 22 <= float(match[1]) <= 25.8
    assert "missed" in done.stdout
    assert "met" in done.stdout


def test_an_objective_that_nothing_meets_is_explained():
    with fixed_service(0.04) as (target, _):
        search = ("--rate", "5..9", "--slo", "p50=10ms", "--seed", "7")  # some seeds send nothing
        done = run("bench", "--target", target, *search, *SHORT)
    assert done.returncode == 3
    assert "no rate meets p50 ≤ 10 ms: already at 5 calls/s, p50 ≤ 10 ms: 0.0% of the calls" in done.stdout
    assert re.search(r"the median there is [0-9.]+ ms: ask less of a call", done.stdout)


# What goes wrong


def test_a_server_that_is_away_is_one_line():
    port = free_port()
    done = run("bench", "--target", f"localhost:{port}", "--rate", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"rerank-grpc: error: localhost:{port}: no server listens there: .*\n", done.stderr)
    done = run("bench", "--rest", f"http://localhost:{port}", "--rate", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"rerank-grpc: error: REST at localhost:{port}: ")
    assert done.stderr.count("\n") == 1


def test_a_first_call_that_is_refused_is_one_line(server):
    for way in ((), ("--rest", server.url)):
        done = bench(server, *way, "--rate", "5", "--model", "nope")
        assert (done.returncode, done.stdout) == (1, "")
        assert "no model is named 'nope'; known: embedded" in done.stderr
        assert done.stderr.count("\n") == 1
    done = run("bench", "--rate", "5", RERANK_TARGET=server.target, RERANK_TOKEN="wrong")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_another_machine_is_not_loaded_without_a_yes():
    done = run("bench", "--target", "rerank.example:50051", "--rate", "5..40", "--steps", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "rerank-grpc: error: this puts up to 40 calls/s on rerank.example:50051 for about 1 min 10 s: "
        "give --yes where its operator knows of it\n"
    )
    done = run("bench", "--rest", "http://rerank.example", "--concurrency", "3")
    assert "this puts 3 callers on http://rerank.example for about 35.0 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--rate N is missing"),
        (("--rate", "5", "--concurrency", "2"), "give one of them"),
        (("--rate", "0"), "argument --rate: '0' is no calls a second"),
        (("--rate", "9..5"), "argument --rate: '9..5' is no calls a second"),
        (("--rate", "5", "--documents", "0..3"), "is no N or N..M from 1 to"),
        (("--rate", "5", "--words", "many"), "'many' is no N or N..M"),
        (("--rate", "5", "--duration", "nan"), "'nan' is no seconds"),
        (("--rate", "5", "--slo", "fast"), "'fast' is none of p99=500ms"),
        (("--rate", "5", "--rest", "localhost:8080"), "'localhost:8080' is no URL"),
        (("--rate", "5", "--seed", "-1"), "'-1' is no whole number"),
    ],
)
def test_a_bad_option_is_one_line(arguments, said):
    done = run("bench", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_output_that_cannot_be_written_is_told_before_any_load(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("bench", "--rate", "5", "--output", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"rerank-grpc: error: --output: {tmp_path}/file: ")


def test_ctrl_c_prints_what_was_measured(tmp_path):
    command = [sys.executable, "-m", "rerank_grpc", "bench", "--rate", "20", *SMALL, "--warm-up", "0"]
    command += ["--duration", "60", "--output", str(tmp_path)]
    with (
        fixed_service(0.01) as (target, service),
        started(command, environment(RERANK_TARGET=target)) as process,
    ):
        assert process.stderr.readline() == "20 calls/s for 1 min 0 s\n"
        called = service.calls
        wait_for(lambda: service.calls > called + 5)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "20/s (cut short)" in said
    assert re.search(r"ended after \d+\.\d s: Ctrl-C; \d+ calls in progress are left out", said)
    assert json.loads((tmp_path / "bench.json").read_text())["interrupted"] is True


def test_errors_are_told_by_their_reason_and_a_miss_ends_with_3():
    def fail(number):
        return grpc.StatusCode.RESOURCE_EXHAUSTED if number % 4 == 3 else None

    with fixed_service(0.0, fail) as (target, _):
        done = run("bench", "--target", target, "--rate", "40", *SHORT, "--slo", "errors<1%")
    assert done.returncode == 3
    assert re.search(r"40/s: failed: RESOURCE_EXHAUSTED \d+", done.stdout)
    assert re.search(r"40/s: missed errors ≤ 1.000%: \d+\.\d+% of the calls failed", done.stdout)


@pytest.mark.parametrize("rest", [False, True])
def test_a_server_that_dies_half_way_ends_the_run_early(rest):
    with served("--rest-port", "0") as doomed:
        way = ("--rest", doomed.url) if rest else ("--target", doomed.target)
        command = [sys.executable, "-m", "rerank_grpc", "bench", *way, "--rate", "20", *SMALL]
        command += ["--warm-up", "0", "--duration", "120"]
        with started(command, environment()) as process:
            assert process.stderr.readline() == "20 calls/s for 2 min 0 s\n"
            wait_for(lambda: count_calls(doomed) > 5)
            doomed.process.kill()
            said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"ended after \d+\.\d s: no call was answered for 5 s", said)
    assert ("ConnectionRefusedError" if rest else "ServerUnavailable") in said
