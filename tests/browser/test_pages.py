"""The pages open in a real browser, which finds nothing to say."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Site, Troubles
from tests.browser.proxy import proxy_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The server that the page's script finds, by its own place.
SERVER = """new URL("../", document.querySelector("script[src$='playground.js']").src).href"""


@pytest.mark.parametrize(
    ("path", "base"),
    [("/playground", "/"), ("/playground/", "/"), ("//playground//", "//"), ("/tei/playground", "/tei/")],
)
def test_the_playground_opens(site: Site, page: "Page", path: str, base: str) -> None:
    page.goto(site.url + path)
    page.locator("h1").first.wait_for()
    assert page.evaluate(SERVER) == site.url + base
    # The script and the style are there, and the policy lets them be.
    loaded = page.evaluate(
        "performance.getEntriesByType('resource').map(each => [each.name, each.responseStatus])"
    )
    folder = f"{site.url}{base}playground/"
    assert [folder + "playground.css", 200] in loaded
    assert [folder + "playground.js", 200] in loaded
    assert page.evaluate("document.styleSheets[0].cssRules.length") > 0


def test_swaggers_page_opens(site: Site, page: "Page") -> None:
    page.goto(f"{site.url}/docs")
    page.get_by_text("/v1/rerank", exact=True).first.wait_for()


def test_the_policy_lets_no_script_of_a_document_run(
    site: Site, new_page: Callable[..., "Page"], troubles: Troubles
) -> None:
    page = new_page()
    page.goto(f"{site.url}/playground")
    troubles.expect("Content Security Policy")
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken'";
        document.head.append(script);
    }""")
    assert page.title() != "taken"


@pytest.fixture
def proxied(site: Site) -> Iterator[str]:
    """The site's URL behind a proxy."""
    with proxy_of(site) as url:
        yield url


# Streams from a server; returns the status, and the flags of each envelope.
STREAM = """async (server) => {
    const message = new TextEncoder().encode(JSON.stringify({query: "q", documents: [{text: "a"}]}));
    const body = new Uint8Array(5 + message.length);
    new DataView(body.buffer).setUint32(1, message.length);
    body.set(message, 5);
    const headers = {"content-type": "application/connect+json"}, method = "POST";
    const reply = await fetch(`${server}rerank.v1.RerankService/StreamRerank`, {method, headers, body});
    const stream = new Uint8Array(await reply.arrayBuffer()), flags = [];
    for (let at = 0; at < stream.length; at += 5 + new DataView(stream.buffer).getUint32(at + 1))
        flags.push(stream[at]);
    return [reply.status, flags];
}"""


def test_a_page_behind_a_proxys_path_calls_its_own_server(proxied: str, page: "Page") -> None:
    page.goto(f"{proxied}/playground")
    assert page.evaluate(SERVER) == f"{proxied}/"
    assert page.evaluate(STREAM, f"{proxied}/") == [200, [0, 0, 2]]
    page.goto(f"{proxied}/docs")
    page.get_by_text("/v1/rerank", exact=True).first.wait_for()


def test_a_page_of_no_origin_gets_no_scores(site: Site, page: "Page", troubles: Troubles) -> None:
    troubles.expect("blocked by CORS policy")
    troubles.expect("ERR_FAILED")
    page.goto("data:text/html,<title>elsewhere</title>")
    answered = page.evaluate(
        f"server => ({STREAM})(server).then(String, error => error.name)", f"{site.url}/"
    )
    assert answered == "TypeError"
