"""The rules for grpc-gateway fit the contract, and a gateway made of them serves the real server."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from clients.conformance.contract.tools import Missing
from clients.conformance.gateway import build
from clients.conformance.run import ROOT
from rerank_grpc.v1 import rerank_pb2
from tests.command import served

TOKEN = "rrk_of_the_gateways_caller"
RULES: list[dict[str, str]] = yaml.safe_load(build.RULES.read_text("utf-8"))["http"]["rules"]
SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"]
QUERY = {"query": "a dog", "documents": [{"text": "stones", "id": "s"}, {"text": "a dog barks", "id": "d"}]}


class Reply(NamedTuple):
    """A reply of the gateway."""

    status: int
    body: str

    @property
    def value(self) -> dict[str, Any]:
        """The one JSON value of the body."""
        value: dict[str, Any] = json.loads(self.body)
        return value


def test_every_method_of_the_service_has_one_rule_and_no_other_has():
    methods = {method.full_name for method in SERVICE.methods}
    assert sorted(rule["selector"] for rule in RULES) == sorted(methods)
    assert yaml.safe_load(build.RULES.read_text("utf-8"))["type"] == "google.api.Service"


def test_a_rule_has_one_path_of_its_own_and_a_body_only_where_it_posts():
    paths = []
    for rule in RULES:
        (verb,) = rule.keys() & {"get", "post", "put", "delete", "patch"}
        assert rule.keys() == {"selector", verb} | ({"body"} if verb == "post" else set())
        assert rule.get("body") == ("*" if verb == "post" else None)
        paths.append((verb, rule[verb]))
    assert len(paths) == len(set(paths))


def test_the_page_tells_each_rule():
    page = (ROOT / "docs" / "contract.md").read_text("utf-8")
    for rule in RULES:
        (verb,) = rule.keys() & {"get", "post"}
        told = [line for line in page.splitlines() if line.startswith(f"| `{verb.upper()} {rule[verb]}")]
        assert any(rule["selector"].rpartition(".")[2] in line for line in told)


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    """The address of a gateway before a server with a token."""
    try:
        program = build.build()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with served(RERANK_TOKENS=TOKEN) as server:
        pipe = subprocess.PIPE
        with subprocess.Popen([program, server.target], stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.communicate(timeout=60)


def ask(
    address: str, method: str, path: str, body: object = None, token: str = TOKEN, **headers: str
) -> Reply:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        text = None if body is None else json.dumps(body)
        sent = {"Authorization": f"Bearer {token}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request(method, path, text, sent)
        response = connection.getresponse()
        return Reply(response.status, response.read().decode())
    finally:
        connection.close()


@pytest.mark.timeout(400)
def test_a_rerank_goes_through(gateway: str):
    reply = ask(gateway, "POST", "/v1/rerank", QUERY)
    assert reply.status == 200, reply.body
    assert [result["id"] for result in reply.value["results"]] == ["d", "s"]
    assert reply.value["results"][0]["relevanceScore"] > reply.value["results"][1]["relevanceScore"]


def test_a_stream_is_a_value_a_line(gateway: str):
    lines = ask(gateway, "POST", "/v1/rerank:stream", QUERY).body.splitlines()
    values = [json.loads(line)["result"] for line in lines]
    assert sorted(result["id"] for value in values for result in value.get("results", [])) == ["d", "s"]
    assert values[-1]["summary"]["model"] == "embedded"


def test_models_and_health_are_got(gateway: str):
    (model,) = ask(gateway, "GET", "/v1/models").value["models"]
    assert model["name"] == "embedded"
    assert ask(gateway, "GET", "/v1/health").value["serving"] is True
    assert ask(gateway, "GET", "/v1/health?model=embedded").value["model"] == "embedded"


def test_an_error_has_its_reason_and_its_field(gateway: str):
    reply = ask(gateway, "POST", "/v1/rerank", {"query": "", "documents": [{"text": "a"}]})
    assert (reply.status, reply.value["code"]) == (400, 3)
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in reply.value["details"]}
    assert kinds["ErrorInfo"]["reason"] == "ERROR_REASON_INVALID_REQUEST"
    assert [each["field"] for each in kinds["BadRequest"]["fieldViolations"]] == ["query"]


def test_the_callers_token_and_deadline_are_passed_on(gateway: str):
    assert ask(gateway, "GET", "/v1/models", token="wrong").status == 401
    assert ask(gateway, "GET", "/v1/health?model=nobody").status == 404
    assert ask(gateway, "POST", "/v1/rerank", QUERY, Grpc_Timeout="1n").status in (408, 429, 504)
