"""Runs the real command in processes of its own."""

import contextlib
import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = re.compile(r"RERANK_|ACCESS_TOKEN$|NO_COLOR$|COLUMNS$|LINES$|PYTHONIOENCODING$|PYTHONUNBUFFERED$")


def environment(**variables: str) -> dict[str, str]:
    """Makes an environment without the caller's own settings; a server's log is for people to read."""
    inherited = {name: text for name, text in os.environ.items() if not SETTINGS.match(name)}
    return inherited | {"RERANK_LOG_FORMAT": "text"} | variables


def changed(folder: Path, name: str, **constants: float) -> dict[str, str]:
    """Makes variables with which a process has other constants in a module: the folder holds what does so."""
    module = importlib.import_module(name)
    assert all(hasattr(module, constant) for constant in constants), (name, constants)
    lines = [f"module.{constant} = {number!r}" for constant, number in constants.items()]
    program = "\n".join(["import importlib", f"module = importlib.import_module({name!r})", *lines, ""])
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def run(*arguments, stdin="", timeout=60, **variables):
    """Runs `rerank-grpc` with these arguments and returns how it ended."""
    return subprocess.run(
        [sys.executable, "-m", "rerank_grpc", *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(**variables),
        timeout=timeout,
    )


class Served:
    """A server in a process of its own: its target, the URLs of REST and of its metrics, its lines so far."""

    def __init__(self, *arguments, folder=None, **variables):
        command = [sys.executable, "-m", "rerank_grpc", "serve", "--admin-port", "off"]
        if not any(each.startswith("unix:") for each in arguments):  # a socket has no port
            command += ["--port", "0"]
        # Arguments that come later win.
        command += ["--rest-port", "off", "--metrics-port", "off"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment(**variables),
            cwd=folder,
        )
        assert self.process.stderr is not None
        self._lines = self.process.stderr
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        try:
            self.target = self._wait_for("serves rerank.v1 at ").split()[-1]
            self._wait_for("Ctrl-C stops it.")
            self.url, self.metrics_url = self._url("REST"), self._url("metrics")
        except AssertionError:
            self.process.wait()
            self._lines.close()
            raise
        self._reader.start()

    def _url(self, name):
        """Finds the URL in a line of the start's summary; "" where that is off."""
        words = next((line.split() for line in self.said if line.startswith(f"{name} ")), ())
        return next((word.rstrip(",") for word in words if word.startswith(("http://", "https://"))), "")

    def _read(self):
        for line in self._lines:
            self.said.append(line)

    def _wait_for(self, text):
        for line in self._lines:
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"the server ended first: {''.join(self.said)}")

    def stop(self, number, timeout=40):
        """Sends a signal; returns the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            self.close()

    def close(self):
        """Ends the process if it has not ended, and the thread that reads from it."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self._lines.close()


@contextlib.contextmanager
def served(*arguments, folder=None, **variables):
    """Serves the embedded model for as long as the block runs."""
    server = Served(*arguments, folder=folder, **variables)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def full_pipe():
    """Makes a pipe that is full and has no reader; yields the end to write to."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)
