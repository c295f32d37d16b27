"""Runs nginx and haproxy from the files of deploy/, in which only ports and paths are others."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.command import environment
from tests.deploy.files import ROOT, tool
from tests.ports import free_port
from tests.support import wait_for

HOST = "127.0.0.1"
NGINX = ROOT / "deploy/nginx/nginx.conf"
HAPROXY = ROOT / "deploy/haproxy/haproxy.cfg"
ENVOY = ROOT / "deploy/envoy/envoy.yaml"
KINDS = ("nginx", "haproxy")


def listens(port: int) -> bool:
    """Tells whether somebody listens at a port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def nginx_file(port: int, servers: Sequence[int], folder: Path) -> str:
    """Returns nginx.conf for these ports, with every path in a folder."""
    text = NGINX.read_text("utf-8").replace("0.0.0.0:50050", f"{HOST}:{port}")
    text = text.replace("/run/nginx.pid", str(folder / "nginx.pid"))
    for number, server in enumerate(servers, 1):
        text = text.replace(f"10.0.0.{number}:50051", f"{HOST}:{server}")
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"\n    {name}_temp_path {folder / name};" for name in kept)
    return text.replace("http {", f"http {{{paths}", 1)


def haproxy_file(port: int, servers: Sequence[int], admin: Sequence[int] = ()) -> str:
    """Returns haproxy.cfg for these ports; with `admin` it checks these ports, as its comment says."""
    text = HAPROXY.read_text("utf-8").replace("0.0.0.0:50050", f"{HOST}:{port}")
    for number, server in enumerate(servers):
        where = f"{HOST}:{server}" + (f" port {admin[number]}" if admin else "")
        text = text.replace(f"10.0.0.{number + 1}:50051", where)
    return text


def command_of(
    kind: str, port: int, servers: Sequence[int], folder: Path, admin: Sequence[int] = ()
) -> list[str]:
    """Writes a proxy's file; returns the command that runs it in the foreground."""
    if kind == "nginx":
        path = folder / "nginx.conf"
        path.write_text(nginx_file(port, servers, folder), "utf-8")
        return [tool("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(path), "-g", "daemon off;"]
    path = folder / "haproxy.cfg"
    path.write_text(haproxy_file(port, servers, admin), "utf-8")
    return [tool("haproxy"), "-db", "-f", str(path)]


@contextlib.contextmanager
def proxy(kind: str, servers: Sequence[int], folder: Path, admin: Sequence[int] = ()) -> Iterator[int]:
    """Runs a proxy before servers; yields its port."""
    port = free_port()
    command = command_of(kind, port, servers, folder, admin)
    log = folder / f"{kind}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())
    try:
        wait_for(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.terminate()
        process.wait(30)
