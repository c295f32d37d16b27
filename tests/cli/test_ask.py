"""The commands that call a server, in this process, against a scripted one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rerank_grpc.cli import main
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, health, reply


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("state", "serving", "status", "says"),
    [
        (pb.MODEL_STATE_READY, True, 0, "embedded is READY and serving, 0 of 0 tokens queued"),
        (pb.MODEL_STATE_UNLOADED, True, 0, "embedded is UNLOADED and serving"),
        (pb.MODEL_STATE_LOADING, False, 1, "embedded is LOADING and not serving"),
        (pb.MODEL_STATE_FAILED, False, 1, "embedded is FAILED and not serving"),
    ],
)
def test_health_exits_0_where_a_call_would_be_answered(
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    state: pb.ModelState,
    serving: bool,
    status: int,
    says: str,
):
    server.otherwise = reply(health(state, serving))
    assert main(["health", "--target", server.target]) == status
    assert capsys.readouterr().out.startswith(says)
    assert main(["health", "--target", server.target, "--json"]) == status
    assert f'"serving": {str(serving).lower()}' in capsys.readouterr().out
