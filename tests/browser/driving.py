"""Drives the playground's page as a user does, and reads what it then shows."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

# A row's texts are read as they stand; the score also in full, before it was rounded.
_ROWS = """list => [...list.children].map(row => ({
  index: Number(row.dataset.index),
  rank: row.querySelector(".rank").textContent,
  move: row.querySelector(".move").textContent,
  score: Number(row.querySelector(".score").dataset.score),
  text: row.querySelector(".passage").textContent,
  mark: row.querySelector("mark")?.textContent ?? null,
  facts: [...row.querySelectorAll(".fact")].map(fact => fact.textContent),
  below: row.classList.contains("below"),
}))"""
_DROP = """(target, files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  for (const type of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


def open_playground(page: Page, url: str) -> None:
    """Opens the page of a server, and waits until it has heard of the models or of an error."""
    page.goto(f"{url}/playground")
    page.wait_for_selector("#server-state:not([data-state=asking_state])")


def leave(page: Page) -> None:
    """Leaves the page before its server ends: its panel would still ask."""
    page.goto("about:blank")


def type_in(page: Page, query: str, *documents: str) -> None:
    """Types a query and documents, one a line."""
    page.get_by_label("Query", exact=True).fill(query)
    page.locator("#documents").fill("\n".join(documents))


def rerank(page: Page) -> None:
    """Presses Rerank, and waits for the end of the run."""
    page.get_by_role("button", name="Rerank").click()
    wait_for_end(page)


def wait_for_end(page: Page) -> None:
    """Waits until no call of the page is in progress, and what came of it is drawn."""
    page.wait_for_selector("#stop", state="hidden", timeout=60_000)
    page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def rows(page: Page, slot: str = "a") -> list[dict[str, Any]]:
    """Reads the rows of a column, best first."""
    found: list[dict[str, Any]] = page.locator(f"#rows-{slot}").evaluate(_ROWS)
    return found


def drop(page: Page, *files: tuple[str, str | bytes]) -> None:
    """Drops files, each a name and what is in it, onto the documents' field."""
    encoded = [
        (name, base64.b64encode(content.encode() if isinstance(content, str) else content).decode())
        for name, content in files
    ]
    page.locator("#drop").evaluate(_DROP, encoded)


def ask(url: str, method: str, **message: Any) -> Any:
    """Calls a method of the service over Connect, apart from any page."""
    request = urllib.request.Request(
        f"{url}/rerank.v1.RerankService/{method}",
        json.dumps(message).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def asked(url: str, query: str, *documents: str, **fields: Any) -> list[tuple[int, float]]:
    """Reranks apart from any page; gives each result's index and score, best first."""
    message = {"query": query, "documents": [{"text": text} for text in documents], **fields}
    results = ask(url, "Rerank", **message)["results"]
    return [(each.get("index", 0), each.get("relevanceScore", 0.0)) for each in results]


def ranking(page: Page, slot: str = "a") -> list[tuple[int, float]]:
    """Gives each row's index and score, as `asked` does."""
    return [(row["index"], row["score"]) for row in rows(page, slot)]


def assert_same(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    """Compares two rankings: the order, and the scores up to what batches of other sizes change."""
    assert [index for index, _ in found] == [index for index, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
