"""The server under attack: the real command in a process of its own, on free ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

from tests.command import environment

COMMAND = ("-m", "rerank_grpc")
START_SECONDS = 120.0
PORTS = {
    "port": rb"serves rerank\.v1 at \S+:(\d+)",
    "admin_port": rb"admin port\s+\S+:(\d+)",
    "rest_port": rb"REST\s+http://\S+:(\d+)",
}


class Service:
    """A running server, and what can be seen of it from outside.

    Attributes:
        log: all that it has written so far.
        port, admin_port, rest_port: where it listens.
    """

    def __init__(self, *arguments: str, command: tuple[str, ...] = COMMAND, **variables: str) -> None:
        self._reading, self._writing = os.pipe()
        names = ("--port", "--admin-port", "--rest-port", "--metrics-port")
        ports = [word for name in names for word in (name, "0")]
        self._process = subprocess.Popen(
            [sys.executable, *command, "serve", *ports, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=self._writing,
            env=environment(**variables),
        )
        self.log = b""
        self._deaf = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port, self.admin_port, self.rest_port = self._ports()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def memory(self) -> float:
        """The resident memory, in MiB."""
        return self._status("VmRSS")

    def peak(self) -> float:
        """The most resident memory since `forget_peak`, in MiB."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        with open(f"/proc/{self._process.pid}/clear_refs", "w") as file:
            file.write("5")

    def pause(self, seconds: float) -> None:
        """Stops the process as `docker pause` does, and lets it go on."""
        self.send(signal.SIGSTOP)
        time.sleep(seconds)
        self.send(signal.SIGCONT)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> tuple[float, int]:
        """Sends SIGTERM; returns the seconds until the process has ended, and its status."""
        self.send(signal.SIGTERM)
        return self.wait(60)

    def wait(self, seconds: float) -> tuple[float, int]:
        """Waits until the process has ended; returns how many seconds that took, and its status."""
        started = time.monotonic()
        status = self._process.wait(seconds)
        return time.monotonic() - started, status

    def stop_reading(self) -> None:
        """Leaves the log's pipe full from now on."""
        self._deaf = True
        os.write(self._writing, b"\n")
        self._reader.join()
        filling = os.open(f"/proc/self/fd/{self._writing}", os.O_WRONLY | os.O_NONBLOCK)
        for size in (4_096, 1):  # a pipe takes a page whole or not at all
            try:
                while True:
                    os.write(filling, bytes(size))
            except BlockingIOError:
                pass
        os.close(filling)

    def close(self) -> None:
        """Ends the process if it still runs."""
        if not self.ended:
            self.send(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
        os.close(self._writing)  # the last writer: the reader's thread ends
        self._reader.join()
        os.close(self._reading)

    def _read(self) -> None:
        while not self._deaf and (data := os.read(self._reading, 1 << 16)):
            self.log += data

    def _ports(self) -> tuple[int, int, int]:
        end = time.monotonic() + START_SECONDS
        while b"Ctrl-C stops it." not in self.log:
            if self.ended or time.monotonic() > end:
                self.close()
                raise RuntimeError(f"the server did not start: {self.log[-2_000:].decode()}")
            time.sleep(0.05)
        port, admin_port, rest_port = (self._find(pattern) for pattern in PORTS.values())
        return port, admin_port, rest_port

    def _find(self, pattern: bytes) -> int:
        found = re.search(pattern, self.log)
        assert found, pattern
        return int(found[1])

    def _status(self, name: str) -> float:
        with open(f"/proc/{self._process.pid}/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))
