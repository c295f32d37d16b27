"""A file of callers: what its tables mean, and what is refused by line and name."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from rerank_grpc.access.entries import Known, digest_of, is_toml, read_entries
from rerank_grpc.callers import EVERY_RIGHT, Caller, Counted, Rate, Right

HEX = hashlib.sha256(b"other-token").hexdigest()
KNOWN = Known({"one": "one", "uno": "one", "two": "two"}, frozenset({digest_of("of-a-variable")}))


def test_a_table_is_a_caller_with_all_that_its_keys_say() -> None:
    text = f"""
# Who calls.
[search]
token = ["first-token", "second-token"]
sha256 = "{HEX.upper()}"
rights = ["rerank", "admin"]
models = ["uno", "two"]
documents_per_second = 50
burst = 200
queue_share = 0.5
expires = 2030-01-31T12:00:00+02:00

["spiffe://example.org/crawler"]
tokens_per_second = 1e4
expires = 2030-01-31
"""
    search, crawler = read_entries(text.encode(), KNOWN)
    assert search.caller == Caller(
        "search",
        rights=frozenset({Right.RERANK, Right.ADMIN}),
        models=frozenset({"one", "two"}),
        rate=Rate(Counted.DOCUMENTS, 50, 200),
        queue_share=0.5,
        expires=datetime(2030, 1, 31, 10, tzinfo=UTC).timestamp(),
    )
    assert search.tokens == ("first-token", "second-token")
    assert set(search.digests) == {digest_of("first-token"), digest_of("second-token"), bytes.fromhex(HEX)}
    assert crawler.caller == Caller(
        "spiffe://example.org/crawler",
        rights=frozenset({Right.RERANK, Right.LIST}),
        rate=Rate(Counted.TOKENS, 10_000, 100_000),
        expires=datetime(2030, 1, 31, tzinfo=UTC).timestamp(),
    )
    assert crawler.digests == ()
    assert "token" not in repr(search)


def test_a_plain_line_is_a_token_with_every_right_named_by_its_line() -> None:
    first, second = read_entries(b"\xef\xbb\xbfone\r\n\r\n  two#  \n")
    assert (first.caller, first.tokens) == (Caller("line-1", EVERY_RIGHT), ("one",))
    assert (second.caller, second.tokens) == (Caller("line-3", EVERY_RIGHT), ("two#",))


@pytest.mark.parametrize(
    "first", ["[search", "[search]]", "[[search]]", "\u00a0[search]", "burst=5", "search"]
)
def test_a_table_with_a_slip_in_its_first_line_makes_no_token(first: str) -> None:
    """Its digest, which is no secret, would else be a token with every right."""
    with pytest.raises(ValueError, match=r"^line [12]: this is no token but TOML"):
        read_entries(f'{first}\nsha256="{HEX}"\nrights=["rerank"]\n'.encode())


def test_a_plain_token_may_begin_or_end_as_a_line_of_toml_does() -> None:
    tokens = ["[b4", "b4]", "dG9rZW4=", "token==", "rights"]
    assert [entry.tokens for entry in read_entries("\n".join(tokens).encode())] == [(t,) for t in tokens]


@pytest.mark.parametrize(
    ("text", "toml"),
    [
        ("[a]\n", True),
        ("# a comment\r\n\r\n[a]\r\n", True),
        ('["a b"] # c\n', True),
        ('token = "x"\n', True),
        ("burst = 5\n", True),
        ('a={token="x"}\n', True),
        ("dG9rZW4=\n", False),
        ("dG9rZW4==\n", False),
        ("a=b\n", False),
        ("[a\n", False),
        ("", False),
        ("# a comment\n", False),
        ("token\n[a]\n", False),
    ],
)
def test_the_first_line_that_says_something_decides_what_a_file_is(text: str, toml: bool) -> None:
    assert is_toml(text) is toml


REFUSED = {
    '[a\ntoken="canary-TOKEN"\n': "line 2: this is no token but TOML, whose first line is [NAME] or a key",
    "token\n[a]\n": "line 2: this is no token but TOML, whose first line is [NAME] or a key",
    "token\n#canary-TOKEN\n": "line 2: begins with #, which no token may here: remove the line",
    '[a]\ntoken = "x"\nrights = ["rerunk"]\n': (
        "line 3: [a] rights: 'rerunk' is no right; did you mean rerank?"
    ),
    '[a]\ntoken = "x"\nrights = ["canary-TOKEN"]\n': (
        "line 3: [a] rights: one of them is no right: there are rerank, list, admin"
    ),
    '[a]\nmodels = ["onw"]\n': "line 2: [a] models: no model is named 'onw'; did you mean one?",
    '[a]\nmodels = ["x"]\n': "line 2: [a] models: no model is named 'x': there are one, uno, two",
    "[a]\nmodels = []\n": "line 2: [a] models: is empty: leave the key out for all models",
    "[a]\n\n[b]\n[a]\n": "line 4: the name of this table is given twice",
    "[a]\nburst = 1\nburst = 2\n": "line 3: the key is given twice in one table, or names a table",
    '[a]\ntoken = "canary"\n[b]\n\ntoken = "canary"\n': (
        "line 5: [b] token: the token is the same as one of [a]: each caller has its own"
    ),
    f'[a]\ntoken = "other-token"\n[b]\nsha256 = "{HEX}"\n': (
        "line 4: [b] sha256: the token is the same as one of [a]: each caller has its own"
    ),
    '[a]\ntoken = "of-a-variable"\n': (
        "line 2: [a] token: the token is the same as one in the server's variables: each caller has its own"
    ),
    '[a]\ntoken = ["x", "x"]\n': "line 2: [a] token: the list has the same twice",
    "[a]\ntoken = []\n": "line 2: [a] token: is empty: leave the key out",
    '[a]\ntoken = "canary x"\n': (
        "line 2: [a] token: a token is empty, too long, or has characters beyond visible ASCII"
    ),
    "[a]\ntoken = 5\n": "line 2: [a] token: is no string, nor a list of strings",
    '[a]\nsha256 = "canary"\n': (
        "line 2: [a] sha256: is no SHA-256: 64 hexadecimal digits, as `rerank-grpc token new` writes"
    ),
    "[a]\ndocuments_per_second = 1\ntokens_per_second = 2\n": (
        "line 3: [a] tokens_per_second: a caller has one rate: of documents or of tokens"
    ),
    "[a]\nburst = 5\n": (
        "line 2: [a] burst: belongs to documents_per_second or tokens_per_second, and neither is set"
    ),
    "[a]\ndocuments_per_second = 1\nburst = 0.5\n": "line 3: [a] burst: is no number from 1",
    "[a]\ndocuments_per_second = 0\n": "line 2: [a] documents_per_second: is no number above 0",
    "[a]\ndocuments_per_second = inf\n": "line 2: [a] documents_per_second: is no number above 0",
    "[a]\ndocuments_per_second = true\n": "line 2: [a] documents_per_second: is no number above 0",
    "[a]\nqueue_share = 1.5\n": "line 2: [a] queue_share: is no number above 0 up to 1",
    "[a]\nqueue_share = nan\n": "line 2: [a] queue_share: is no number above 0 up to 1",
    "[a]\nexpires = 2030-01-31T12:00:00\n": (
        "line 2: [a] expires: has no zone: write 2027-01-31 or 2027-01-31T18:00:00Z, without quotes"
    ),
    '[a]\nexpires = "2030-01-31"\n': (
        "line 2: [a] expires: is no date of TOML: write 2027-01-31 or 2027-01-31T18:00:00Z, without quotes"
    ),
    "[a]\nexpires = 2030-02-31\n": "line 2: not TOML: invalid date or datetime",
    "[a]\ncertificate = 1\n": "line 2: [a] certificate: is neither true nor false",
    "[a]\ncertificate = false\n": (
        "line 2: [a] certificate: is false, and the caller has no token: nothing would let it in"
    ),
    '[a]\ntokn = "canary"\n': "line 2: [a] tokn: unknown key; did you mean token?",
    'token = "canary"\n': (
        "line 1: [token]: a key outside of a table: write [NAME] above it, the name of a caller"
    ),
    "[a]\n\n[a.b]\n": 'line 1: [a]: a name with dots stands in quotes: ["a.b"]',
    '["a b"]\n': (
        "line 1: ['a b']: a name has 1 to 64 characters of A-Z a-z 0-9 . _ -, or is a DNS name or a URI"
    ),
    "[token-1]\n": (
        "line 1: [token-1]: the server itself gives names such as token-1, line-1 and rest: choose another"
    ),
    '[a]\ntoken = "canary\n': "line 2: not TOML: illegal character '\\n'",
    '[a]\n"canary"\n': "line 2: not TOML: expected '=' after a key in a key/value pair",
    "[a]\nb" + ".b" * 2_000 + " = 1\n": "line 2 has more than 1,000 dots: break it up",
    "": "it holds no token: write one a line, or a table of TOML for each caller",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_a_mistake_is_told_by_line_and_name_and_never_by_a_token(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        read_entries(text.encode(), KNOWN)
    assert str(caught.value) == REFUSED[text]
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["a", "A-z_0.9", "a" * 64, "*.example.org", "search.prod.svc.cluster.local", "spiffe://example.org/ns/a"],
)
def test_a_name_may_be_one_that_certificates_have(name: str) -> None:
    (entry,) = read_entries(f'["{name}"]\n'.encode())
    assert entry.caller.name == name


@pytest.mark.parametrize(
    "name", ["", " ", "a" * 65, "ä", "a/b", "a b.c", "a\\nb", "u:" + "x" * 300, "a\\u0000"]
)
def test_no_other_name_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match="a name has 1 to 64 characters"):
        read_entries(f'["{name}"]\n'.encode())


def test_a_file_that_nothing_is_known_about_names_any_models() -> None:
    (entry,) = read_entries(b'[a]\nmodels = "anything"\n')
    assert entry.caller.models == frozenset({"anything"})


def test_the_line_of_a_key_is_that_of_its_own_table() -> None:
    text = '[a]\nrights = [\n  "list",\n]\nburst = 1\ntokens_per_second = 1\n[ "b" ]\r\nburst = 0\n'
    with pytest.raises(ValueError, match=r"^line 8: \[b\] burst"):
        read_entries(text.encode())
