"""An error is the service's own text beside the field that it concerns, and what was typed stays."""

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import TOKEN, UNMEASURED, Site, Troubles
from tests.browser.driving import drop, open_playground, ranking, rerank, rows, type_in, wait_for_end
from tests.command import served
from tests.ports import free_port
from tests.random_models import bert, qwen3_reranker

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

QUERY = "a query"
DOCUMENTS = ("one", "two")
ASK_FOR_GONE = """() => {
  const other = document.querySelector("#other");
  other.add(new Option("gone", "gone"));
  other.value = "gone";
  other.dispatchEvent(new Event("change", {bubbles: true}));
  document.querySelector("#rerank").click();
}"""
TOO_MANY = json.dumps("x") + "\n"


def error_at(page: "Page", name: str) -> str:
    """Reads the error beside a field, and checks that there is no other one."""
    said = {
        each.get_attribute("id"): each.inner_text() for each in page.locator("#form .error:not(:empty)").all()
    }
    assert list(said) == [f"{name}-error"]
    return said[f"{name}-error"]


def test_an_empty_query_is_told_at_the_query(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, "\u200b ", *DOCUMENTS)
    rerank(page)
    said = error_at(page, "query")
    assert said == "query: must not be empty, and this one has no visible character"
    query = page.get_by_label("Query", exact=True)
    assert query.evaluate("field => field === document.activeElement")
    assert query.get_attribute("aria-invalid") == "true"
    assert page.locator("#documents").input_value() == "\n".join(DOCUMENTS)
    type_in(page, QUERY, *DOCUMENTS)
    rerank(page)
    assert page.locator("#form .error:not(:empty)").count() == 0
    assert query.get_attribute("aria-invalid") == "false"


def test_no_documents_are_told_at_the_documents(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, "", " ")
    rerank(page)
    assert error_at(page, "documents") == "documents: must not be empty"
    assert page.get_by_label("Query", exact=True).input_value() == QUERY


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TOO_MANY * 1001, "documents: holds more than the 1,000 that are allowed"),
        (
            f'"short"\n"{"é" * 100_001}"',
            "documents[1].text: has 100,001 characters, at most 100,000 are allowed",
        ),
        (f'"{"x" * 99_999}"\n' * 100, "at most 8,388,608 bytes (8 MiB)"),
        (json.dumps({"text": "x", "id": "i" * 1025}), "documents[0].id: has 1,025 characters"),
    ],
)
def test_documents_beyond_a_limit_are_told_at_the_documents(
    site: Site, page: "Page", content: str, said: str
) -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, "typed before")
    drop(page, ("many.jsonl", content))
    page.locator("#file-name").get_by_text("many.jsonl").wait_for()
    rerank(page)
    assert said in error_at(page, "documents")
    assert page.locator("#documents").input_value() == "typed before"


@pytest.mark.parametrize(
    ("label", "field", "typed", "said"),
    [
        ("Top n", "top_n", "a few", "must be a whole number"),
        ("Top n", "top_n", "-1", "must be a whole number"),
        ("Max chunks", "chunks", "65", "is 65, at most 64 are allowed"),
        ("Max chunks", "chunks", "1.5", "must be a whole number"),
        ("Access token", "token", "gehe\u00efm", "visible ASCII"),
    ],
)
def test_a_wrong_option_is_told_at_its_field(
    site: Site, page: "Page", label: str, field: str, typed: str, said: str
) -> None:
    open_playground(page, site.url)
    page.get_by_label(label).fill(typed)
    rerank(page)
    assert said in error_at(page, field)
    assert page.get_by_label(label).input_value() == typed


