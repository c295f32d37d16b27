"""The page is for everybody: by keyboard, by ear, on a phone, in the dark, in Chinese; no text breaks it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import Site
from tests.browser.driving import open_playground, ranking, rerank, rows, wait_for_end

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
AXE = ROOT / "tools/browser/node_modules/axe-core/axe.min.js"
PAGE = ROOT / "rerank_grpc/rest/pages/playground"
PHONE = {"viewport": {"width": 390, "height": 844}}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": PHONE,
    "Chinese": {"locale": "zh-CN"},
}
UNSEEN = "\u2060"
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\">",
    "<script>document.title='taken'</script>",
    "</textarea></p></li><h1>out</h1>",
    "\u202e right to left, never ended",
    "\u2067\u2067\u2067 isolates, never ended",
    "שלום עולם",
    "a\0b NUL",
    "x" * 5_000,
    "Z̸̢̛̲͖͓͔͎͔̗̞̙͎̗̥̙͖" * 20,
    "\ufeff\u200b\u2060 unseen",
    UNSEEN,
)


def axe_finds(page: "Page") -> list[str]:
    """Runs axe-core, and gives what it finds."""
    if not AXE.exists():
        lacking = "axe-core is missing: `make browser-tools` installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("axe.run()")
    return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]


def sideways(page: "Page") -> bool:
    found: bool = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return found


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    site: Site, new_page: Callable[..., "Page"], look: str
) -> None:
    page = new_page(**LOOKS[look])
    open_playground(page, site.url)
    assert axe_finds(page) == []
    page.get_by_role("button", name="长文").click()
    page.locator("#rerank").click()
    wait_for_end(page)
    page.locator("#threshold").fill("0.7")
    assert axe_finds(page) == []
    page.locator(".open").first.click()
    assert axe_finds(page) == []
    page.keyboard.press("Escape")
    page.locator("#other").select_option("tiny")
    page.locator("#rerank").click()
    wait_for_end(page)
    assert axe_finds(page) == []
    page.locator("#query").fill(" ")
    page.locator("#rerank").click()
    wait_for_end(page)
    assert axe_finds(page) == []
    assert not sideways(page)


def test_the_keyboard_alone_suffices(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    keys = page.keyboard
    keys.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(60):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        if reached[-1] == "query":
            break
        keys.press("Tab")
    keys.press("ControlOrMeta+a")
    keys.type("password")
    keys.press("Tab")
    keys.press("ControlOrMeta+a")
    keys.type("closed\nforgot password")
    keys.press("Control+Enter")
    page.wait_for_selector("#rows-a > li")
    wait_for_end(page)
    assert [index for index, _ in ranking(page)] == [1, 0]
    announced = page.locator("#announce")
    assert announced.get_attribute("aria-live") == "polite"
    assert announced.inner_text() == "embedded: 2 documents ranked. First: forgot password"
    for _ in range(40):
        keys.press("Tab")
        shown = page.evaluate("""() => {
            const element = document.activeElement;
            const shows = element.closest("label, .choose, .segments") ?? element;
            const label = shows.querySelector?.("label:has(:focus-visible)") ?? shows;
            const all = [element, label, ...(shows.querySelectorAll?.("label") ?? [])];
            const outlined = all.some(each => getComputedStyle(each).outlineStyle === "solid");
            return element === document.body || outlined;
        }""")
        assert shown, page.evaluate("document.activeElement.outerHTML")
        if page.evaluate("document.activeElement.className") == "open":
            break
    keys.press("Enter")
    assert page.get_by_role("dialog", name="Document 2").is_visible()
    keys.press("Escape")
    assert page.evaluate("document.activeElement.className") == "open"


def test_the_skip_link_leads_to_the_results(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"


def test_the_browsers_language_is_spoken_and_the_other_one_is_a_press_away(
    site: Site, new_page: Callable[..., "Page"]
) -> None:
    page = new_page(locale="zh-CN")
    open_playground(page, site.url)
    assert page.locator("html").get_attribute("lang") == "zh"
    page.get_by_role("button", name="重排").click()
    wait_for_end(page)
    assert "篇文档" in page.locator("#about-a").inner_text()
    page.get_by_role("button", name="English").click()
    assert page.locator("html").get_attribute("lang") == "en"
    page.get_by_role("heading", name="The same call from elsewhere").wait_for()
    wait_for_end(page)
    assert "8 documents in" in page.locator("#about-a").inner_text()
    assert any("tokens" in fact for fact in rows(page)[0]["facts"])
    assert not re.search("[一-鿿]", page.locator(".server, .code .head").first.inner_text())


def test_both_languages_have_the_same_texts_and_the_page_uses_each(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    keys = page.evaluate("""async () => {
        const { server } = document.documentElement.dataset;
        const { TEXTS } = await import(new URL("playground/texts.js", server));
        return Object.values(TEXTS).map(texts => [Object.keys(texts), Object.keys(texts.states)]);
    }""")
    assert keys[0] == keys[1]
    sources = "".join(
        path.read_text("utf-8")
        for path in PAGE.iterdir()
        if path.suffix in (".js", ".html") and path.name != "texts.js"
    )
    own = (PAGE / "texts.js").read_text("utf-8").partition("let language")[2]
    unused = [key for key in keys[0][0] if not re.search(rf'["\'{{ ]{key}["\'}}) ,]', sources + own)]
    assert unused == []


@pytest.mark.parametrize("look", ["light", "phone"])
def test_hostile_texts_are_shown_as_texts(site: Site, new_page: Callable[..., "Page"], look: str) -> None:
    page = new_page(**LOOKS[look])
    open_playground(page, site.url)
    page.evaluate(
        """texts => {
            const area = document.querySelector("#documents");
            area.value = texts.join("\\n");
            area.dispatchEvent(new Event("input", {bubbles: true}));
        }""",
        list(HOSTILE),
    )
    page.locator("#query").fill("<b>bold</b> \u202e")
    page.get_by_label("Compare with").select_option("tiny")
    rerank(page)
    assert page.title() == "Playground · rerank-grpc"
    shown = {row["index"]: row["text"] for row in rows(page)}
    for index, text in enumerate(HOSTILE):
        begin = shown[index].removesuffix("…")
        assert begin in text, index
        assert begin or text == UNSEEN, index
    assert page.locator("#rows-a img, #rows-a script, #rows-a h1").count() == 0
    assert not sideways(page)
    # A text that turns the direction of reading leaves the score beside it where it is.
    boxes = [each.bounding_box() for each in page.locator("#rows-a .score").all()]
    assert len({round(box["x"] + box["width"]) for box in boxes if box}) == 1


def test_halves_of_characters_are_replaced(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    page.evaluate("""() => {
        const area = document.querySelector("#documents");
        area.value = "half \\ud83d of a pair\\nwhole 😀";
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }""")
    rerank(page)
    assert {row["text"] for row in rows(page)} == {"half \ufffd of a pair", "whole 😀"}


def test_motion_is_only_for_those_who_have_not_asked_for_less(
    site: Site, new_page: Callable[..., "Page"]
) -> None:
    page = new_page(reduced_motion="reduce")
    open_playground(page, site.url)
    rerank(page)
    moving = page.locator("*").evaluate_all(
        "all => all.filter(each => getComputedStyle(each).transitionDuration !== '0s').length"
    )
    assert moving == 0


def test_no_text_can_become_markup_and_nothing_is_stored() -> None:
    content = (PAGE / "index.html").read_text("utf-8")
    assert re.findall(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", content) == []
    for path in PAGE.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|Storage|cookie", path.read_text("utf-8")
        )
