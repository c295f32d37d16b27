"""The REST server as a process of its own: it starts or says why not, and what a bomb costs it (R11)."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerank_grpc.server.server import RerankServer
from tests.command import environment, run
from tests.rest.support import HOST, Reply, get, post
from tests.rest.test_rest_connections import BODY, restartable, restarted, until
from tests.support import WAIT, CountingRunner


class Process:
    """`rerank-grpc rest` on a free port, with so many files at most."""

    def __init__(self, target: str, files: int | None = None) -> None:
        command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", target, "--rest-port", "0"]
        command += ["--metrics-port", "off", "--log-level", "warning"]
        if files:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
        assert self.process.stderr is not None
        found = next(filter(None, (re.search(r"http://\S+:(\d+)", line) for line in self.process.stderr)))
        self.port = int(found[1])
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()))
        self._reader.start()

    def peak_kib(self) -> int:
        """The most memory it has had so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]

    def stop(self) -> int:
        """Ends it; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WAIT)
        finally:
            self.process.kill()
            self._reader.join()
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture
def alone(scripted: RerankServer) -> Iterator[Process]:
    process = Process(f"{HOST}:{scripted.port}")
    yield process
    assert process.stop() == 0


def send_all(port: int, head: bytes, blocks: Iterator[bytes]) -> Reply:
    """Sends until the peer takes no more; returns the status that came back."""
    with socket.create_connection((HOST, port), timeout=WAIT) as connection:
        try:
            connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
            for block in blocks:
                connection.sendall(block)
        except ConnectionError:
            pass
        answer = connection.recv(65_536)
    return Reply(int(answer.split()[1]), {}, answer)


def test_200_mb_bombs_are_refused_and_cost_little(alone: Process) -> None:
    block = b" " * (1 << 20)
    assert post(alone.port, "/v1/rerank", BODY).status == 200
    before = alone.peak_kib()
    told = send_all(alone.port, b"Content-Length: 200000000\r\n", iter([block] * 200))
    chunk = b"100000\r\n" + block + b"\r\n"
    chunked = send_all(alone.port, b"Transfer-Encoding: chunked\r\n", iter([chunk] * 200))
    packed = send_all(
        alone.port, b"Content-Encoding: gzip\r\nContent-Length: 200000000\r\n", iter([block] * 200)
    )
    assert (told.status, chunked.status, packed.status) == (413, 413, 415)
    assert alone.peak_kib() - before <= 20_000
    assert post(alone.port, "/v1/rerank", BODY).status == 200


def test_brackets_without_end_are_refused_before_they_are_read(alone: Process) -> None:
    before = alone.peak_kib()
    reply = post(alone.port, "/v1/rerank", b'{"query": [' + b"[]," * 3_000_000 + b"0]}")
    assert reply.status == 413
    assert alone.peak_kib() - before <= 30_000


@pytest.mark.clock
def test_more_idle_callers_than_it_has_files_lock_nobody_out(scripted: RerankServer) -> None:
    process = Process(f"{HOST}:{scripted.port}", files=512)
    try:
        with contextlib.ExitStack() as idle:
            for _ in range(600):
                idle.enter_context(socket.create_connection((HOST, process.port), timeout=WAIT))
            for _ in range(20):
                begin = time.monotonic()
                assert get(process.port, "/health").status == 200
                assert post(process.port, "/v1/rerank", BODY).status == 200
                # Idle connections lose their sockets after 10 s, by which all is well again in any case.
                assert time.monotonic() - begin < 5
    finally:
        assert process.stop() == 0
    assert len("".join(process.log)) < 1_000


def test_a_process_of_its_own_outlives_a_restart_of_the_server() -> None:
    runner = CountingRunner()
    with restartable(runner) as server:
        process = Process(f"{HOST}:{server.port}")
        try:
            assert post(process.port, "/v1/rerank", BODY).status == 200
            server.stop(1)
            assert get(process.port, "/health").status == 503
            again = restarted(server, runner)
            until(lambda: post(process.port, "/v1/rerank", BODY).status == 200)
            again.stop(1)
        finally:
            assert process.stop() == 0


@pytest.mark.parametrize("command", ["serve", "rest"])
def test_a_taken_port_is_one_clear_line(command: str) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        own = ["--port", "0", "--admin-port", "off"] if command == "serve" else []
        own += ["--metrics-port", "off", "--log-level", "warning"]
        done = run(command, *own, "--rest-port", port)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("rerank-grpc: error: ")
    assert port in line
    assert "--rest-port" in line
    assert "Traceback" not in done.stderr


def test_the_rest_server_imports_nothing_of_what_it_calls() -> None:
    code = (
        "import sys; import rerank_grpc.rest.server, rerank_grpc.cli.serve; "
        "print({'torch', 'transformers', 'tokenizers', 'numpy', 'rerank_grpc.engine'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.stdout, done.stderr) == ("set()\n", "")


def started(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    """`rerank-grpc rest` in front of no server, its log unread, and its port."""
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", f"{HOST}:1", "--rest-port", "0"]
    command += ["--metrics-port", "off", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    line = next(line for line in iter(process.stderr.readline, "") if "http://" in line)
    assert "Ctrl-C" in process.stderr.readline()
    found = re.search(r"http://\S+:(\d+)", line)
    assert found is not None
    return process, int(found[1])


def test_it_ends_with_0_though_nobody_reads_its_log_any_more() -> None:
    process, port = started()
    assert process.stderr is not None
    process.stderr.close()
    assert post(port, "/v1/rerank", BODY).status == 503
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT) == 0


def test_a_second_signal_ends_it_while_a_call_is_half_sent() -> None:
    process, port = started("--grace", "30")
    assert process.stderr is not None
    with socket.create_connection((HOST, port)) as half:
        half.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert get(port, "/health").status in (200, 503)  # what came before this has been taken
        process.send_signal(signal.SIGTERM)
        assert any("calls in progress" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 128 + signal.SIGTERM
    process.stderr.close()
