"""What the container's health check tells in each role, and what the image's other commands do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.image.conftest import TOKENS
from tests.image.containers import HARDENED, Container, once, podman, running, seldom
from tests.image.test_service import QUERY, best


def test_rest_alone_is_healthy_by_its_own_port(image: str, served: Container):
    variables = {"RERANK_UPSTREAM_TOKEN": TOKENS[1]}
    with running(image, "rest", "--target", f"127.0.0.1:{served.grpc}", variables=variables) as rest:
        rest.wait()
        status, answer = rest.ask("/v1/rerank", QUERY, TOKENS[1])
        assert (status, best(answer)) == (200, 1)
        assert rest.run("rerank-grpc", "health", "--here").startswith(
            f"rest at 127.0.0.1:{rest.rest} is serving"
        )
        assert rest.stop() == 0


def test_rest_alone_is_unhealthy_while_its_server_is_away(image: str):
    with running(image, "rest", "--target", "127.0.0.1:1") as rest:
        seldom(lambda: rest.ask("/health")[0] == 503)
        assert not rest.healthy()
        said = podman("exec", rest.name, "rerank-grpc", "health", "--here", check=False)
        assert (said.returncode, said.stderr) == (1, "")
        assert "not serving" in said.stdout


def test_the_health_check_says_what_it_found_where_nothing_runs(image: str):
    done = once(image, "health", "--here", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "rerank-grpc: error: no rerank-grpc serve or rest runs here\n",
    )


# The command itself, whose gRPC servers end as soon as somebody has written to a pipe.
DIES = """
import sys, threading
import grpc
from rerank_grpc.cli import main

made, build = [], grpc.server
grpc.server = lambda *words, **named: made.append(build(*words, **named)) or made[-1]

def die():
    open("/run/dies/now").read()
    for server in made:
        server.stop(0)

threading.Thread(target=die, daemon=True).start()
sys.exit(main())
"""


def test_a_process_whose_grpc_server_has_died_is_unhealthy_while_its_rest_still_answers(
    image: str, tmp_path: Path
):
    folder = tmp_path / "dies"
    folder.mkdir()
    (folder / "rerank-grpc").write_text(DIES)
    os.mkfifo(folder / "now")
    for path, mode in ((folder, 0o755), (folder / "rerank-grpc", 0o644), (folder / "now", 0o644)):
        path.chmod(mode)
    entrypoint = f"--entrypoint={json.dumps(['python', '/run/dies/rerank-grpc'])}"
    engine = (*HARDENED, f"--volume={folder}:/run/dies:ro", entrypoint)
    with running(image, "serve", engine=engine) as container:
        container.wait()
        (folder / "now").write_text("")
        seldom(lambda: not container.healthy())
        said = podman("exec", container.name, "rerank-grpc", "health", "--here", check=False)
        assert (said.returncode, said.stdout, said.stderr.count("\n")) == (1, "", 1)
        assert f"127.0.0.1:{container.grpc}" in said.stderr
        assert container.state("Running") == "true"
        assert container.ask("/docs")[0] == 200


@pytest.mark.parametrize(
    "command", [("--version",), ("config",), ("models", "--available"), ("serve", "--help")]
)
def test_commands_that_need_no_server_run(image: str, command: tuple[str, ...]):
    assert once(image, *command).stdout
