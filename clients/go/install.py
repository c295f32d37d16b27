"""Installs the Go client as its README says, for a caller outside this repository."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODULE = "github.com/rerank-grpc/rerank-grpc/clients/go"
CALLER = f"""package main

import (
	"log"

	rerank "{MODULE}"
	rerankv1 "{MODULE}/rerank/v1"
)

func main() {{
	client, err := rerank.New("localhost:1")
	if err != nil {{
		log.Fatal(err)
	}}
	defer client.Close()
	log.Print(&rerankv1.RerankRequest{{Query: "built"}})
}}
"""


class Uninstallable(Exception):
    """Commands of the README by which no caller is built; the text has what Go said."""


def check(packages: str) -> None:
    """Runs the commands of README.md's Install; raises Uninstallable.

    `packages` is the folder of Debian's packages. The commands for modules have to find the client; gRPC is
    not fetched, because the network is closed to them.
    """
    page = (HERE / "README.md").read_text("utf-8")
    modules, gopath = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[:2]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "rerank-grpc").symlink_to(ROOT, target_is_directory=True)
        caller = folder / "search"
        caller.mkdir()
        (caller / "main.go").write_text(CALLER)
        built = _run(gopath.replace("/usr/share/gocode", packages), folder, folder)
        if "built" not in built:
            raise Uninstallable(f"the README's commands for GOPATH build no caller:\n{built}")
        fetched = _run(f"go mod init example.com/search\n{modules}", caller, folder)
        if f"found {MODULE} in" not in fetched:
            raise Uninstallable(f"the README's commands for modules find no client:\n{fetched}")


def _run(commands: str, folder: Path, home: Path) -> str:
    """Runs commands without a network for Go; returns what they said."""
    cache = subprocess.run(
        ["go", "env", "GOCACHE"], capture_output=True, text=True, check=True
    ).stdout.strip()
    closed = {"GOPROXY": "off", "GOFLAGS": "", "GOMODCACHE": str(home / "modules"), "CGO_ENABLED": "0"}
    variables = {**os.environ, **closed, "HOME": str(home), "GOCACHE": cache, "PWD": str(folder)}
    done = subprocess.run(
        ["sh", "-ec", commands],
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    return done.stdout
