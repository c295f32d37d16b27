"""`rerank-grpc token`, by real processes: what it prints is what a server takes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.callers import Caller, Counted, Rate, Right
from tests.command import run


def test_a_new_token_is_printed_once_and_its_entry_is_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    tokens = []
    for arguments in (
        ["search"],
        ["spiffe://example.org/ops", "--rights", "list, admin", "--expires", "2099-01-31"],
        ["crawler", "--models", "embedded", "--documents-per-second", "50", "--burst", "200"],
    ):
        done = run("token", "new", *arguments)
        assert done.returncode == 0
        token, told = done.stderr.splitlines()
        assert token.startswith("rrk_")
        assert len(token) == len("rrk_") + 43
        assert "authorization: Bearer TOKEN" in told
        assert token not in done.stdout + told
        tokens.append(token)
        with path.open("a") as file:
            file.write(done.stdout)
    access = AccessList([], TokenFile.of(path, path.read_bytes()))
    search, ops, crawler = map(access.find, tokens)
    both = frozenset({Right.RERANK, Right.LIST})
    assert search == Caller("search", both)
    expires = datetime(2099, 1, 31, tzinfo=UTC).timestamp()
    rights = frozenset({Right.LIST, Right.ADMIN})
    assert ops == Caller("spiffe://example.org/ops", rights, expires=expires)
    rate = Rate(Counted.DOCUMENTS, 50, 200)
    assert crawler == Caller("crawler", both, frozenset({"embedded"}), rate)


def test_a_token_is_saved_in_a_file_of_ones_own_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "search.token"
    done = run("token", "new", "search", "--save", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    (token,) = TokenFile.of(path, path.read_bytes()).entries[0].digests
    assert token.hex() in done.stdout
    again = run("token", "new", "search", "--save", str(path))
    assert again.stderr.strip().endswith("is there already: name another, or remove it")
    assert again.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "objection"),
    [
        (
            ["a", "--save", "/there/is/none"],
            "--save: cannot write '/there/is/none': no such file or directory",
        ),
        (["a", "--expires", "2020-01-31"], "--expires: 2020-01-31 is over already"),
        (["a b"], "['a b']: a name has 1 to 64 characters"),
        (["a", "--rights", "rerunk"], "[a] rights: 'rerunk' is no right; did you mean rerank?"),
        (["a", "--expires", "tomorrow"], "--expires: 'tomorrow' is no date such as 2027-01-31"),
        (["a", "--expires", "2027-01-31\n[b]"], "--expires: '2027-01-31\\n[b]' is no date"),
        (["a", "--expires", "2027-01-31T10:00:00"], "[a] expires: has no zone"),
        (["a", "--burst", "1\n[b]"], "--burst: '1\\n[b]' is no number above 0"),
        (["a", "--burst", "5"], "[a] burst: belongs to documents_per_second"),
        (["a", "--models", ","], "[a] models: is empty: leave the key out for all models"),
        (["line-1"], "[line-1]: the server itself gives names such as"),
    ],
)
def test_what_no_entry_can_have_is_refused_and_nothing_is_printed(
    arguments: list[str], objection: str
) -> None:
    done = run("token", "new", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"rerank-grpc: error: {objection}" in done.stderr
    assert "rrk_" not in done.stderr


CALLERS = """
[search]
token = ["canary-one", "canary-two"]
[ops]
rights = []
models = ["two", "one"]
tokens_per_second = 1000
expires = 2020-01-31
"""


def test_the_callers_of_a_file_are_listed_without_a_token(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(CALLERS)
    done = run("token", "list", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    head, search, ops = (re.split(" {2,}", line) for line in done.stdout.splitlines())
    assert head == ["caller", "known by", "rights", "models", "rate", "queue share", "expires"]
    assert search == ["search", "2 tokens", "list, rerank", "all", "none", "1", "never"]
    rate, expired = "1000 tokens/s, burst 10000", "2020-01-31 00:00 UTC, over"
    assert ops == ["ops", "certificate", "none", "one, two", rate, "1", expired]
    described = json.loads(run("token", "list", str(path), "--json").stdout)["callers"]
    assert described[1]["models"] == ["one", "two"]
    assert described[0]["expires"] is None
    path.write_text("canary\n")
    assert "line-1" in run("token", "list", str(path)).stdout


def test_a_file_that_is_none_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text('[a]\nrights = "rerunk"\n')
    done = run("token", "list", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no file of tokens: line 2: [a] rights: 'rerunk' is no right" in done.stderr
    assert "no such file" in run("token", "list", str(tmp_path / "none")).stderr
    done = run("token", "list", str(path), "--burst", "5")
    assert "--burst: belongs to `rerank-grpc token new`" in done.stderr
