"""An error is the service's own text beside the field that it concerns, and what was typed stays."""

import contextlib
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import TOKEN, UNMEASURED, Site, Troubles
from tests.browser.driving import drop, leave, open_playground, ranking, rerank, rows, type_in, wait_for_end
from tests.command import environment, served
from tests.ports import free_port
from tests.random_models import bert, qwen3_reranker

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def ask_again(page: "Page") -> None:
    """Has the panel ask the server now, as it does when its tab is seen again."""
    with page.expect_response("**/ListModels"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def test_the_panels_refusal_goes_away_once_it_is_answered(
    site: Site, page: "Page", troubles: Troubles
) -> None:
    troubles.expect("status of 401")
    refusal = {"code": "unauthenticated", "message": "a token is needed"}
    page.route("**/ListModels", lambda route: route.fulfill(status=401, json=refusal))
    open_playground(page, site.url)
    assert error_at(page, "token") == "a token is needed"
    page.unroute("**/ListModels")
    ask_again(page)
    page.locator("#models li").first.wait_for()
    assert page.locator("#token-error").inner_text() == ""


def test_a_token_that_is_being_typed_is_not_told_of_the_one_before(
    guarded_site: Site, page: "Page", troubles: Troubles
) -> None:
    troubles.expect("status of 401")
    open_playground(page, guarded_site.url)
    assert error_at(page, "token")
    page.get_by_label("Access token").press_sequentially(TOKEN[:5])
    ask_again(page)
    assert page.locator("#token-error").inner_text() == ""


def test_a_token_for_reranking_alone_ranks_and_the_panel_says_what_it_lacks(
    page: "Page", troubles: Troubles, tmp_path: "Path"
) -> None:
    troubles.expect("status of 40[13]")
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[ranker]\ntoken = "{TOKEN}"\nrights = ["rerank"]\n', "utf-8")
    tiny = bert(tmp_path / "tiny")
    arguments = ("--model", f"tiny={tiny}", *UNMEASURED, "--token-file", str(callers))
    with served(*arguments, "--rest-port", "0") as server:
        open_playground(page, server.url.rstrip("/"))
        type_in(page, QUERY, *DOCUMENTS)
        page.get_by_label("Access token").fill(TOKEN)
        rerank(page)
        assert len(rows(page)) == 2
        page.locator("#server-error").get_by_text("right").wait_for()
        assert page.locator("#form .error:not(:empty)").count() == 0
        leave(page)


def test_a_token_that_cannot_be_sent_leaves_the_results_that_stand(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *(f"{number} {'panda ' * 120}" for number in range(60)))
    page.get_by_role("button", name="Rerank").click()
    page.wait_for_selector("#rows-a > li")
    page.get_by_label("Access token").fill("gehe\u00efm")
    page.get_by_role("button", name="Rerank").click()
    assert "visible ASCII" in error_at(page, "token")
    wait_for_end(page)
    assert len(rows(page)) == 60
    assert page.locator("#progress-a").is_hidden()


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
        leave(page)


@contextlib.contextmanager
def rest_before_nothing() -> "Iterator[str]":
    """Runs the shim in front of a server that is away; yields its URL."""
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", "127.0.0.1:1", "--rest-port", "0"]
    command += ["--metrics-port", "off"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in iter(process.stderr.readline, "") if "http://" in line)
            found = re.search(r"http://\S+:\d+", line)
            assert found is not None
            yield found[0]
        finally:
            process.kill()


def test_a_shim_whose_server_is_away_says_when_to_try_again(page: "Page", troubles: Troubles) -> None:
    troubles.expect("status of 503")
    with rest_before_nothing() as url:
        open_playground(page, url)
        type_in(page, QUERY, *DOCUMENTS)
        rerank(page)
        assert error_at(page, "call").endswith("Try again in 1 sec.")
        leave(page)


def test_a_call_carries_the_cookie_of_a_proxy_with_a_login(site: Site, page: "Page") -> None:
    page.context.add_cookies([{"name": "login", "value": "of-the-proxy", "url": site.url}])
    open_playground(page, site.url)
    with page.expect_request("**/StreamRerank") as sent:
        rerank(page)
    assert sent.value.all_headers()["cookie"] == "login=of-the-proxy"


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
