"""Debian's Chromium on the pages of real servers; a test fails by what a page says unasked."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.command import served
from tests.random_models import bert

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

TOKEN = "a-token-of-the-browser"
# A start does not measure which batches are fastest.
UNMEASURED = ("--max-batch-tokens", "1024")


class Site(NamedTuple):
    """A server and its shim: the URL of REST without a slash at its end, and HOST:PORT of gRPC."""

    url: str
    target: str


@pytest.fixture(scope="package")
def browser() -> Iterator["Browser"]:
    """A headless Chromium.

    Playwright keeps a loop of asyncio in this thread, and other packages' tests run loops of their own.
    """
    executable = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        lacking = "Chromium or playwright is missing: `make browser-tools` and `make test` install them"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of the embedded model and of a small random one, `tiny`, that callers need no token for."""
    tiny = bert(tmp_path_factory.mktemp("models") / "tiny")
    with served("--model", "embedded", "--model", f"tiny={tiny}", "--rest-port", "0", *UNMEASURED) as server:
        yield Site(server.url.rstrip("/"), server.target)


@pytest.fixture(scope="package")
def guarded_site() -> Iterator[Site]:
    """A server of the embedded model that TOKEN opens."""
    with served("--model", "embedded", "--rest-port", "0", *UNMEASURED, RERANK_TOKENS=TOKEN) as server:
        yield Site(server.url.rstrip("/"), server.target)


@dataclass
class Troubles:
    """What pages said on the console, threw, or failed to load, and what of it a test expects."""

    seen: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """Declares that a trouble will come, of which this regular expression finds a part."""
        self.expected.append(pattern)

    def watch(self, page: "Page") -> None:
        """Writes down the troubles of a page, and each request that leaves this machine."""
        page.on("console", lambda said: self.seen.append(f"console {said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        page.on("crash", lambda _: self.seen.append("crash"))
        page.on("requestfailed", lambda sent: self._note_failed(sent.url, str(sent.failure)))
        page.on("request", lambda sent: self._note_foreign(sent.url))

    def _note_failed(self, url: str, failure: str) -> None:
        # A page that is left ends the renewal of its panel.
        if not (failure.endswith("ERR_ABORTED") and url.endswith(("/ListModels", "/Health"))):
            self.seen.append(f"failed: {url}: {failure}")

    def _note_foreign(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.seen.append(f"foreign: {url}")

    def check(self) -> None:
        """Fails by a trouble that was not expected, and by an expected one that did not come."""
        assert [each for each in self.seen if not any(re.search(one, each) for one in self.expected)] == []
        assert [one for one in self.expected if not any(re.search(one, each) for each in self.seen)] == []


@pytest.fixture
def troubles() -> Troubles:
    """The troubles of this test's pages."""
    return Troubles()


@pytest.fixture
def new_page(browser: "Browser", troubles: Troubles) -> Iterator[Callable[..., "Page"]]:
    """Opens pages in contexts of their own, by playwright's options: a phone's size, dark, a language."""
    contexts: list[BrowserContext] = []

    def new(**options: Any) -> "Page":
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        context.on("page", troubles.watch)
        return context.new_page()

    yield new
    for context in contexts:
        context.close()
    troubles.check()


@pytest.fixture
def page(new_page: Callable[..., "Page"]) -> "Page":
    """A page in a new context."""
    return new_page()
