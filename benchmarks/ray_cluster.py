"""A local cluster of Ray for tests and figures, in a process of its own that takes commands.

    with Cluster() as cluster:
        cluster.deploy({"replicas": 2}, cost=0.0002)
        Client(cluster.target)

The cluster ends with its process. Every process of it has MARK in its environment, so that no other cluster
on the machine is ever touched.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "CLUSTER_MARK"
ADDRESS = "127.0.0.2"  # Ray takes 127.0.0.1 for the machine's own address
SECONDS = 200.0  # until a command counts as hung
# Between the ports of Ray's workers and those of the system's choice.
FIRST_PORT, BELOW_EPHEMERAL = 20_000, 32_000
BLOCK = 300


class Cluster:
    """A cluster of one node; `target` is its gRPC address.

    `more` are further variables of its processes.
    """

    def __init__(self, *, ha_proxy: bool = True, cpus: int = 8, **more: str) -> None:
        self._folder = TemporaryDirectory(prefix="ray-", dir="/tmp")  # Ray's sockets want a short path
        self._mark = f"{MARK.lower()}-{os.getpid()}-{random.randrange(1 << 30)}"
        self._block = PortBlock()
        base = self._block.first
        self.port, self.http_port = base, base + 1
        self.target = f"127.0.0.1:{self.port}"
        self._environment = _environment(Path(self._folder.name), base, ha_proxy) | more | {MARK: self._mark}
        self._cpus = cpus

    def __enter__(self) -> Cluster:
        command = [sys.executable, "-m", "benchmarks.ray_cluster", self._folder.name, str(self._cpus)]
        with open(f"{self._folder.name}/driver.log", "w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                cwd=ROOT,
            )
        try:
            self._ask(ports=[self.port, self.http_port])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = list(self._processes())
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, number)
            until = time.monotonic() + 5
            while any(True for _ in self._processes()) and time.monotonic() < until:
                time.sleep(0.1)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._block.close()
        with suppress(OSError):
            self._folder.cleanup()

    def deploy(
        self, arguments: Mapping[str, Any], options: Mapping[str, Any] | None = None, **loader: Any
    ) -> None:
        """Deploys, or deploys anew, by the file that ray-config would write, and waits until it runs.

        With keywords, models are SleepingLoader's. `options` win over those of the file's deployment.
        """
        self._ask(arguments=dict(arguments), options=dict(options or {}), loader=loader or None, wait=True)

    def ask_for(self, arguments: Mapping[str, Any]) -> None:
        """Deploys and does not wait."""
        self._ask(arguments=dict(arguments), options={}, loader=None, wait=False)

    def fail(self, arguments: Mapping[str, Any]) -> str:
        """Deploys what fails, and returns the error."""
        try:
            self.deploy(arguments)
        except RuntimeError as error:
            return str(error)
        raise AssertionError("it runs")

    def replicas(self) -> list[int]:
        """Lists the process ids of replicas."""
        return [pid for pid in self._processes() if _command(pid).startswith("ray::ServeReplica")]

    def log(self) -> str:
        """Returns what the driver has logged, with the lines of the replicas."""
        return Path(self._folder.name, "driver.log").read_text("utf-8", "replace")

    def logs(self) -> str:
        """Returns what all processes of the cluster have logged."""
        logs = [path for path in Path(self._folder.name).glob("session_*/logs/**/*") if path.is_file()]
        return "\n".join(path.read_text("utf-8", "replace") for path in logs)

    def _ask(self, **command: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the cluster has ended:\n{self.log()[-3_000:]}") from None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster has ended:\n{self.log()[-3_000:]}")
        if error := json.loads(line)["error"]:
            raise RuntimeError(error)

    def _processes(self) -> Iterator[int]:
        wanted = f"{MARK}={self._mark}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                with suppress(OSError):
                    if wanted in (folder / "environ").read_bytes().split(b"\0"):
                        yield int(folder.name)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def _environment(folder: Path, base: int, ha_proxy: bool) -> dict[str, str]:
    from rerank_grpc.ray.config import ENVIRONMENT  # imports no Ray

    names = ("RAY_SERVE_HAPROXY_", "RAY_SERVE_DIRECT_INGRESS_")
    proxied = folder / "haproxy"
    own = {
        f"{names[0]}STATS_PORT": base + 2,
        f"{names[0]}METRICS_PORT": base + 3,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": base + 4,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": base + 5,
        f"{names[1]}MIN_HTTP_PORT": base + 100,
        f"{names[1]}MAX_HTTP_PORT": base + 199,
        f"{names[1]}MIN_GRPC_PORT": base + 200,
        f"{names[1]}MAX_GRPC_PORT": base + BLOCK - 2,
        f"{names[0]}CONFIG_FILE_LOC": proxied / "haproxy.cfg",
        f"{names[0]}SOCKET_PATH": proxied / "admin.sock",
        f"{names[0]}SERVER_STATE_BASE": proxied,
        f"{names[0]}SERVER_STATE_FILE": proxied / "server-state",
        f"{names[0]}METRICS_SOCKET_PATH": proxied / "metrics.sock",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else Ray makes one and keeps it in the home folder.
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": ROOT,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RERANK_", "RAY_"))}
    mode = {"RAY_SERVE_ENABLE_HA_PROXY": str(int(ha_proxy))}
    return {**kept, **ENVIRONMENT, **{key: str(value) for key, value in own.items()}, **mode}


class PortBlock:
    """BLOCK ports, free at every address of this machine, that no other block shares while this one is held.

    Blocks lie side by side, and the last port of each is bound by its holder: a port that is free may be
    another cluster's, whose next replica takes it, and HAProxy shares a port that is taken (SO_REUSEPORT).
    """

    def __init__(self) -> None:
        firsts = list(range(FIRST_PORT, BELOW_EPHEMERAL - BLOCK + 1, BLOCK))
        random.shuffle(firsts)
        for first in firsts:
            try:
                self._guard = socket.create_server((ADDRESS, first + BLOCK - 1))
            except OSError:
                continue
            if all(map(_is_free, range(first, first + BLOCK - 1))):
                self.first = first
                return
            self._guard.close()
        raise RuntimeError("no free ports")

    def close(self) -> None:
        """Leaves the ports to others."""
        self._guard.close()


def _is_free(port: int) -> bool:
    try:
        for family, address in (
            (socket.AF_INET6, "::"),
            (socket.AF_INET, ADDRESS),
            (socket.AF_INET, "127.0.0.1"),
        ):
            with socket.socket(family) as tried:
                tried.bind((address, port))
    except OSError:
        return False
    return True


def main(folder: str, cpus: int) -> None:
    """Runs the cluster: one command a line on stdin, one answer a line on stdout, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        _node_ip_address=ADDRESS,
        _temp_dir=folder,
        object_store_memory=120_000_000,
        log_to_driver=False,
    )
    for line in sys.stdin:
        error = ""
        try:
            _obey(json.loads(line))
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _obey(command: dict[str, Any]) -> None:
    """Starts Serve, or deploys as `serve deploy` does."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from rerank_grpc.ray import config
    from rerank_grpc.ray.arguments import PLAN_OPTIONS, ReplicaPlan, read_arguments

    if "ports" in command:
        port, http_port = command["ports"]
        options = config.serve_config({}, ReplicaPlan(), port=port)
        serve.start(
            grpc_options=options["grpc_options"], http_options={"host": "127.0.0.1", "port": http_port}
        )
        return
    plan, _ = read_arguments(command["arguments"])
    sizes = ("cpus", "gpus")
    arguments = {
        name: each for name, each in command["arguments"].items() if name in sizes or name not in PLAN_OPTIONS
    }
    written = config.serve_config(arguments, plan)
    if command["loader"] is not None:
        written["applications"][0]["import_path"] = f"{__spec__.name}:build_sleeping"
        arguments["loader"] = command["loader"]
        written["applications"][0]["args"] = arguments
    written["applications"][0]["deployments"][0] |= command["options"]
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": written["applications"]}))
    if not command["wait"]:
        return
    until = time.monotonic() + SECONDS
    while (told := serve.status().applications["rerank"]).status != "RUNNING":
        if "FAILED" in told.status or time.monotonic() > until:
            reasons = [told.message, *(each.message for each in told.deployments.values())]
            raise RuntimeError(f"{told.status}: {' '.join(reasons)}")
        time.sleep(0.1)


def build_sleeping(arguments: dict[str, Any]) -> Any:
    """Makes the application with a SleepingLoader, whose keywords are the argument `loader`."""
    from benchmarks.sleeping import SleepingLoader
    from rerank_grpc.ray import app
    from rerank_grpc.ray.arguments import read_arguments

    loader = SleepingLoader(**arguments.pop("loader"))
    return app.application(*read_arguments(arguments), loader)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
