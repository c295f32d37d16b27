"""A hardened container that serves: health, protocols, tokens, traces, kernels, and what it may not do."""

from __future__ import annotations

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.client import Client
from rerank_grpc.errors import Unauthenticated
from rerank_grpc.kernels.levels import levels_of, processor_features
from tests.image.conftest import TOKENS
from tests.image.containers import Container, once, podman, running, steady
from tests.support import wait_for
from tests.telemetry.receiver import Receiver

TEXT, DOCUMENTS = "reset password", ("closed", "Forgot password")
QUERY = {"query": TEXT, "documents": DOCUMENTS}

_ANOTHER = (
    "--user=12345:12345",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
)


def best(answer: Any) -> int:
    """Which document an answer of REST puts first."""
    place: int = answer["results"][0]["index"]
    return place


def test_it_is_healthy_and_grpc_rest_and_metrics_answer(served: Container):
    assert served.healthy()
    with served.client(TOKENS[0]) as client:
        response = client.rerank(TEXT, DOCUMENTS)
        (info,) = client.list_models()
    assert response.results[0].index == 1
    assert (info.name, info.precision) == ("embedded", "int8")
    status, answer = served.ask("/v1/rerank", QUERY, TOKENS[0])
    assert (status, best(answer)) == (200, 1)
    status, text = served.ask("/metrics", port=served.metrics)
    assert status == 200
    assert "rerank_build_info" in text


@pytest.mark.parametrize("token", [None, "sk-wrong"])
def test_nobody_gets_in_without_a_token_that_is_listed(served: Container, token: str | None):
    status, answer = served.ask("/v1/rerank", QUERY, token)
    assert status == 401, answer
    with served.client(token) as client, pytest.raises(Unauthenticated):
        client.rerank(TEXT, DOCUMENTS)


def test_the_page_of_the_api_is_whole(served: Container):
    for path, says in (
        ("/docs", "swagger-ui"),
        ("/docs/swagger-ui.css", "{"),
        ("/docs/swagger-ui-bundle.js", "SwaggerUI"),
    ):
        status, text = served.ask(path)
        assert (status, says in text) == (200, True), path
    status, document = served.ask("/openapi.json")
    assert (status, document["openapi"][:2]) == (200, "3.")


def test_traces_reach_the_collector(served: Container, collector: Receiver):
    assert served.ask("/v1/rerank", QUERY, TOKENS[0])[0] == 200
    wait_for(lambda: bool(collector.requests), seconds=60)
    assert collector.resource["service.name"] == "rerank-grpc"


def test_the_log_says_which_kernels_it_uses(served: Container):
    lines = [line for line in served.log().splitlines() if "kernels" in line]
    assert len(lines) == 1, lines


LEVELS = levels_of(os.uname().machine, processor_features())
EACH_LEVEL = """
import os, sys
from rerank_grpc.kernels.library import library
for name in sys.argv[1:]:
    os.environ["RERANK_KERNELS"] = name
    print(name, library().level)
"""


@pytest.mark.skipif(not LEVELS, reason="no kernels are written for this processor")
def test_the_kernels_come_built_for_each_level_of_this_processor(image: str):
    names = [level.name for level in LEVELS]
    entrypoint = f"--entrypoint={json.dumps(['python', '-c', EACH_LEVEL, *names])}"
    # A compiler is none there, so what is loaded has come with the image.
    assert once(image, engine=(entrypoint,)).stdout.splitlines() == [f"{name} {name}" for name in names]


