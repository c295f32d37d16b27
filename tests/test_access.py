"""The access list: exact tokens and nothing near them, whatever the text holds."""

import pytest

from rerank_grpc.access import AccessList, split_bearer

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
    assert not set(map(repr, vars(first).values())) & set(map(repr, vars(second).values()))


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
