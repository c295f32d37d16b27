"""`rerank-grpc token`: makes a caller's token and its entry, and lists the callers of a file."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rerank_grpc.access.entries import CallerEntry, digest_of, read_entries
from rerank_grpc.cli import terminal
from rerank_grpc.cli.terminal import Screen
from rerank_grpc.config.options import CLIENT_TOKEN_VARIABLE, OptionError
from rerank_grpc.files.obstacles import obstacle

# By which scanners of repositories and logs may find a token that went where it should not.
PREFIX = "rrk_"
SECRET_BYTES = 32
NEW_ALONE = (
    "rights",
    "models",
    "expires",
    "documents_per_second",
    "tokens_per_second",
    "burst",
    "queue_share",
    "save",
)
EXAMPLES = """\
examples:
  rerank-grpc token new search --save search.token >> callers.toml
  rerank-grpc token new ops --rights list,admin --expires 2027-01-31 >> callers.toml
  rerank-grpc token new crawler --models embedded --documents-per-second 50 --burst 200
  rerank-grpc token list callers.toml

new prints an entry for a --token-file with the token's SHA-256, and the token
itself on stderr, once: nothing else keeps it. With --save it goes into a file
that only you can read, for --token-file of who calls. list tells the callers of such a file,
what they may do, and until when, without a token.
"""

UNLIMITED = {"models": "all", "rate": "none", "expires": "never"}
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
_DATE = re.compile(r"[0-9-]{10}([T ][0-9:.]{5,15}(Z|[+-][0-9]{2}:[0-9]{2})?)?")


def run(parsed: argparse.Namespace) -> int:
    """Makes an entry, or lists those of a file; raises OptionError for what no entry can have."""
    if parsed.action == "new":
        return _make(parsed)
    given = [name for name in NEW_ALONE if getattr(parsed, name) is not None]
    if given:
        raise OptionError(f"--{given[0].replace('_', '-')}: belongs to `rerank-grpc token new`")
    entries = _read(Path(parsed.what))
    if parsed.json:
        print(json.dumps({"callers": list(map(_described, entries))}, ensure_ascii=False, indent=2))
    else:
        heads = ("caller", "known by", "rights", "models", "rate", "queue share", "expires")
        rows = [[_shown(*told) for told in _described(entry).items()] for entry in entries]
        for line in terminal.table(heads, rows, Screen.of(sys.stdout)):
            print(line)
    return 0


def _make(parsed: argparse.Namespace) -> int:
    token = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    entry = "\n".join(_lines(parsed, digest_of(token).hex()))
    try:
        (read,) = read_entries(entry.encode("utf-8", "replace"))
    except ValueError as error:
        raise OptionError(re.sub(r"^line \d+: ", "", str(error))) from None
    if read.caller.expires is not None and read.caller.expires <= datetime.now(UTC).timestamp():
        raise OptionError(f"--expires: {parsed.expires} is over already")
    if parsed.save is not None:
        _save(token, Path(parsed.save))
    print(f"{entry}\n")
    sys.stdout.flush()
    if parsed.save is not None:
        return 0
    print(token, file=sys.stderr)
    send = f"send it as authorization: Bearer TOKEN, or set {CLIENT_TOKEN_VARIABLE}"
    print(f"This is the token of {parsed.what}, which nothing keeps: {send}.", file=sys.stderr)
    return 0


def _save(token: str, path: Path) -> None:
    """Writes a token to a new file of this user's alone; raises OptionError where that fails."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{token}\n")
    except FileExistsError:
        raise OptionError(f"--save: {str(path)!r} is there already: name another, or remove it") from None
    except OSError as error:
        text = obstacle(path, error, writing=True)
        raise OptionError(f"--save: cannot write {str(path)!r}: {text}") from None


def _lines(parsed: argparse.Namespace, digest: str) -> Iterator[str]:
    """Writes an entry in TOML; a list of names is checked when the whole is read back."""
    name = parsed.what
    yield f"# made on {datetime.now(UTC):%Y-%m-%d}"
    yield f"[{name}]" if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f"[{_string(name)}]"
    yield f'sha256 = "{digest}"'
    rights = parsed.rights if parsed.rights is not None else "rerank,list"
    yield f"rights = {_list(rights)}"
    if parsed.models is not None:
        yield f"models = {_list(parsed.models)}"
    for key in ("documents_per_second", "tokens_per_second", "burst", "queue_share"):
        if (text := getattr(parsed, key)) is not None:
            if not _NUMBER.fullmatch(text):
                raise OptionError(f"--{key.replace('_', '-')}: {text!r} is no number above 0")
            yield f"{key} = {text}"
    if parsed.expires is not None:
        if not _DATE.fullmatch(parsed.expires):
            raise OptionError(f"--expires: {parsed.expires!r} is no date such as 2027-01-31")
        yield f"expires = {parsed.expires}"


def _read(path: Path) -> tuple[CallerEntry, ...]:
    try:
        return read_entries(path.read_bytes())
    except OSError as error:
        raise OptionError(f"cannot read {str(path)!r}: {obstacle(path, error)}") from None
    except ValueError as error:
        raise OptionError(f"{str(path)!r} is no file of tokens: {error}") from None


def _described(entry: CallerEntry) -> dict[str, Any]:
    caller, count = entry.caller, len(entry.digests)
    by = [f"{count} tokens" if count > 1 else "token"] if count else []
    known_by = ", ".join([*by, *(["certificate"] if entry.certified else [])])
    rate, expires = caller.rate, caller.expires
    return {
        "name": caller.name,
        "known_by": known_by,
        "rights": sorted(right.value for right in caller.rights),
        "models": None if caller.models is None else sorted(caller.models),
        "rate": rate and f"{rate.per_second:g} {rate.counted.value}/s, burst {rate.burst:g}",
        "queue_share": caller.queue_share,
        "expires": None if expires is None else _date(expires),
    }


def _date(expires: float) -> str:
    moment = datetime.fromtimestamp(expires, UTC)
    over = ", over" if moment <= datetime.now(UTC) else ""
    return f"{moment:%Y-%m-%d %H:%M} UTC{over}"


def _shown(key: str, value: object) -> str:
    if value is None:
        return UNLIMITED[key]
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(texts: str) -> str:
    return f"[{', '.join(_string(text.strip()) for text in texts.split(',') if text.strip())}]"


def _string(text: str) -> str:
    # A string of JSON is one of TOML, except that TOML wants DEL escaped too.
    return json.dumps(text).replace("\x7f", "\\u007f")
