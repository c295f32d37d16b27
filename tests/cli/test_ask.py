"""The commands that call a server, in this process, against a scripted one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rerank_grpc.cli import main
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, health, reply
from tests.support import CountingRunner, serving


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


def test_health_fails_for_no_token_but_where_a_model_is_named(capsys: pytest.CaptureFixture[str]):
    settings = replace(ServerSettings(), access_tokens=("right",))
    with serving(settings, runner=CountingRunner()) as server:
        target = f"127.0.0.1:{server.port}"
        assert main(["health", "--target", target]) == 0
        assert capsys.readouterr().out.startswith("the default model is serving; no more is told without")
        assert main(["health", "--target", target, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"serving": True}
        assert main(["health", "--target", target, "--model", "embedded"]) == 1
        assert "send a token" in capsys.readouterr().err


def test_the_known_models_are_listed_without_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[[model]]\nid = "acme/own"\nkind = "cross-encoder"\nfamily = "bert"\nserved = "packed"\n')
    arguments = ["models", "--available", "--target", "127.0.0.1:1", "--catalogue", str(own)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("model ")
    assert any(line.split() == ["acme/own", "packed"] for line in printed)
    assert main([*arguments, "--json"]) == 0
    models = {model["id"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models["acme/own"]["served"] == "packed"
    assert models["zeroentropy/zerank-2"]["noncommercial"] is True
    assert models["jinaai/jina-reranker-v3"]["unsupported"]


def test_an_unreadable_catalogue_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--available", "--catalogue", str(tmp_path / "none.toml")]) != 0
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "--catalogue: cannot read" in said.err
