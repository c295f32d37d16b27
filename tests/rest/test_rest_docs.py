"""The OpenAPI document is true, and Swagger's page needs nothing from elsewhere."""

import re

from tests.rest.support import call, get, post


def test_every_operation_exists_and_its_examples_work(port: int) -> None:
    document = get(port, "/openapi.json").json
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "200" in operation["responses"]
            if method == "get":
                assert get(port, path.replace("{model}", "embedded")).status == 200
                continue
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
            for example in schemas[name]["examples"]:
                reply = post(port, path, example)
                assert reply.status == 200
                assert "Forgot password" in reply.raw.decode()


def test_every_reference_leads_somewhere(port: int) -> None:
    reply = get(port, "/openapi.json")
    schemas = reply.json["components"]["schemas"]
    used = set(re.findall(r'"#/components/schemas/(\w+)"', reply.raw.decode()))
    assert used <= schemas.keys()


def test_swaggers_page_loads_from_the_shim_alone(port: int) -> None:
    page = get(port, "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.raw.decode()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.raw.decode()):
        assert len(get(port, f"/{name}").raw) > 10_000


def test_a_path_names_all_methods_that_it_takes(port: int) -> None:
    assert call(port, "DELETE", "/").headers["allow"] == "GET, HEAD, POST"
    assert call(port, "GET", "/v1/rerank").headers["allow"] == "POST"
