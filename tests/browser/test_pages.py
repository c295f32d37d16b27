"""The pages open in a real browser, which finds nothing to say."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Site, Troubles

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.mark.parametrize(
    ("path", "base"),
    [("/playground", "/"), ("/playground/", "/"), ("//playground//", "//"), ("/tei/playground", "/tei/")],
)
def test_the_playground_opens(site: Site, page: "Page", path: str, base: str) -> None:
    page.goto(site.url + path)
    page.wait_for_selector(f"html[data-server='{site.url}{base}']")
    assert page.get_by_role("heading", name="Playground").is_visible()
    assert "sans-serif" in page.evaluate("getComputedStyle(document.documentElement).fontFamily")


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
