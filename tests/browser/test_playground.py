"""The playground ranks as the service does, and shows what is known of each result."""

import http.client
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import UNMEASURED, Site
from tests.browser.driving import (
    ask,
    asked,
    assert_same,
    drop,
    leave,
    open_playground,
    ranking,
    rerank,
    rows,
    type_in,
    wait_for_end,
)
from tests.browser.proxy import Proxy, proxy_of
from tests.command import served

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

CALIBRATION = Path(__file__).parents[2] / "clients/conformance/contract/calibration.json"
QUERY = "How do I reset my password?"
DOCUMENTS = ("The office is closed.", "Forgot password? Choose a new one.", "Invoices are sent monthly.")
# The answer lies in a later window; each 😀 is one code point and two units of UTF-16.
FILLER = "Trams run along the harbour every ten minutes. " * 40
LONG = f"😀😀😀 {FILLER} To reset your password, choose Forgot password. {FILLER}"


def test_what_is_typed_is_ranked_as_the_service_ranks_it(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    rerank(page)
    assert_same(ranking(page), asked(site.url, QUERY, *DOCUMENTS))
    first, *others = rows(page)
    assert (first["rank"], first["text"]) == ("1", DOCUMENTS[1])
    assert first["move"] == "▲1up 1 from the input"
    assert [each["move"] for each in others] == ["▼1down 1 from the input", "=where it was in the input"]
    assert "input 2" in first["facts"]
    assert any(fact.startswith("logit 0.") for fact in first["facts"])


def test_a_first_visit_has_an_example_ready(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    rerank(page)
    assert len(rows(page)) == 10
    assert page.locator("#about-a").inner_text().startswith("10 documents in ")


@pytest.mark.parametrize("name", ["Help desk", "Long articles", "Four languages", "客服问答", "长文"])
def test_each_example_can_be_ranked(site: Site, page: "Page", name: str) -> None:
    open_playground(page, site.url)
    page.get_by_role("button", name=name).click()
    rerank(page)
    assert len(rows(page)) >= 3


def test_an_example_gives_back_what_was_typed_before(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    page.get_by_role("button", name="Four languages").click()
    page.get_by_role("button", name="Bring back my own text").click()
    assert page.locator("#query").input_value() == QUERY
    assert page.locator("#documents").input_value() == "\n".join(DOCUMENTS)


def test_an_example_gives_back_the_file_that_was_dropped_before(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    drop(page, ("mine.csv", "text,title\nfirst,one\nsecond,two\n"))
    page.get_by_label("Text is in").select_option("title")
    page.get_by_role("button", name="Four languages").click()
    assert page.locator("#file").is_hidden()
    page.get_by_role("button", name="Bring back my own text").click()
    assert page.locator("#file-name").inner_text() == "mine.csv"
    assert page.locator("#preview").inner_text().split() == ["one", "two"]


def test_two_models_stand_side_by_side_with_a_line_for_each_document(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    page.get_by_label("Compare with").select_option("tiny")
    rerank(page)
    left, right = ranking(page), ranking(page, "b")
    assert_same(left, asked(site.url, QUERY, *DOCUMENTS, model="embedded"))
    assert_same(right, asked(site.url, QUERY, *DOCUMENTS, model="tiny"))
    paths = page.locator("#lines path").evaluate_all(
        "paths => paths.map(path => [path.dataset.index, path.getAttribute('d')])"
    )
    drawn = {
        index: (float(d.split()[1].split("C")[0]) - 0.5, float(d.split()[-1]) - 0.5) for index, d in paths
    }
    places = [{index: rank for rank, (index, _) in enumerate(each)} for each in (left, right)]
    assert drawn == {str(index): (places[0][index], places[1][index]) for index in range(3)}
    assert "3 in both" in page.locator("#agreement").inner_text()


def test_a_line_meets_the_middle_of_its_rows(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    page.get_by_label("Compare with").select_option("tiny")
    rerank(page)
    for column in ("a", "b"):
        boxes = [row.bounding_box() for row in page.locator(f"#rows-{column} > li").all()]
        lines = page.locator("#lines").bounding_box()
        assert lines is not None
        for rank, box in enumerate(boxes):
            assert box is not None
            middle = lines["y"] + lines["height"] * (rank + 0.5) / len(boxes)
            assert box["y"] + box["height"] / 2 == pytest.approx(middle, abs=1.5)


def test_results_appear_as_they_are_scored(site: Site, page: "Page") -> None:
    may_go_on = threading.Event()

    class Hesitating(Proxy):
        """Holds a stream after its first message, until the page has been looked at."""

        def write_body(self, answer: http.client.HTTPResponse) -> None:
            if self.path.endswith("/StreamRerank"):
                head = answer.read(5)
                self.wfile.write(head + answer.read(int.from_bytes(head[1:], "big")))
                assert may_go_on.wait(60)
            super().write_body(answer)

    with proxy_of(site, Hesitating) as url:
        open_playground(page, url)
        type_in(page, QUERY, *(f"{number} {'panda ' * 120}" for number in range(60)))
        try:
            page.get_by_role("button", name="Rerank").click()
            page.wait_for_selector("#rows-a > li")
            assert page.get_by_role("button", name="Stop").is_visible()
            assert 0 < page.locator("#rows-a > li").count() < 60
        finally:
            may_go_on.set()
        wait_for_end(page)
        assert page.locator("#rows-a > li").count() == 60
        scores = [score for _, score in ranking(page)]
        assert scores == sorted(scores, reverse=True)
        leave(page)


def test_top_n_keeps_the_best(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    page.get_by_label("Top n").fill("2")
    rerank(page)
    assert_same(ranking(page), asked(site.url, QUERY, *DOCUMENTS)[:2])


def test_the_best_chunk_is_marked_behind_emoji(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, LONG.strip(), DOCUMENTS[0])
    page.get_by_label("Max chunks").fill("16")
    rerank(page)
    documents = [{"text": LONG.strip()}]
    chunks = {"query": QUERY, "documents": documents, "maxChunksPerDocument": 16}
    [result] = ask(site.url, "Rerank", **chunks)["results"]
    span = result["bestChunk"]
    expected = LONG.strip()[span.get("start", 0) : span["end"]]  # Python counts code points too
    assert "reset your password" in expected
    page.get_by_role("button", name="Read document 1").click()
    assert page.locator("#reader mark").inner_text() == expected
    assert page.locator("#reader-text").inner_text() == LONG.strip()
    page.keyboard.press("Escape")
    [row] = [row for row in rows(page) if row["index"] == 0]
    assert expected.startswith(row["mark"].rstrip("…"))
    assert "best chunk marked" in row["facts"]


def test_the_threshold_greys_out_what_lies_below(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    rerank(page)
    scores = [score for _, score in ranking(page)]
    page.get_by_label("Threshold").fill("0.6")
    assert [row["below"] for row in rows(page)] == [score < 0.6 for score in scores]
    above = sum(score >= 0.6 for score in scores)
    assert page.locator("#above").inner_text() == f"{above} of 10 at or above it"
    page.get_by_label("Threshold").press("Home")
    assert not any(row["below"] for row in rows(page))


def test_a_calibrated_score_is_shown_where_a_result_carries_one(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, DOCUMENTS[0])

    def answer(route: "Route") -> None:
        result = {"relevanceScore": 0.75, "logit": 1.1, "tokens": 4, "calibratedScore": 0.3125}
        route.fulfill(json={"results": [result], "model": "embedded"})

    def refuse(route: "Route") -> None:
        end = b'{"error":{"code":"unimplemented","message":"-"}}'
        body = bytes([2]) + len(end).to_bytes(4, "big") + end
        route.fulfill(body=body, content_type="application/connect+json")

    page.route("**/StreamRerank", refuse)  # as a shim without streams answers
    page.route("**/Rerank", answer)
    rerank(page)
    assert "probability 0.313" in rows(page)[0]["facts"]


def test_a_servers_calibration_shows_its_probability(page: "Page") -> None:
    arguments = ("--model", "embedded", "--calibration", f"embedded={CALIBRATION}", *UNMEASURED)
    with served(*arguments, "--rest-port", "0") as server:
        open_playground(page, server.url.rstrip("/"))
        type_in(page, QUERY, DOCUMENTS[1])
        rerank(page)
        message = {"query": QUERY, "documents": [{"text": DOCUMENTS[1]}]}
        [result] = ask(server.url.rstrip("/"), "Rerank", **message)["results"]
        assert 0 < result["calibratedScore"] < 1
        assert f"probability {result['calibratedScore']:.3f}" in rows(page)[0]["facts"]
        leave(page)


def test_what_was_cut_off_says_how_all_of_it_is_scored(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, DOCUMENTS[0])
    rerank(page)
    assert page.locator("#cut").is_hidden()
    type_in(page, QUERY, LONG.strip())
    rerank(page)
    assert "truncated" in rows(page)[0]["facts"]
    assert page.locator("#cut").inner_text().endswith("Set “Max chunks” above 1 to score all of it.")
    page.get_by_label("Max chunks").fill("16")
    rerank(page)
    assert page.locator("#cut").is_hidden()


def test_a_key_that_is_held_down_is_one_press(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    calls: list[str] = []
    page.on("request", lambda sent: calls.append(sent.url) if sent.url.endswith("Rerank") else None)
    for field, keys in (("#query", ["Control", "Enter"]), ("#top_n", ["Enter"]), ("#rerank", ["Enter"])):
        page.locator(field).focus()
        for key in keys:
            page.keyboard.down(key)
        for _ in range(3):
            page.keyboard.down("Enter")  # a key that is down already is repeated
        for key in keys:
            page.keyboard.up(key)
        wait_for_end(page)
    assert len(calls) == 3


def test_the_panel_shows_queue_rate_and_the_state_of_each_model(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    rerank(page)
    panel = page.get_by_role("region", name="Server")
    panel.get_by_text("of 524,288 tokens").wait_for()
    panel.get_by_text("tokens/s").wait_for()
    models = panel.get_by_role("listitem").all_inner_texts()
    assert [each.split("\n")[0] for each in models] == ["embedded", "tiny"]
    assert all("ready" in each for each in models)
    labels = page.get_by_label("Model", exact=True).first.locator("option").all_inner_texts()
    assert labels == ["embedded · ready · default", "tiny · ready"]


def test_a_hidden_page_asks_nothing_and_a_seen_one_asks_again(site: Site, page: "Page") -> None:
    page.clock.install()
    open_playground(page, site.url)
    hide = "hidden => {Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += "document.dispatchEvent(new Event('visibilitychange'))}"
    page.evaluate(hide, True)
    asked_for: list[str] = []
    page.on("request", lambda sent: asked_for.append(sent.url.rpartition("/")[2]))
    page.clock.run_for(120_000)
    # What was asked as the page was hidden ends with its second question; each begins with ListModels.
    assert asked_for in ([], ["Health"])
    with page.expect_response("**/Health"):
        page.evaluate(hide, False)
    with page.expect_response("**/Health"):
        page.clock.run_for(6_000)


def test_a_second_press_cancels_the_first_call(site: Site, page: "Page", troubles) -> None:
    open_playground(page, site.url)
    held: list[Route] = []
    page.route("**/*Rerank", lambda route: held.append(route) if not held else route.continue_())
    type_in(page, "first", *DOCUMENTS)
    with page.expect_event("requestfailed") as failed:
        page.get_by_role("button", name="Rerank").click()
        page.wait_for_selector("#stop:visible")
        type_in(page, QUERY, *DOCUMENTS)
        page.get_by_role("button", name="Rerank").click()
    troubles.expect(r"failed: .*Rerank: net::ERR_ABORTED")
    sent = failed.value.post_data_buffer
    assert sent is not None
    assert b'"query":"first"' in sent
    wait_for_end(page)
    assert_same(ranking(page), asked(site.url, QUERY, *DOCUMENTS))


def test_stop_ends_a_call(site: Site, page: "Page", troubles) -> None:
    open_playground(page, site.url)
    page.route("**/*Rerank", lambda route: None)
    page.get_by_role("button", name="Rerank").click()
    troubles.expect(r"failed: .*Rerank: net::ERR_ABORTED")
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped", exact=True).first.wait_for()


def test_a_thousand_long_documents_are_ranked_and_scrolled(
    site: Site, new_page: Callable[..., "Page"]
) -> None:
    page = new_page()
    open_playground(page, site.url)
    page.get_by_label("Model", exact=True).first.select_option("tiny")
    page.locator("#documents").evaluate(
        "(area, text) => {area.value = text; area.dispatchEvent(new Event('input', {bubbles: true}))}",
        "\n".join(f"{number} {'panda ' * 333}" for number in range(1000)),
    )
    rerank(page)
    assert page.locator("#rows-a > li").count() == 1000
    scroll = """async () => {
        scrollTo(0, 0);
        const begun = performance.now();
        for (let step = 0; step < 20; step++) {
            scrollBy(0, 3000);
            await new Promise(requestAnimationFrame);
        }
        return (performance.now() - begun) / 20;
    }"""
    # ms each, also where the processors have other work, which may take all of a second now and then.
    assert any(page.evaluate(scroll) < 500 for _ in range(3))
