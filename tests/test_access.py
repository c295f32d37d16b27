"""The access list: exact tokens and nothing near them, and those of a file as it changes."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.entries import DEFAULT_RIGHTS, Known, digest_of, read_entries
from rerank_grpc.access.tokens import SentToken, TokenFile, split_bearer
from rerank_grpc.callers import Caller, Right
from rerank_grpc.errors import Unauthenticated
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
    names = first._names  # of nobody
    kept = [
        {repr(value) for value in vars(each).values() if value and value != names} for each in (first, second)
    ]
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


CALLERS = b"""
[search]
token = "search-token"
models = ["one"]
[ops]
token = ["ops-old", "ops-new"]
rights = ["admin"]
["spiffe://example.org/batch"]
rights = ["rerank"]
"""


def test_callers_are_found_by_their_tokens_and_those_without_by_their_names(path: Path) -> None:
    access = AccessList(["of-variable"], TokenFile.of(path, CALLERS))
    found = [access.find(token) for token in ("search-token", "ops-old", "ops-new", "of-variable")]
    assert [caller and caller.name for caller in found] == ["search", "ops", "ops", "token-1"]
    batch = access.named("spiffe://example.org/batch")
    assert batch is not None
    assert batch.rights == frozenset({Right.RERANK})
    assert access.named("search") is None  # a certificate is no token
    for name in ("search", "rest", "token-1", "line-5"):
        with pytest.raises(Unauthenticated, match="is known by its token alone"):
            access.certified(name)
    for name in ("Search", "OPS", "SPIFFE://example.org/batch", "search."):
        with pytest.raises(Unauthenticated, match="but for capital letters or a last dot"):
            access.certified(name)
    assert access.certified("stranger") == Caller("stranger", DEFAULT_RIGHTS)
    both = AccessList([], TokenFile.of(path, CALLERS.replace(b"[ops]", b"[ops]\ncertificate = true")))
    assert both.certified("ops") == both.find("ops-old")
    assert access.restricts
    assert not AccessList(["of-variable"]).restricts
    assert len(access) == 5
    only = AccessList([], TokenFile.of(path, b"[certificate]\n"))
    assert only  # so that nobody else is let in


def test_rights_that_change_hold_and_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = AccessList([], TokenFile.of(path, CALLERS))
    with caplog.at_level(logging.INFO):
        changed(access, path, CALLERS.replace(b'"admin"', b'"list"'))
    ops = access.find("ops-old")
    assert ops is not None
    assert ops.rights == frozenset({Right.LIST})
    assert caplog.messages == ["tokens read again: 4 (0 new, 0 gone, 2 changed)"]


def test_a_mistake_in_a_changed_file_keeps_every_caller_and_is_told_by_line_and_name(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = Known({"one": "one"}, frozenset({digest_of("of-variable")}))
    access = AccessList(["of-variable"], TokenFile.of(path, CALLERS, known))
    for mistake, told in (
        (b'models = ["two"]', "line 11: [new] models: no model is named 'two': there are one"),
        (b'rights = "write"', "line 11: [new] rights: 'write' is no right: there are rerank, list, admin"),
        (b'token = "of-variable"', "line 11: [new] token: the token is the same as one in the server's"),
        (b'token = "ops-new"', "line 11: [new] token: the token is the same as one of [ops]"),
        (b"[search]", "line 11: the name of this table is given twice"),
    ):
        caplog.clear()
        changed(access, path, CALLERS + b"\n[new]\n"[1:] + mistake + b"\n")
        (line,) = caplog.messages
        assert f"what it held before stays in force: {told}" in line
        assert "ops-new" not in line
        assert access.find("search-token") == Caller("search", DEFAULT_RIGHTS, frozenset({"one"}))


def test_a_caller_whose_time_is_over_or_soon_will_be_is_told_when_the_file_is_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soon = datetime.now(UTC) + timedelta(days=6)
    later = soon + timedelta(days=2)
    content = f"""
[over]
token = "a"
expires = 2020-01-31
[soon]
token = "b"
expires = {soon.isoformat()}
[later]
token = "c"
expires = {later.isoformat()}
""".encode()
    access = AccessList([], TokenFile.of(path, content))
    assert caplog.messages == [
        "the token of over has expired on 2020-01-31T00:00:00+00:00, and is refused",
        f"the token of soon expires on {soon.isoformat()}",
    ]
    caplog.clear()
    changed(access, path, b'[over]\ntoken = "a"\nexpires = 2020-02-01\n')
    assert [vars(record).get("caller") for record in caplog.records] == ["over"]


def test_a_token_that_is_sent_is_in_clear_and_has_not_expired(path: Path) -> None:
    content = b'[a]\ntoken = "old"\nexpires = 2020-01-31\n[b]\ntoken = ["new", "newer"]\n'
    assert SentToken(None, TokenFile.of(path, content)).value == "new"
    hashed = f'[a]\nsha256 = "{digest_of("x").hex()}"\n'.encode()
    assert TokenFile.of(path, hashed).sent is None


def test_a_file_of_digests_alone_sends_nothing_new(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = SentToken(None, TokenFile.of(path, b"old\n"))
    changed(sent, path, f'[a]\nsha256 = "{digest_of("x").hex()}"\n'.encode())
    assert sent.value == "old"
    assert "holds no token that could be sent" in caplog.text


def test_a_certificates_name_is_that_of_an_entry_or_may_rerank_and_ask(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    content = b"""
[search]
token = "t0ken"
certificate = true
rights = ["list"]
"""
    access = AccessList((), TokenFile.of(path, content), by_certificate=True)
    # Or a certificate would have more than its name's owner was given.
    assert access.certified("search") == access.find("t0ken")
    assert access.certified("other") == Caller("other", DEFAULT_RIGHTS)
    for name in ("", "rest", "token-1", "line-3"):
        with pytest.raises(Unauthenticated, match=r"have one made|by its token alone"):
            access.certified(name)
    passed = access.find(access.token_of("a/b c"))
    assert passed is not None
    assert passed.name == "a/b c"
    assert AccessList((), by_certificate=True)
