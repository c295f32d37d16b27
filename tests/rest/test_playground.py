"""/playground: each file of its folder under a strict policy, fresh after an upgrade, and nothing else."""

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest

import rerank_grpc
from rerank_grpc.rest.pages import playground
from rerank_grpc.rest.pages.content import MEDIA_TYPES, Content
from tests.rest.support import call, get, post

FOLDER = Path(rerank_grpc.__file__).parent / "rest/pages/playground"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())
OTHERS = [name for name in FILES if name != "index.html"]


def test_every_file_of_the_folder_is_of_a_known_kind() -> None:
    assert {Path(name).suffix for name in FILES} <= MEDIA_TYPES.keys()
    assert {"index.html", "playground.css", "playground.js"} <= set(FILES)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_comes_as_it_is(port: int, name: str) -> None:
    reply = get(port, f"/playground/{name}")
    assert (reply.status, reply.raw) == (200, (FOLDER / name).read_bytes())
    media_type = MEDIA_TYPES[Path(name).suffix]
    text = "; charset=utf-8" if media_type.startswith("text/") else ""
    assert reply.headers["content-type"] == media_type + text
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/playground", "/playground/playground.js"])
def test_a_page_is_under_a_policy_that_lets_nothing_of_elsewhere_in(port: int, path: str) -> None:
    headers = get(port, path).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/playground",
        "/playground/",
        "//playground",
        "/tei/playground",
        "/tei//playground//",
        "/playground?a/",
    ],
)
def test_the_pages_links_lead_to_its_files_also_behind_a_proxy(port: int, path: str) -> None:
    page = get(port, path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.raw.decode()
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', text)
    assert len(links) >= 2
    assert "{up}" not in text
    assert "<style" not in text
    assert not re.search(r"<script(?![^>]* src=)| style=| on[a-z]+=", text)
    for base in ("", "/behind/a/proxy"):
        for link in links:
            there = urljoin(f"http://host{base}{path}", link)
            assert there.startswith(f"http://host{base}/")
            if "/playground/" in there:
                assert get(port, there.removeprefix(f"http://host{base}")).status == 200


@pytest.mark.parametrize(
    "path", ["/playground", "/playground/playground.js", "/docs", "/docs/swagger-ui.css"]
)
def test_a_copy_is_asked_about_and_not_sent_again_while_it_is_true(port: int, path: str) -> None:
    first = get(port, path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = get(port, path, if_none_match=known)
        assert (again.status, again.raw, again.headers["etag"]) == (304, b"", tag)
    assert get(port, path, if_none_match='"other"').raw == first.raw
    assert Content(b"new", "text/css").tag != Content(b"old", "text/css").tag


def test_head_tells_the_length_alone(port: int) -> None:
    whole = get(port, "/playground/playground.js")
    asked = call(port, "HEAD", "/playground/playground.js")
    assert (asked.status, asked.raw) == (200, b"")
    assert asked.headers["content-length"] == whole.headers["content-length"] == str(len(whole.raw))


@pytest.mark.parametrize(
    "path",
    [
        "/playground/none.js",
        "/playground/index.html",
        "/playground/../docs.html",
        "/playground/%2e%2e/docs.html",
        "/playground/..%2fdocs.html",
        "/playground/....//docs.html",
        "/playground/%2e%2e%2f%2e%2e%2fopenapi.json",
        "/playground/playground.js%00.txt",
        "/playground//etc/passwd",
        "/playground/C:%5Cwindows",
        "/playground/playground.JS",
        "/playground/.",
    ],
)
def test_what_is_not_there_is_404(port: int, path: str) -> None:
    reply = get(port, path)
    assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")


def test_a_page_is_only_read(port: int) -> None:
    reply = post(port, "/playground", {})
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


def test_files_of_folders_within_are_served_and_unknown_kinds_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = tmp_path / "playground"
    (pages / "examples").mkdir(parents=True)
    for name in ("index.html", "examples/a.jsonl", "notes.md", "page.js~", "__pycache__.pyc"):
        (pages / name).write_text("x", "utf-8")
    monkeypatch.setattr(playground, "files", lambda _: tmp_path)
    assert {route.path for route in playground.routes()} == {"/playground", "/playground/examples/a.jsonl"}
