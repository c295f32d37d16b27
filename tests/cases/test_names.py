"""A model is called, listed and described by its hub id, however it was configured and wherever it lies."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import huggingface_hub
import pytest

from rerank_grpc.config.reading import read_settings
from rerank_grpc.protocols import tei_pb2 as tei
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests import random_models as checkpoints
from tests.rest.support import get, post, rest_server
from tests.support import WAIT, channel_of, request_of, serving, stub_of

COMMIT = "0123456789" * 4
DOCUMENTS = {"query": "q", "documents": ["d", "e"]}


class Configured(NamedTuple):
    """A way to configure one model: what is typed, what callers may then type, and what is listed."""

    source: str
    names: tuple[str, ...]  # the model's own first
    listed: tuple[str, ...]
    root: str


TABLE = {
    "a hub id in the models directory": Configured(
        "acme/tiny-reranker",
        ("tiny-reranker", "acme/tiny-reranker"),
        ("tiny-reranker", "acme/tiny-reranker"),
        "acme/tiny-reranker",
    ),
    "a hub id with a name of its own": Configured(
        "bge=acme/tiny-reranker",
        ("bge", "acme/tiny-reranker"),
        ("bge", "acme/tiny-reranker"),
        "acme/tiny-reranker",
    ),
    "a revision in the hub's cache": Configured(
        f"acme/cached@{COMMIT}",
        ("cached", "acme/cached", f"acme/cached@{COMMIT}"),
        ("cached", "acme/cached"),
        "acme/cached",
    ),
    "a hub id in the hub's cache": Configured(
        "acme/cached", ("cached", "acme/cached"), ("cached", "acme/cached"), "acme/cached"
    ),
    "a short name of the catalogue": Configured(
        "bge-reranker-base",
        ("bge-reranker-base", "BAAI/bge-reranker-base"),
        ("bge-reranker-base", "BAAI/bge-reranker-base"),
        "BAAI/bge-reranker-base",
    ),
    "a short name beside its directory, as in the container": Configured(
        "x=ms-marco-MiniLM-L-6-v2",
        ("x", "ms-marco-MiniLM-L-6-v2", "cross-encoder/ms-marco-MiniLM-L-6-v2"),
        ("x", "cross-encoder/ms-marco-MiniLM-L-6-v2"),
        "cross-encoder/ms-marco-MiniLM-L-6-v2",
    ),
    "a directory of the form of a hub id": Configured(
        "private/model", ("model", "private/model"), ("model",), "model"
    ),
    "a directory beside that of the models": Configured(
        "./private/model", ("model", "./private/model"), ("model",), "model"
    ),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is both the working directory and the models directory, with the hub's cache in it."""
    root = tmp_path_factory.mktemp("here")
    checkpoints.bert(root / "tiny-reranker")
    checkpoints.xlm_roberta(root / "bge-reranker-base")
    checkpoints.bert(root / "ms-marco-MiniLM-L-6-v2")
    checkpoints.bert(root / "private" / "model")
    cached = root / "hub" / "models--acme--cached"
    shutil.copytree(root / "tiny-reranker", cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    return root


@contextmanager
def served(
    here: Path, monkeypatch: pytest.MonkeyPatch, **flags: list[str]
) -> Iterator[tuple[RerankServer, rerank_pb2_grpc.RerankServiceStub, int]]:
    """Serves what these flags say: the server, the gRPC stub, and REST's port."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = replace(read_settings(flags, {}), models_dir=here, precision="fp32")
    with serving(settings) as server, rest_server(server.port) as port, stub_of(server.port) as stub:
        yield server, stub, port


@pytest.mark.case(2)
@pytest.mark.parametrize("configured", TABLE.values(), ids=TABLE)
def test_a_model_is_called_listed_and_described_by_its_hub_id(
    here: Path, monkeypatch: pytest.MonkeyPatch, configured: Configured
) -> None:
    own = configured.names[0]
    with served(here, monkeypatch, model=[configured.source]) as (server, stub, port):
        for name in configured.names:
            assert stub.Rerank(request_of("q", "d", model=name), timeout=WAIT).model == own
            reply = post(port, "/v1/rerank", {**DOCUMENTS, "model": name})
            assert (reply.status, reply.json["model"]) == (200, own)
            entry = get(port, f"/v1/models/{name}").json
            if "./" not in name:  # clients take that out of a path
                assert (entry["id"], entry["model_name"], entry["root"]) == (name, name, configured.root)
        (model,) = stub.ListModels(pb.ListModelsRequest()).models
        assert (model.name, *model.aliases) == configured.listed
        assert model.hub_id == (configured.root if "/" in configured.root else "")
        entries = get(port, "/v1/models").json["data"]
        assert [entry["id"] for entry in entries] == [*configured.listed]
        assert {entry["root"] for entry in entries} == {configured.root}
        assert [entry["id"] for entry in get(port, "/models").json["data"]] == [*configured.listed]
        info = get(port, "/info").json
        assert (info["model_id"], info["served_model_name"]) == (configured.root, own)
        assert get(port, "/").json["supported_models"] == [*configured.listed]
        with channel_of(server.port) as channel:
            describe: Any = channel.unary_unary("/tei.v1.Info/Info", None, tei.InfoResponse.FromString)
            assert describe(b"", timeout=WAIT).model_id == configured.root


@pytest.mark.case(2)
@pytest.mark.parametrize("source", ["private/model", "{}/private/model"])
def test_a_path_is_in_no_listing(here: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    with served(here, monkeypatch, model=[source.format(here)]) as (_, stub, port):
        told = [
            json.dumps(get(port, path).json)
            for path in ("/", "/v1/models", "/models", "/info", "/model-info")
        ]
        told.append(str(stub.ListModels(pb.ListModelsRequest())))
        told.append(post(port, "/v1/rerank", {**DOCUMENTS, "model": "none"}).json["message"])
        unknown = get(port, "/v1/models/none")
        too_long = get(port, f"/v1/models/{'n' * 20_000}")
        assert (too_long.status, too_long.json["message"]) == (404, "no model has that name: see /v1/models")
        assert unknown.status == 404
        told.append(unknown.json["message"])
        assert [text for text in told if "private" in text or str(here) in text] == []


@pytest.mark.case(2)
def test_the_hub_id_of_two_models_is_refused_with_their_names(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [f"old=acme/cached@{COMMIT}", "new=acme/cached@main"]
    with served(here, monkeypatch, model=models) as (_, stub, port):
        right = "'acme/cached' is the source of several models: name old or new"
        with pytest.raises(grpc.RpcError) as refused:
            stub.Rerank(request_of("q", "d", model="acme/cached"), timeout=WAIT)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, right)
        for reply in (
            post(port, "/v1/rerank", {**DOCUMENTS, "model": "acme/cached"}),
            get(port, "/v1/models/acme/cached"),
        ):
            assert (reply.status, reply.json["message"]) == (404, right)
        entries = get(port, "/v1/models").json["data"]
        assert [(entry["id"], entry["root"]) for entry in entries] == [
            ("old", "acme/cached"),
            ("new", "acme/cached"),
        ]


@pytest.mark.case(2)
@pytest.mark.parametrize("over", ["gRPC", "REST"])
def test_a_call_loads_a_lazy_model_by_its_hub_id(
    here: Path, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    hub_id = "BAAI/bge-reranker-base"
    flags = {"model": ["acme/tiny-reranker"], "lazy-model": [hub_id]}
    with served(here, monkeypatch, **flags) as (_, stub, port):
        assert get(port, f"/v1/models/{hub_id}").json["loaded"] is False
        if over == "gRPC":
            assert stub.Rerank(request_of("q", "d", model=hub_id), timeout=WAIT).model == "bge-reranker-base"
        else:
            assert post(port, "/v2/rerank", {**DOCUMENTS, "model": hub_id}).status == 200
        assert get(port, f"/v1/models/{hub_id}").json["loaded"] is True


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_an_alias_takes_every_name_that_no_model_has(
    here: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(here)
    models = ["embedded", "acme/tiny-reranker"]
    alias = {"alias": ["*=tiny-reranker"]} if how == "flag" else {}
    settings = read_settings(
        {"model": models, **alias}, {} if alias else {"RERANK_ALIASES": "*=tiny-reranker"}
    )
    with (
        serving(replace(settings, models_dir=here)) as server,
        rest_server(server.port) as port,
        stub_of(server.port) as stub,
    ):
        for name, right in (
            ("gpt-4o", "tiny-reranker"),
            ("a/b/c", "tiny-reranker"),
            ("embedded", "embedded"),
        ):
            assert stub.Rerank(request_of("q", "d", model=name), timeout=WAIT).model == right
            assert post(port, "/v1/rerank", {**DOCUMENTS, "model": name}).json["model"] == right
            entry = get(port, f"/v1/models/{name}").json
            assert (entry["id"], entry["model_name"]) == (name, name)
        for model in ("default/not-specified", "", None):
            assert post(port, "/v1/rerank", {**DOCUMENTS, "model": model}).json["model"] == "embedded"
        for path in ("/", "/v1/models", "/models"):
            assert "*" not in json.dumps(get(port, path).json)
        assert "*" not in str(stub.ListModels(pb.ListModelsRequest()))
