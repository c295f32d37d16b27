"""The access list: exact tokens and nothing near them, and those of a file as it changes."""

import logging
from pathlib import Path

import pytest

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.entries import read_entries
from rerank_grpc.access.tokens import SentToken, TokenFile, split_bearer
from rerank_grpc.files.watched import WatchedFile

TOKENS = ("first-token", "second-token")


@pytest.mark.parametrize("token", TOKENS)
def test_each_of_several_tokens_is_accepted(token: str) -> None:
    assert token in AccessList(TOKENS)
    assert token in AccessList(iter([token]))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "first-toke",
        "first-token ",
        "First-token",
        "tökén",
        "\udcff first-token",
        "\ud800",
        "first-token\0",
        "t" * 65_536,
    ],
)
def test_any_other_text_is_wrong_and_breaks_nothing(token: str) -> None:
    assert token not in AccessList(TOKENS)


def test_an_empty_list_is_false_and_accepts_nothing() -> None:
    assert not AccessList(())
    assert "" not in AccessList(())
    assert AccessList(TOKENS)


def test_no_token_and_no_plain_digest_is_kept() -> None:
    first, second = AccessList(TOKENS), AccessList(TOKENS)
    assert not any(token in repr(vars(first)) for token in TOKENS)
    # A key for each list: what one process keeps is of no use against another.
    kept = [{repr(value) for value in vars(each).values() if value} for each in (first, second)]
    assert not kept[0] & kept[1]


@pytest.mark.parametrize(
    ("authorization", "parts"),
    [
        ("Bearer token", ("", "Bearer ", "token")),
        ("bEARER  token ", ("", "bEARER ", " token ")),
        ("Bearer Bearer token", ("", "Bearer ", "Bearer token")),
        ("Basic Bearer token", ("Basic ", "Bearer ", "token")),
        ("Bearer ", ("", "Bearer ", "")),
        ("Bearer", ("Bearer", "", "")),
        ("token", ("token", "", "")),
        ("", ("", "", "")),
    ],
)
def test_an_authorization_is_parted_at_its_scheme(authorization: str, parts: tuple[str, str, str]) -> None:
    assert split_bearer(authorization) == parts


def changed(tokens: AccessList | SentToken, path: Path, content: bytes) -> None:
    """Gives a file of tokens another content, and has it looked at until that is taken or refused."""
    path.write_bytes(content)
    assert isinstance(tokens._watched, WatchedFile)
    for _ in range(2):
        tokens._watched.look()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("old\n")
    return path


def test_a_changed_file_brings_tokens_and_takes_others_but_not_those_of_variables(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = AccessList(["of-variable", "both"], TokenFile.of(path, b"old\nboth\n"))
    own, accepted = access.own, ["of-variable", "both", "old"]
    assert (len(access), all(token in access for token in accepted)) == (3, True)
    with caplog.at_level(logging.INFO):
        changed(access, path, b"new\nnewer\r\n\n")
    assert [token in access for token in ("of-variable", "both", "new", "newer", "old")] == [True] * 4 + [
        False
    ]
    assert own in access
    assert caplog.messages == ["tokens read again: 4 (2 new, 1 gone)"]
    assert vars(caplog.records[0])["event"] == "tokens_read"


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff", b"new\ncanary x\n", b"x" * (2 << 20)])
def test_a_bad_content_keeps_the_tokens_and_is_told_in_one_line(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    access = AccessList([], TokenFile.of(path, b"old\n"))
    for _ in range(3):
        changed(access, path, content)
    assert ("old" in access, len(access), "new" in access) == (True, 1, False)
    (line,) = caplog.messages
    assert line.startswith(f"{path} is not read again, and what it held before stays in force: ")
    assert "canary" not in line
    with caplog.at_level(logging.INFO):
        changed(access, path, b"new\n")
    assert ("old" in access, "new" in access) == (False, True)
    assert caplog.messages[1:] == ["tokens read again: 1 (1 new, 1 gone)", f"{path} is read again"]


def test_a_file_that_says_the_same_in_other_words_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = AccessList([], TokenFile.of(path, b"one\ntwo\n"))
    with caplog.at_level(logging.INFO):
        changed(access, path, b"\xef\xbb\xbftwo\r\n\r\n  one  ")
    assert ("one" in access, "two" in access, caplog.messages) == (True, True, [])


def test_the_first_token_of_a_file_is_the_one_that_is_sent(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = SentToken("of-variable", TokenFile.of(path, b"old\n"))
    assert (sent.value, SentToken("of-variable").value, SentToken(None).value) == ("old", "of-variable", None)
    with caplog.at_level(logging.INFO):
        changed(sent, path, b"new\nold\n")
    assert sent.value == "new"
    assert caplog.messages == ["the token for the servers was read again"]
    changed(sent, path, b"")
    assert sent.value == "new"


def test_a_process_accepts_its_own_token_and_no_other_lists() -> None:
    first, second = AccessList(TOKENS), AccessList(TOKENS)
    assert first.own in first
    assert first.own not in second
    assert len(first) == len(TOKENS)


def test_the_objection_to_a_file_names_the_line() -> None:
    with pytest.raises(ValueError, match=r"^line 3: a token is empty, too long, or has characters"):
        read_entries(b"one\n\ntwo three\n")
