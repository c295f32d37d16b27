"""Files are dropped or chosen; the fault of one is told beside the documents, and what was typed stays."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Site
from tests.browser.driving import drop, open_playground, rerank, rows, type_in

if TYPE_CHECKING:
    from playwright.sync_api import Page

FORGOT = "Forgot password? Choose a new one."
CLOSED = "The office is closed."
JSONL = "".join(
    json.dumps(each, ensure_ascii=False) + "\r\n"
    for each in ({"_id": "a", "text": CLOSED, "title": "x"}, {"_id": "ü", "text": FORGOT, "title": "y"})
)
CSV = f'id,title,text\r\n1,"Hours, ""new""","{CLOSED}\nAll day."\r\n2,Password,{FORGOT}\r\n'


@pytest.mark.parametrize(
    ("name", "content", "texts", "ids"),
    [
        (
            "numbers.jsonl",
            f'{{"id": 7, "text": "{CLOSED}"}}\n{{"id": 0, "text": "{FORGOT}"}}',
            [FORGOT, CLOSED],
            ["0", "7"],
        ),
        (
            "long.jsonl",
            f'{{"text": "{FORGOT}", "_id": 12345678901234567890}}',
            [FORGOT],
            ["12345678901234567890"],
        ),
        ("untitled.csv", f"x,{CLOSED}\ny,{FORGOT}\n", [FORGOT, CLOSED], []),
        ("a.txt", f"{CLOSED}\r\n\r\n{FORGOT}\n", [FORGOT, CLOSED], []),
        ("a.TXT", f"\ufeff{CLOSED}\n{FORGOT}", [FORGOT, CLOSED], []),
        ("a.jsonl", JSONL, [FORGOT, CLOSED], ["ü", "a"]),
        ("strings.jsonl", f'"{CLOSED}"\n"{FORGOT}"\n', [FORGOT, CLOSED], []),
        ("a.csv", CSV, [FORGOT, f"{CLOSED}\nAll day."], ["2", "1"]),
        ("half.jsonl", f'{json.dumps(FORGOT)}\n"half \\ud83d"\n', [FORGOT, "half \ufffd"], []),
        ("semicolons.csv", f"id;text\n1;{CLOSED}\n2;{FORGOT}", [FORGOT, CLOSED], ["2", "1"]),
        ("one-column.csv", f"{CLOSED}\n{FORGOT}\n", [FORGOT, CLOSED], []),
        (
            "gb.csv",
            "编号,正文\n1,办公室不营业。\n2,forgot password\n",
            ["forgot password", "办公室不营业。"],
            [],
        ),
    ],
)
def test_a_file_of_each_kind_is_ranked(
    site: Site, page: "Page", name: str, content: str, texts: list[str], ids: list[str]
) -> None:
    open_playground(page, site.url)
    drop(page, (name, content))
    page.locator("#file-name").get_by_text(name).wait_for()
    rerank(page)
    found = rows(page)
    assert [row["text"] for row in found] == texts
    assert [row["facts"][-1] for row in found][: len(ids)] == ids


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", "%PDF", "a.pdf: expected a .txt, .jsonl or .csv file"),
        ("none", "text", "none: expected a .txt, .jsonl or .csv file"),
        ("empty.txt", " \n", "empty.txt: holds no text"),
        ("latin.txt", "für".encode("latin-1"), "latin.txt: not UTF-8; save it as UTF-8"),
        ("binary.txt", b"PK\x03\x04\x00\x00", "line 1: a NUL character"),
        ("bad.jsonl", "{\n", "holds no document; the first: line 1: not JSON; expected an object"),
        ("list.jsonl", "[1]", "the first: line 1: expected an object with a text"),
        ("numbers.jsonl", '{"text": 5}', "the first: line 1: no text in"),
        ("object.jsonl", "{}", 'the first: line 1: no text in it; expected one, as in {"text": "…"}'),
        ("open.csv", 'text\n"never closed', "the first: line 2: a quote is never closed; it is left out"),
        (
            "title.csv",
            "id,text\n",
            "title.csv: holds no document; expected rows with a text, below the titles",
        ),
        ("<img src=x onerror=alert(1)>.exe", "x", "<img src=x onerror=alert(1)>.exe: expected"),
    ],
)
def test_a_bad_file_is_told_and_what_was_typed_stays(
    site: Site, page: "Page", name: str, content: str | bytes, said: str
) -> None:
    open_playground(page, site.url)
    type_in(page, "a query", CLOSED)
    drop(page, (name, content))
    page.locator("#documents-error").get_by_text(said).wait_for()
    assert page.locator("#documents").input_value() == CLOSED
    assert page.locator("#documents").get_attribute("aria-invalid") == "true"


def test_several_files_at_once_are_told(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    drop(page, ("a.txt", "a"), ("b.txt", "b"))
    page.locator("#documents-error").get_by_text("One file at a time").wait_for()


def test_lines_that_cannot_be_used_are_left_out_and_counted(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    drop(page, ("a.jsonl", f"{JSONL}{{broken\n[]\n{{}}\n"))
    page.locator("#file-left-out").get_by_text("3 left out; the first: line 3: not JSON").wait_for()
    rerank(page)
    assert len(rows(page)) == 2
    drop(page, ("a.csv", f"{CSV}3,too,many,cells\n4,few\n"))
    page.locator("#file-left-out").get_by_text(
        "2 left out; the first: line 5: 4 cells, expected 3"
    ).wait_for()
    drop(page, ("a.csv", f'{CSV}3,"open,never\n4,b,closed\n5,c,d\n'))
    page.locator("#file-left-out").get_by_text(
        "3 left out; the first: line 5: a quote is never closed; it and the 2 lines after it are left out"
    ).wait_for()


def test_another_column_can_hold_the_text(site: Site, page: "Page") -> None:
    open_playground(page, site.url)
    drop(page, ("a.csv", CSV))
    page.get_by_label("Text is in").select_option("title")
    rerank(page)
    assert {row["text"] for row in rows(page)} == {'Hours, "new"', "Password"}


def test_a_file_is_chosen_by_the_field_and_taken_away_again(site: Site, page: "Page", tmp_path: Path) -> None:
    (tmp_path / "chosen.txt").write_text(f"{CLOSED}\n\n{FORGOT}\nand more", "utf-8")
    open_playground(page, site.url)
    type_in(page, "password", "typed")
    page.get_by_label("Choose a file").set_input_files(tmp_path / "chosen.txt")
    page.get_by_text("3 documents").wait_for()
    # A browser tells of no change where the same name is chosen again; the field forgets it.
    assert page.get_by_label("Choose a file").input_value() == ""
    page.get_by_text("Blank line between").click()
    page.get_by_text("2 documents").wait_for()
    page.get_by_role("button", name="Take it away").click()
    assert page.locator("#documents").input_value() == "typed"
    page.get_by_text("1 document ·").wait_for()
