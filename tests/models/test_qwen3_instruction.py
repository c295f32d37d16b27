"""An instruction changes the order of results, through gRPC and REST, with a model made to follow it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests import prompts
from tests import random_models as checkpoints
from tests.rest.support import post, rest_server
from tests.support import request_of, serving, stub_of

QUERY = "animals"
DOCUMENTS = ["All about cats.", "All about dogs."]
INSTRUCTIONS = ["Prefer cats", "Prefer dogs"]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Passes as small as these take longer on two threads, and much longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def obedient(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 that answers yes if the document is about what the instruction asks for, and no otherwise."""
    shape = {"initializer_range": 0.1, "num_hidden_layers": 2}
    path = checkpoints.qwen3_reranker(tmp_path_factory.mktemp("obedient") / "qwen3", **shape)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    cases = [
        (prompts.own_ids(path, "qwen3", QUERY, [document], instruction)[0], instruction[-4:] in document)
        for instruction in INSTRUCTIONS
        for document in DOCUMENTS
    ]
    assert [fits for _, fits in cases] == [True, False, False, True]
    rows = torch.tensor([ids for ids, _ in cases])  # all of one length
    answers = torch.tensor([tokenizer.convert_tokens_to_ids("yes" if fits else "no") for _, fits in cases])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(300):
        logits = network(input_ids=rows, logits_to_keep=1).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, answers)
        if loss < 0.03:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.03, "it has not learned it"
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def server(obedient: Path) -> Iterator[RerankServer]:
    with serving(ServerSettings(models=(ModelSpec("judge", str(obedient)),), precision="fp32")) as running:
        yield running


def order(response: pb.RerankResponse) -> list[int]:
    return [result.index for result in response.results]


def test_an_instruction_changes_the_order(server: RerankServer) -> None:
    with stub_of(server.port) as stub:
        cats, dogs = (
            stub.Rerank(request_of(QUERY, *DOCUMENTS, instruction=instruction))
            for instruction in INSTRUCTIONS
        )
        assert (order(cats), order(dogs)) == ([0, 1], [1, 0])
        for response in (cats, dogs):
            best, other = response.results
            assert best.relevance_score > 0.9
            assert other.relevance_score < 0.1
            assert best.logit > 0 > other.logit


def test_an_instruction_that_the_model_takes_is_never_left_out(server: RerankServer) -> None:
    with stub_of(server.port) as stub:
        fields = {"instruction": INSTRUCTIONS[1], "ignore_unsupported_options": True}
        assert order(stub.Rerank(request_of(QUERY, *DOCUMENTS, **fields))) == [1, 0]


def test_a_language_model_is_listed_with_what_it_accepts(server: RerankServer) -> None:
    with stub_of(server.port) as stub:
        (model,) = stub.ListModels(pb.ListModelsRequest()).models
    assert model.accepts_instruction
    assert model.scoring == pb.SCORING_SOFTMAX
    assert model.family == "qwen3"


@pytest.mark.parametrize("wording", ["instruction", "instruct", "kwargs", "kwargs as JSON"])
def test_an_instruction_reaches_the_model_over_rest(wording: str, server: RerankServer) -> None:
    orders = []
    with rest_server(server.port) as port:
        for instruction in INSTRUCTIONS:
            fields: dict[str, Any] = {wording: instruction}
            if wording.startswith("kwargs"):
                inner = {"instruction": instruction}
                fields = {"kwargs": json.dumps(inner) if wording.endswith("JSON") else inner}
            reply = post(
                port, "/v1/rerank", {"model": "judge", "query": QUERY, "documents": DOCUMENTS} | fields
            )
            assert reply.status == 200
            orders.append([result["index"] for result in reply.json["results"]])
    assert orders == [[0, 1], [1, 0]]
