"""The OpenAPI document is true, and Swagger's page needs nothing from elsewhere."""

import asyncio
import re
from urllib.parse import urljoin

import pytest
from starlette.types import Message

from rerank_grpc import __version__
from rerank_grpc.limits import LIMITS, VISIBLE
from rerank_grpc.rest.errors import STATUSES
from rerank_grpc.rest.pages.docs import document, routes
from rerank_grpc.types import LABEL
from tests.rest.support import call, get, post

# The replies that hold scores alone.
TEXTLESS = {"HuggingFaceReply", "DeepInfraReply"}


def test_every_operation_exists_and_its_examples_work(port: int) -> None:
    document = get(port, "/openapi.json").json
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            path, good = path.replace("{model}", "embedded"), min(operation["responses"])
            if method == "get":
                assert str(get(port, path).status) == good
                continue
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
            for example in schemas[name]["examples"]:
                reply = post(port, path, example)
                assert str(reply.status) == good == "200"
                told = operation["responses"]["200"]["content"]["application/json"]["schema"]
                assert ("Forgot password" in reply.raw.decode()) is (
                    told["$ref"].split("/")[-1] not in TEXTLESS
                )


def test_the_document_states_the_version_and_the_limits_that_hold(port: int) -> None:
    served = get(port, "/openapi.json").json
    assert served == document()
    assert served["info"]["version"] == __version__
    schemas = served["components"]["schemas"]
    rerank, tei = schemas["RerankRequest"]["properties"], schemas["TeiRequest"]["properties"]
    for documents in (rerank["documents"], tei["texts"]):
        assert (documents["minItems"], documents["maxItems"]) == (1, LIMITS.documents)
    for text in (schemas["Query"], rerank["instruction"], tei["texts"]["items"]):
        assert text["maxLength"] == LIMITS.characters
    assert rerank["query"]["anyOf"][0] == tei["query"] == {"$ref": "#/components/schemas/Query"}
    visible = re.sub(r"\\U(\w{8})", lambda found: chr(int(found[1], 16)), VISIBLE.pattern)
    assert schemas["Query"]["pattern"] == visible
    plain, with_text, *_ = schemas["Document"]["anyOf"]
    assert plain["maxLength"] == with_text["properties"]["text"]["maxLength"] == LIMITS.characters
    labels = schemas["Info"]["properties"]["model_type"]["properties"]["reranker"]["properties"]
    assert labels["label2id"]["examples"] == [{LABEL: 0}]


def test_the_document_tells_the_errors_of_every_call_in_the_same_words() -> None:
    told: dict[str, set[str]] = {}
    for path, operations in document()["paths"].items():
        if "post" in operations:
            responses = operations["post"]["responses"]
            # 408 is of a body that comes too slowly, which no error of the service is.
            assert {str(status) for status in STATUSES.values()} | {"408"} <= responses.keys(), path
            for status, response in responses.items():
                told.setdefault(status, set()).add(response["description"])
    assert {status for status, texts in told.items() if len(texts) > 1} == {"200"}


def test_every_reference_leads_somewhere(port: int) -> None:
    reply = get(port, "/openapi.json")
    schemas = reply.json["components"]["schemas"]
    used = set(re.findall(r'"#/components/schemas/(\w+)"', reply.raw.decode()))
    assert used <= schemas.keys()


@pytest.mark.parametrize("path", ["/docs", "/docs/", "//docs", "/tei/docs", "/tei/docs/", "/docs?a/"])
def test_swaggers_page_loads_from_the_rest_server_alone(port: int, path: str) -> None:
    page = get(port, path)
    assert page.headers["content-type"].startswith("text/html")
    text = page.raw.decode()
    assert "//" not in text
    links = re.findall(r'(?:src|href|url)(?:=|: )"(?!data:)([^"]+)"', text)
    assert len(links) == 3
    # What a browser makes of them, also behind a proxy that takes a path of its own off.
    for base in ("", "/behind/a/proxy"):
        for link in links:
            there = urljoin(f"http://host{base}{path}", link)
            assert there.startswith(f"http://host{base}/")
            assert len(get(port, there.removeprefix(f"http://host{base}")).raw) > 5_000


def test_a_script_comes_whole_and_is_asked_about_without_it(port: int) -> None:
    script = get(port, "/docs/swagger-ui-bundle.js")
    assert script.headers["content-length"] == str(len(script.raw))
    asked = call(port, "HEAD", "/docs/swagger-ui-bundle.js")
    assert (asked.status, asked.raw) == (200, b"")
    assert asked.headers["content-length"] == script.headers["content-length"]


def test_a_script_is_sent_in_pieces_that_wait_for_the_caller() -> None:
    script = next(route for route in routes() if route.path.endswith(".js"))
    pieces: list[int] = []

    async def receive() -> Message:
        raise AssertionError("there is nothing to receive")

    async def send(message: Message) -> None:
        pieces.append(len(message.get("body", b"")))

    async def serve() -> None:
        await script.app({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)

    asyncio.run(serve())
    assert sum(pieces) > 1 << 20
    # What a caller does not read is kept for each: 300 of them may cost 50 MiB.
    assert max(pieces) <= 65_536


def test_a_path_names_all_methods_that_it_takes(port: int) -> None:
    assert call(port, "DELETE", "/").headers["allow"] == "GET, HEAD, POST"
    assert call(port, "GET", "/v1/rerank").headers["allow"] == "POST"
