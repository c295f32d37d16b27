"""The callers of a model that was refused at load get the reason, in one line, on every way to it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.v1 import rerank_pb2 as pb
from tests import random_models as checkpoints
from tests.rest.support import get, post, rest_server
from tests.support import WAIT, request_of, serving, stub_of

BODIES: dict[str, dict[str, Any]] = {
    "/v1/rerank": {"query": "q", "documents": ["d"]},
    "/v1/ranking": {"query": {"text": "q"}, "passages": [{"text": "d"}]},
    "/score": {"text_1": "q", "text_2": ["d"]},
}


def _runs_code(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))


def _is_pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _has_no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "code": (_runs_code, "has 'auto_map', which runs code"),
    "pickle": (_is_pickled, "rerank-grpc convert"),
    "tokenizer": (_has_no_tokenizer, "no tokenizer.json"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, int]]:
    """Serves a model, each damaged one, and one that the catalogue refuses: their folder, and the ports."""
    root = tmp_path_factory.mktemp("models")
    for name, (damage, _) in DAMAGES.items():
        damage(checkpoints.bert(root / name))
    lazy = [ModelSpec(name, str(root / name), lazy=True) for name in DAMAGES]
    lazy.append(ModelSpec("catalogue", "jinaai/jina-reranker-v3", lazy=True))
    settings = ServerSettings(models=(ModelSpec("embedded", "embedded"), *lazy))
    with serving(settings) as server, rest_server(server.port) as port:
        yield root, server.port or 0, port


@pytest.mark.case(20)
@pytest.mark.parametrize(
    ("name", "reason"),
    [*((name, reason) for name, (_, reason) in DAMAGES.items()), ("catalogue", "reads all documents in one")],
)
def test_the_reason_is_in_the_error_of_every_call(
    served: tuple[Path, int, int], name: str, reason: str
) -> None:
    root, grpc_port, port = served
    with stub_of(grpc_port) as stub:
        with pytest.raises(grpc.RpcError) as refused:
            stub.Rerank(request_of("q", "d", model=name), timeout=WAIT)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        told = [refused.value.details() or ""]
        models = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}
        told.append(models[name].state_message)
    for path, body in BODIES.items():
        reply = post(port, path, {**body, "model": name})
        assert reply.status == 503
        told.append(reply.json["message"])
    entries = {entry["id"]: entry for entry in get(port, "/v1/models").json["data"]}
    told.append(entries[name]["state_message"])
    for text in told:
        assert reason in text
        assert "\n" not in text
        # A path is told as the operator has typed it, and no other of this machine is.
        rest = text.replace(str(root / name), "")
        assert str(root.parent) not in rest
        assert str(Path.home()) not in rest
    assert "state_message" not in entries["embedded"]


@pytest.mark.case(20)
def test_the_hub_id_of_a_refused_model_leads_to_the_reason(served: tuple[Path, int, int]) -> None:
    _, _, port = served
    reply = post(port, "/v1/rerank", {**BODIES["/v1/rerank"], "model": "jinaai/jina-reranker-v3"})
    assert reply.status == 503
    assert "is not supported: it reads all documents in one prompt" in reply.json["message"]
