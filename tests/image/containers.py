"""Containers of the image, run by podman on the host's network: where they listen, and what they said."""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rerank_grpc.client import Client
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0  # seconds for a start, or a command's run, on a busy machine
# What docs/operations/containers.md calls hardened.
HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:noexec",
    "--image-volume=ignore",
)


def podman(
    *arguments: str, check: bool = True, timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Runs podman, and returns how it ended."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
    return done


def limits() -> list[str]:
    """Asks for no more files and processes than this process may have: podman would raise them."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    processes = min(processes, 32_768) if processes > 0 else 32_768
    return [f"--ulimit=nofile={files}:{files}", f"--ulimit=nproc={processes}:{processes}"]


def seldom(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds that takes a process to find out, or fails."""
    given_up = threading.Event()
    for _ in range(int(PATIENCE)):
        if condition():
            return
        given_up.wait(1)
    raise AssertionError("it never came true")


@dataclass
class Container:
    """A container that runs: its ports on this machine, and what is asked of it."""

    name: str
    grpc: int = field(default_factory=free_port)
    rest: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)

    def variables(self) -> dict[str, str]:
        """The settings that let it stand beside others on the host's network."""
        ports = {"RERANK_PORT": self.grpc, "RERANK_REST_PORT": self.rest, "RERANK_METRICS_PORT": self.metrics}
        # A budget that is given need not be found out at the start, which takes seconds.
        fixed = {"RERANK_ADMIN_PORT": "off", "RERANK_MAX_BATCH_TOKENS": "2048"}
        return fixed | {name: str(port) for name, port in ports.items()}

    def healthy(self) -> bool:
        """Runs the image's own health check in the container, as an engine does."""
        return podman("healthcheck", "run", self.name, check=False).returncode == 0

    def wait(self) -> Container:
        """Waits until it is healthy; fails at once where it has ended."""

        def ready() -> bool:
            assert self.state("Running") == "true", self.log()
            return self.ask("/health")[0] == 200 and self.healthy()

        seldom(ready)
        return self

    def state(self, field: str) -> str:
        """Asks podman for a field of the container's state."""
        return podman("inspect", "--format", f"{{{{.State.{field}}}}}", self.name).stdout.strip()

    def log(self) -> str:
        """What it has written so far."""
        done = podman("logs", self.name)
        return done.stdout + done.stderr

    def events(self, beginning: str) -> list[dict[str, Any]]:
        """The log's lines whose event begins with a text."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"].startswith(beginning)]

    def run(self, *command: str) -> str:
        """Runs a command inside, and returns what it prints."""
        return podman("exec", self.name, *command).stdout

    def ask(
        self, path: str, body: Any = None, token: str | None = None, port: int | None = None
    ) -> tuple[int, Any]:
        """Calls REST, or another port over HTTP; returns the status, 0 for none, and what the body says."""
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.rest}{path}")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.data = json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        except OSError as error:  # nobody listens
            return 0, str(error)
        try:
            return status, json.loads(data)
        except ValueError:
            return status, data.decode()

    def client(self, token: str | None = None) -> Client:
        """Makes a client of its gRPC port."""
        return Client(f"127.0.0.1:{self.grpc}", token=token, timeout=60)

    def stop(self) -> int:
        """Stops it as `docker stop` does, and returns its exit status."""
        podman("stop", "--time", "40", self.name)
        return int(self.state("ExitCode"))


@contextmanager
def running(
    image: str,
    *command: str,
    variables: Mapping[str, str] = MappingProxyType({}),
    engine: tuple[str, ...] = HARDENED,
    container: Container | None = None,
) -> Iterator[Container]:
    """Runs the image in the background, hardened unless told otherwise; removes the container in the end."""
    here = container or Container(f"rerank-test-{secrets.token_hex(4)}")
    given = {**here.variables(), **variables}
    words = ["run", "--detach", "--name", here.name, "--network=host", *limits(), *engine]
    words += [word for name, text in given.items() for word in ("--env", f"{name}={text}")]
    podman(*words, image, *command)
    try:
        yield here
    finally:
        podman("rm", "--force", "--volumes", "--time", "5", here.name, check=False)


def once(
    image: str,
    *command: str,
    variables: Mapping[str, str] = MappingProxyType({}),
    engine: tuple[str, ...] = (),
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs the image for one command, hardened, at ports that nobody has, and returns how that ended."""
    given = {**Container("once").variables(), **variables}
    name = f"rerank-test-{secrets.token_hex(4)}"
    words = [
        "run",
        "--rm",
        "--name",
        name,
        "--no-healthcheck",
        "--network=host",
        *limits(),
        *HARDENED,
        *engine,
    ]
    words += [word for name, text in given.items() for word in ("--env", f"{name}={text}")]
    try:
        return podman(*words, image, *command, check=check)
    except subprocess.TimeoutExpired:  # podman has ended, and its container has not
        podman("rm", "--force", "--time", "5", name, check=False)
        raise


def build(name: str, source: Path = ROOT) -> str:
    """Builds an image of a tree by `make image`'s script and buildah; returns its name."""
    done = subprocess.run(
        ["make", "-s", "image", "ENGINE=buildah", f"IMAGE={name}", *made_with()],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=3_000,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return name


def made_with() -> list[str]:
    """The variables of make that this run of the tests was given for the build."""
    return [f"{name}={os.environ[name]}" for name in ("IMAGE_ARGS", "TORCH_INDEX") if os.environ.get(name)]


def missing() -> str:
    """Says why images cannot be built and run here; "" where they can."""
    for tool, probe in (("buildah", ["buildah", "info"]), ("podman", ["podman", "info"])):
        if not shutil.which(tool):
            return f"{tool} is missing"
        if subprocess.run(probe, capture_output=True, timeout=60).returncode:
            return f"{tool} does not work here: see `{' '.join(probe)}`"
    return ""


@contextmanager
def steady(call: Callable[[], Any], rate: float) -> Iterator[list[Any]]:
    """Calls a function at a rate a second while the body runs, and collects what it returns."""
    ended, results, threads = threading.Event(), [], []

    def one() -> None:
        results.append(call())

    def beat() -> None:
        while not ended.wait(1 / rate):
            threads.append(threading.Thread(target=one))
            threads[-1].start()

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        yield results
    finally:
        ended.set()
        beating.join()
        for thread in threads:
            thread.join()


def layers(image: str) -> Mapping[str, Path]:
    """The layers of an image by digest, and the folder that each is unpacked in."""
    (found,) = json.loads(podman("inspect", "--type", "image", image).stdout)
    driver = found["GraphDriver"]["Data"]
    folders = [driver["UpperDir"], *filter(None, driver.get("LowerDir", "").split(":"))]
    return dict(zip(found["RootFS"]["Layers"], map(Path, reversed(folders)), strict=True))


def bytes_of(layer: Path) -> int:
    """The bytes of the files in a layer."""
    return sum(path.lstat().st_size for path in layer.rglob("*"))


def pulled_bytes(layer: Path) -> int:
    """The bytes that a pull of a layer takes: registries keep it as a tar file that is compressed by gzip."""
    packed = subprocess.run(["tar", "-czC", str(layer), "."], stdout=subprocess.PIPE, check=True)
    return len(packed.stdout)