def test_a_model_that_is_gone_is_told_at_its_own_field(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    # In one turn of the page's loop: the panel's renewal takes out what the server does not list.
    page.evaluate(ASK_FOR_GONE)
    wait_for_end(page)
    assert error_at(page, "other") == "no model is named 'gone'; known: embedded, tiny"
    assert len(rows(page)) == 10  # the other model's results stand all the same


def test_a_missing_and_a_wrong_token_are_told_at_the_token(
    guarded_site: Site, page: "Page", troubles: Troubles
) -> None:
    troubles.expect("status of 401")
    open_playground(page, guarded_site.url)
    assert "token" in error_at(page, "token")
    type_in(page, QUERY, *DOCUMENTS)
    field = page.get_by_label("Access token")
    field.fill("wrong")
    rerank(page)
    assert "token" in error_at(page, "token")
    assert page.locator("#documents").input_value() == "\n".join(DOCUMENTS)
    field.fill(TOKEN)
    rerank(page)
    assert len(rows(page)) == 2
    assert page.locator("#form .error:not(:empty)").count() == 0


def test_the_token_is_kept_nowhere(guarded_site: Site, page: "Page", troubles: Troubles) -> None:
    troubles.expect("status of 401")
    open_playground(page, guarded_site.url)
    page.get_by_label("Access token").fill(TOKEN)
    type_in(page, "a secret query", "a secret document")
    rerank(page)
    kept = page.evaluate("""async () => JSON.stringify([
        {...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state,
        await indexedDB.databases(), await caches?.keys(),
    ])""")
    assert kept == json.dumps([{}, {}, "", page.url, None, [], []], separators=(",", ":"))
    assert page.url == f"{guarded_site.url}/playground"
    assert page.context.cookies() == []
    page.reload()
    assert page.get_by_label("Access token").input_value() == ""
    assert page.get_by_label("Query", exact=True).input_value() != "a secret query"


def test_an_instruction_is_asked_for_only_where_the_model_takes_one(page: "Page", tmp_path: "Path") -> None:
    tiny, asked = bert(tmp_path / "tiny"), qwen3_reranker(tmp_path / "asked")
    models = ("--model", f"tiny={tiny}", "--model", f"asked={asked}")
    with served(*models, *UNMEASURED, "--rest-port", "0") as server:
        open_playground(page, server.url.rstrip("/"))
        type_in(page, QUERY, *DOCUMENTS)
        assert page.get_by_label("Instruction").is_hidden()
        page.get_by_label("Compare with").select_option("asked")
        page.get_by_text("only asked takes one").wait_for()
        rerank(page)
        without = ranking(page, "b")
        page.get_by_label("Instruction").fill("Judge by the number of letters.")
        rerank(page)
        assert ranking(page, "b") != without
        assert len(rows(page)) == 2
        page.get_by_label("Instruction").fill("x" * 100_001)
        rerank(page)
        assert "100,001 characters" in error_at(page, "instruction")


def test_an_overloaded_server_says_when_to_try_again(page: "Page", tmp_path: "Path") -> None:
    tiny = bert(tmp_path / "tiny")
    models = ("--model", f"first={tiny}", "--model", f"second={tiny}")
    with served(*models, *UNMEASURED, "--max-calls", "1", "--rest-port", "0") as server:
        open_playground(page, server.url.rstrip("/"))
        type_in(page, QUERY, *(f"{number} {'panda ' * 100}" for number in range(400)))
        page.get_by_label("Compare with").select_option("second")
        rerank(page)
        assert re.search(r"Try again in \d", error_at(page, "call"))


def test_a_server_that_goes_away_and_comes_back(page: "Page", troubles: Troubles, tmp_path: "Path") -> None:
    troubles.expect("net::ERR_CONNECTION_REFUSED")
    tiny = bert(tmp_path / "tiny")
    arguments = ("--model", f"tiny={tiny}", *UNMEASURED, "--rest-port", str(free_port()))
    with served(*arguments) as server:
        open_playground(page, server.url.rstrip("/"))
        type_in(page, QUERY, *DOCUMENTS)
    rerank(page)
    assert error_at(page, "call").startswith("The server does not answer.")
    page.get_by_text("does not answer", exact=True).wait_for()
    assert page.locator("#documents").input_value() == "\n".join(DOCUMENTS)
    with served(*arguments):
        rerank(page)
        assert len(rows(page)) == 2
        assert page.locator("#form .error:not(:empty)").count() == 0
        page.get_by_text("answers", exact=True).wait_for()


def test_a_stream_that_breaks_off_is_told(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    message = b'{"results":[{"relevanceScore":0.5}]}'
    body = bytes(1) + len(message).to_bytes(4, "big") + message
    page.route(
        "**/StreamRerank", lambda route: route.fulfill(body=body, content_type="application/connect+json")
    )
    rerank(page)
    assert error_at(page, "call") == "The connection broke before the last result was there."
    assert len(rows(page)) == 1  # what had come is shown


def test_an_answer_that_is_no_json_is_told_by_its_status(
    site: Site, page: "Page", troubles: Troubles
) -> None:
    troubles.expect("status of 502")
    open_playground(page, site.url)
    page.route(
        "**/*Rerank", lambda route: route.fulfill(status=502, body="<h1>Bad</h1>", content_type="text/html")
    )
    rerank(page)
    assert error_at(page, "call") == "HTTP 502 Bad Gateway"