def test_it_may_do_nothing_but_serve(served: Container):
    status = served.run("cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {0}
    assert fields["NoNewPrivs"] == "1"
    writing = podman("exec", served.name, "sh", "-c", ": >/opt/service/mine || : >/models/mine", check=False)
    assert writing.returncode != 0
    for tool in ("gcc", "cc", "pip", "pip3", "curl"):
        assert podman("exec", served.name, "sh", "-c", f"command -v {tool}", check=False).returncode != 0, (
            tool
        )


def test_a_wrong_setting_is_one_line_and_status_2(image: str):
    done = once(image, "serve", check=False, variables={"RERANK_PRECISION": "fp7"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "RERANK_PRECISION" in done.stderr


def test_another_user_other_flags_and_a_lower_precision_serve_as_well(image: str):
    container = Container("rerank-test-user")
    container.grpc, port = 1, container.grpc  # the flag wins, and the health check knows it
    with running(
        image,
        "serve",
        "--port",
        str(port),
        engine=_ANOTHER,
        container=container,
        variables={"RERANK_PRECISION": "bf16"},
    ):
        container.wait()
        assert container.run("id", "-u").strip() == "12345"
        with Client(f"127.0.0.1:{port}", timeout=60) as client:
            assert client.list_models()[0].precision == "bf16"
            assert client.rerank(TEXT, DOCUMENTS).results[0].index == 1


def test_the_command_of_bge_rerank_images_works_as_it_stands(image: str):
    container = Container("rerank-test-seed", grpc=50051, rest=6006, metrics=9090)
    for port in (50051, 6006, 9090):
        if not _free(port):
            pytest.skip(f"port {port} is somebody's here, and the host's network is all there is")
    ports = dict.fromkeys(container.variables(), "")  # none is set: the image's own hold
    engine = ("-p", "6006:6006", "-e", "ACCESS_TOKEN=sk-xxxx")
    with running(image, engine=engine, container=container, variables=ports):
        container.wait()
        assert container.ask("/v1/rerank", QUERY, "sk-xxxx")[0] == 200
        assert container.ask("/v1/rerank", QUERY)[0] == 401


def _free(port: int) -> bool:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def test_a_stop_ends_the_calls_in_progress_first(image: str):
    # No two are the same, which would be scored once.
    documents = [f"{number} is a word of a long document " * 60 for number in range(50)]
    long = {"query": "what is a panda?", "documents": documents}
    with running(image) as container, ThreadPoolExecutor() as caller:
        container.wait()
        call = caller.submit(container.ask, "/v1/rerank", long)
        wait_for(lambda: _in_flight(container) > 0, seconds=60)
        assert container.stop() == 0, container.log()
        status, answer = call.result()
        assert (status, len(answer["results"])) == (200, 50)
        assert [line["calls"] for line in container.events("draining")] == [1]
        assert [line["calls"] for line in container.events("drained")] == [0]
        assert "Traceback" not in container.log()


def _in_flight(container: Container) -> int:
    _, text = container.ask("/metrics", port=container.metrics)
    lines = [line for line in text.splitlines() if line.startswith("rerank_calls_inside")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def test_a_new_token_of_the_file_is_accepted_within_2_s_and_health_stays_green(
    served: Container, token_file: Path
):
    def call() -> tuple[float, int]:
        begun = time.monotonic()
        return begun, served.ask("/v1/rerank", QUERY, "sk-of-the-second-day")[0]

    new = token_file.with_name("new")
    new.write_text(f"sk-of-the-second-day\n{TOKENS[1]}\n")
    new.chmod(0o644)
    health = []
    with steady(call, rate=20) as answers:
        wait_for(lambda: len(answers) > 20, seconds=60)
        new.replace(token_file)
        changed = time.monotonic()
        while time.monotonic() - changed < 6:
            health.append(served.healthy())
        wait_for(lambda: len(answers) > 100, seconds=60)
    before = [status for begun, status in answers if begun < changed - 1]
    after = [status for begun, status in answers if begun > changed + 2]
    assert set(before) == {401}
    assert len(after) > 20
    assert set(after) == {200}
    assert health
    assert all(health)
    assert served.ask("/v1/rerank", QUERY, TOKENS[0])[0] == 401
    assert served.ask("/v1/rerank", QUERY, TOKENS[1])[0] == 200
