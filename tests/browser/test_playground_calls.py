"""The copied calls run as they are, in a shell and in Python, and give the page's scores."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import TOKEN, Site, Troubles
from tests.browser.driving import assert_same, drop, open_playground, ranking, rerank, type_in
from tests.command import environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
BUF = ROOT / "tools/buf/node_modules/.bin"
QUERY = '-d @who\'s "$HOME" `date` \\ 密码 😀 {{x}} %s'
DOCUMENTS = (
    "@file",
    "--help",
    "it's $(date) and `date`, $HOME, ${PATH} ! \\n \\",
    "JSON",
    "<<'JSON' \"quoted\" \\\"twice\\\" '''three'''",
    "“重置密码” 😀‍🔥 \u202e turned \u2066 \u2028 \x7f \t tab",
    "Forgot password?",
)


def copied(page: "Page", tool: str, target: str) -> str:
    """Chooses a tool, and reads what the button copies."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_text(tool, exact=True).click()
    if tool != "curl":
        page.get_by_label("gRPC at").fill(target)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def run(text: str, *command: str) -> str:
    """Runs a text by a shell or by Python, in this repository."""
    path = f"{BUF}:{os.environ['PATH']}"
    own = environment(PATH=path, PYTHONPATH=str(ROOT), RERANK_TOKEN=TOKEN, NO_PROXY="127.0.0.1")
    ended = subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", env=own, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def from_json(output: str) -> list[tuple[int, float]]:
    results: list[dict[str, Any]] = json.loads(output)["results"]
    return [(each.get("index", 0), each.get("relevanceScore", 0.0)) for each in results]


def from_lines(output: str) -> list[tuple[int, float]]:
    return [(int(index), float(score)) for score, index in map(str.split, output.splitlines())]


def need_buf() -> None:
    if not (BUF / "buf").exists():
        lacking = "buf is missing: `make lint` installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)


def test_each_call_gives_the_pages_scores(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    page.get_by_label("Top n").fill("6")
    page.get_by_label("Max chunks").fill("4")
    rerank(page)
    found = ranking(page)
    assert len(found) == 6
    assert_same(from_json(run(copied(page, "curl", site.target), "bash")), found)
    assert_same(from_lines(run(copied(page, "Python", site.target), sys.executable, "-")), found)


def test_bufs_call_gives_the_pages_scores(site: Site, page: "Page") -> None:
    need_buf()
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    rerank(page)
    assert_same(from_json(run(copied(page, "buf curl", site.target), "bash")), ranking(page))


def test_a_call_of_documents_with_ids_and_line_breaks_runs(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    documents = [{"id": "a'b\"c", "text": "first\nJSON\nlast"}, {"text": 'EOF\n\\"\r\n"""'}]
    drop(page, ("a.jsonl", "\n".join(map(json.dumps, documents))))
    page.get_by_text("2 documents").wait_for()
    rerank(page)
    output = run(copied(page, "curl", site.target), "bash")
    assert_same(from_json(output), ranking(page))
    assert {each["id"] for each in json.loads(output)["results"]} == {"a'b\"c", ""}
    assert_same(from_lines(run(copied(page, "Python", site.target), sys.executable, "-")), ranking(page))


def test_the_token_is_not_in_the_calls_and_they_run_with_it(
    guarded_site: Site, page: "Page", troubles
) -> None:
    need_buf()
    troubles.expect("status of 401")
    open_playground(page, guarded_site.url)
    page.get_by_label("Access token").fill(TOKEN)
    page.get_by_label("Access token").blur()
    page.get_by_text("embedded · ready · default").first.wait_for(state="attached")
    rerank(page)
    tools = {"curl": ("bash",), "Python": (sys.executable, "-"), "buf curl": ("bash",)}
    for tool, command in tools.items():
        text = copied(page, tool, guarded_site.target)
        assert TOKEN not in text
        output = run(text, *command)
        assert_same(from_lines(output) if tool == "Python" else from_json(output), ranking(page))
    assert TOKEN not in copied(page, "grpcurl", guarded_site.target)


def test_grpcurls_call_has_the_same_message(site: Site, page: "Page") -> None:
    # No grpcurl can be installed by Debian's packages, pip or npm: the shell's part is checked.
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    text = copied(page, "grpcurl", "host:50051")
    words = run(f"grpcurl() {{ printf '%s\\n' \"$@\"; cat; }}\n{text}", "bash")
    arguments, _, message = words.partition("{\n")
    assert arguments.split() == ["-plaintext", "-d", "@", "host:50051", "rerank.v1.RerankService/Rerank"]
    sent = json.loads("{" + message)
    assert sent["query"] == QUERY
    assert [each["text"] for each in sent["documents"]] == list(DOCUMENTS)


def test_a_call_without_a_query_stays_whole(site: Site, page: "Page", troubles: Troubles) -> None:
    troubles.expect("ERR_FAILED")
    page.route("**/ListModels", lambda route: route.abort())  # no model is known, and none is named
    open_playground(page, site.url)
    type_in(page, "", "one")
    said = run(f"grpcurl() {{ cat; }}\n{copied(page, 'grpcurl', site.target)}", "bash")
    assert json.loads(said) == {"query": "", "documents": [{"text": "one"}]}
    assert 'query = ""\n' in copied(page, "Python", site.target)


def test_a_hostile_address_stays_one_word_of_the_shell(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    text = copied(page, "grpcurl", "host:1; touch 'x' $(id)")
    words = run(f"grpcurl() {{ printf '%s\\n' \"$@\"; }}\n{text}", "bash")
    assert "host:1; touch 'x' $(id)" in words.splitlines()


def test_unseen_characters_are_written_out(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, QUERY, *DOCUMENTS)
    for tool in ("curl", "buf curl", "grpcurl", "Python"):
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028]", copied(page, tool, site.target))


def test_copying_works_without_the_clipboards_interface(site: Site, page: "Page") -> None:
    # As on a page of another machine without TLS.
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    open_playground(page, site.url)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    page.locator("#query").fill("")
    page.locator("#query").press("ControlOrMeta+v")
    assert page.locator("#query").input_value().startswith("curl -sS ")


def test_a_long_call_is_shown_in_part_and_copied_whole(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    type_in(page, "q", *(f"document {number} {'x' * 200}" for number in range(1000)))
    text = copied(page, "curl", site.target)
    assert len(text) > 200_000
    assert len(page.locator("#code").inner_text()) < 7_000
    assert len(from_json(run(text, "bash"))) == 1000
