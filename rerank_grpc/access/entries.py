"""The callers of a file: tables of TOML by their names, or plain lines of tokens with every right."""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import Any, NoReturn

from rerank_grpc.callers import Caller, Counted, Rate, Right
from rerank_grpc.errors import suggestion

# What an HTTP header and gRPC's metadata, of 8 KiB, can carry beside what else they hold.
LONGEST_TOKEN = 4_096
TOKEN = re.compile(rf"[!-~]{{1,{LONGEST_TOKEN}}}")
BAD_TOKEN = "a token is empty, too long, or has characters beyond visible ASCII"
# A short name, or one as certificates have: of DNS, or a URI such as spiffe://example.org/search.
NAME = re.compile(
    r"[A-Za-z0-9._-]{1,64}"
    r"|(?=.{1,253}$)(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+"
    r"|(?=.{1,253}$)[a-z][a-z0-9+.-]*:[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+"
)
# Names that the server itself gives: to tokens without one, and to REST beside it.
RESERVED = re.compile(r"(?:token|line)-[0-9]+|rest")
KEYS = (
    "token",
    "sha256",
    "certificate",
    "rights",
    "models",
    "documents_per_second",
    "tokens_per_second",
    "burst",
    "queue_share",
    "expires",
)
DEFAULT_RIGHTS = frozenset((Right.RERANK, Right.LIST))
BURST_SECONDS = 10  # of a rate that names no burst
LARGEST_NUMBER = 1e12
# tomllib's time grows with the square of a dotted key's parts.
MOST_DOTS = 1_000

# No plain line is taken for these: base64's padding is no value of a key.
_HEADER = re.compile(r"[ \t]*\[[^\]]+\][ \t]*(#.*)?")
_KEY = re.compile(r"[ \t]*[\w.\"'-]+[ \t]*=[ \t]*[\"'\[{].*|[ \t]*[\w-]+[ \t]+=[ \t].*")
_ENTRY = re.compile(rf"\[.*\]|(?:{'|'.join(KEYS)})\s*=\s*[^\s=].*")
_WORD = re.compile(r"[a-z_-]{1,20}")
_PLACE = re.compile(r" \((?:at line (\d+), column \d+|at end of document)\)$")


@dataclass(frozen=True, slots=True)
class CallerEntry:
    """A caller and the SHA-256 of each of its tokens; `tokens` are those that the file has in clear.

    With `certified` it is known by the name in a client certificate too; one without a token always is.
    """

    caller: Caller
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    certified: bool = False

    @classmethod
    def of(cls, caller: Caller, tokens: Sequence[str], digests: Sequence[bytes] = ()) -> CallerEntry:
        """Makes an entry of tokens in clear, and of others' digests."""
        return cls(caller, (*map(digest_of, tokens), *digests), tuple(tokens))


@dataclass(frozen=True, slots=True)
class Known:
    """Models by name and alias, with the configured name of each, None where none are known.

    `taken` are the digests of tokens that stand elsewhere.
    """

    models: Mapping[str, str] | None = None
    taken: frozenset[bytes] = field(default=frozenset(), repr=False)


NOTHING = Known()


def digest_of(token: str) -> bytes:
    """Computes a token's SHA-256; metadata may hold bytes that are no UTF-8, which is a wrong token too."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def read_entries(content: bytes, known: Known = NOTHING) -> tuple[CallerEntry, ...]:
    """Reads the callers of a file; raises ValueError with an objection, by line and name, without a token."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    entries = _tables(text, known) if is_toml(text) else _lines(text)
    if not entries:
        raise ValueError("it holds no token: write one a line, or a table of TOML for each caller")
    return entries


def is_toml(text: str) -> bool:
    """Tells whether the first line, but for comments, is a table's header or a key of TOML."""
    lines = (line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#"))
    first = next(lines, "").rstrip("\r")
    return bool(_HEADER.fullmatch(first) or _KEY.fullmatch(first))


def _lines(text: str) -> tuple[CallerEntry, ...]:
    tokens = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, token in tokens:
        # Of a table with a slip in its first line each would else be a token with every right.
        if _ENTRY.fullmatch(token) or _HEADER.fullmatch(token) or _KEY.fullmatch(token):
            raise ValueError(f"line {number}: this is no token but TOML, whose first line is [NAME] or a key")
        # Whoever had a token that is commented out could go on with # before it.
        if token.startswith("#"):
            raise ValueError(f"line {number}: begins with #, which no token may here: remove the line")
        if not TOKEN.fullmatch(token):
            raise ValueError(f"line {number}: {BAD_TOKEN}: write one a line")
    return tuple(CallerEntry.of(Caller(f"line-{number}"), [token]) for number, token in tokens)


def _tables(text: str, known: Known) -> tuple[CallerEntry, ...]:
    entries = []
    owners = dict.fromkeys(known.taken, "one in the server's variables")
    for name, values in _parsed(text).items():
        table = _Table(text, name, values)
        entry = table.entry(known)
        for digest in entry.digests:
            if digest in owners:
                key = "token" if "token" in values else "sha256"
                table.refuse(key, f"the token is the same as {owners[digest]}: each caller has its own")
            owners[digest] = f"one of [{name}]"
        entries.append(entry)
    return tuple(entries)


def _parsed(text: str) -> dict[str, Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS:,} dots: break it up")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_told(str(error), text)) from None
    except RecursionError:
        raise ValueError("it is TOML that is nested too deeply") from None
    except ValueError:  # of a number with thousands of digits, or a day that no month has
        raise ValueError("it is not TOML that can be read: a number or a date in it is none") from None


def _told(error: str, text: str) -> str:
    """Says where a text is no TOML; the parser's words may quote a key, which could be a token."""
    place = _PLACE.search(error)
    line = place[1] if place and place[1] else str(text.count("\n") + 1)
    words = _PLACE.sub("", error)
    if words.startswith("Cannot declare"):
        return f"line {line}: the name of this table is given twice"
    if words.startswith(("Cannot", "Duplicate")):
        return f"line {line}: the key is given twice in one table, or names a table"
    return f"line {line}: not TOML: {words[:1].lower()}{words[1:]}"


class _Table:
    """One table of a file, read key by key."""

    def __init__(self, text: str, name: str, values: Any) -> None:
        self._text = text
        self._name = name
        self._values: dict[str, Any] = values if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            self.refuse("", "a key outside of a table: write [NAME] above it, the name of a caller")
        if not NAME.fullmatch(name):
            long = "a name has 1 to 64 characters of A-Z a-z 0-9 . _ -, or is a DNS name or a URI"
            self.refuse("", long)
        if RESERVED.fullmatch(name):
            self.refuse("", "the server itself gives names such as token-1, line-1 and rest: choose another")
        for key, value in self._values.items():
            if isinstance(value, dict) and key not in KEYS:
                self.refuse("", f'a name with dots stands in quotes: ["{name}.{key}"]')
            if key not in KEYS:
                self.refuse(key, f"unknown key{_nearest(key, KEYS)}")

    def refuse(self, key: str, objection: str) -> NoReturn:
        """Raises ValueError with the line of a key, or else that of the table."""
        line = self._line_of(key)
        place = f"line {line}: " if line else ""
        shown = self._name if NAME.fullmatch(self._name) else repr(self._name[:64])
        raise ValueError(f"{place}[{shown}]{f' {key}' if key else ''}: {objection}")

    def entry(self, known: Known) -> CallerEntry:
        """Reads the whole table."""
        rights, models = self._texts("rights"), self._texts("models")
        caller = Caller(
            self._name,
            rights=DEFAULT_RIGHTS if rights is None else frozenset(map(self._right, rights)),
            models=None if models is None else self._models(models, known.models),
            rate=self._rate(),
            queue_share=self._number("queue_share", most=1.0) or 1.0,
            expires=self._expires(),
        )
        tokens, digests = self._texts("token"), self._texts("sha256")
        for key, texts in (("token", tokens), ("sha256", digests)):
            if texts is not None and (not texts or len(set(texts)) < len(texts)):
                self.refuse(key, "the list has the same twice" if texts else "is empty: leave the key out")
        if not all(map(TOKEN.fullmatch, tokens or ())):
            self.refuse("token", BAD_TOKEN)
        entry = CallerEntry.of(caller, tokens or (), list(map(self._digest, digests or ())))
        return replace(entry, certified=self._certified(not entry.digests))

    def _certified(self, default: bool) -> bool:
        value = self._values.get("certificate", default)
        if not isinstance(value, bool):
            self.refuse("certificate", "is neither true nor false")
        if default and not value:
            self.refuse("certificate", "is false, and the caller has no token: nothing would let it in")
        return value

    def _digest(self, text: str) -> bytes:
        if not re.fullmatch("[0-9a-fA-F]{64}", text):
            self.refuse("sha256", "is no SHA-256: 64 hexadecimal digits, as `rerank-grpc token new` writes")
        return bytes.fromhex(text)

    def _right(self, text: str) -> Right:
        names = [right.value for right in Right]
        if text not in names:
            shown = f"{text!r} is no right" if _WORD.fullmatch(text) else "one of them is no right"
            self.refuse("rights", f"{shown}{_nearest(text, names)}")
        return Right(text)

    def _models(self, names: Sequence[str], known: Mapping[str, str] | None) -> frozenset[str]:
        if not names:
            self.refuse("models", "is empty: leave the key out for all models")
        if known is None:
            return frozenset(names)
        for name in names:
            if name not in known:
                self.refuse("models", f"no model is named {name[:100]!r}{_nearest(name, known)}")
        return frozenset(known[name] for name in names)

    def _rate(self) -> Rate | None:
        rates = {each: self._number(f"{each.value}_per_second") for each in Counted}
        given = [(each, number) for each, number in rates.items() if number is not None]
        burst = self._number("burst", least=1.0)
        if len(given) > 1:
            self.refuse("tokens_per_second", "a caller has one rate: of documents or of tokens")
        if not given:
            if burst is not None:
                self.refuse(
                    "burst", "belongs to documents_per_second or tokens_per_second, and neither is set"
                )
            return None
        ((counted, per_second),) = given
        return Rate(counted, per_second, max(1.0, BURST_SECONDS * per_second) if burst is None else burst)

    def _number(self, key: str, *, least: float = 0.0, most: float = LARGEST_NUMBER) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not least <= value <= most or value == 0:
            bounds = f"from {least:g}" if least else "above 0"
            self.refuse(key, f"is no number {bounds}{f' up to {most:g}' if most < LARGEST_NUMBER else ''}")
        return float(value)

    def _expires(self) -> float | None:
        value = self._values.get("expires")
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.timestamp()
        if isinstance(value, date) and not isinstance(value, datetime):
            return datetime.combine(value, time(), UTC).timestamp()
        if value is not None:
            zone = "has no zone" if isinstance(value, datetime) else "is no date of TOML"
            self.refuse("expires", f"{zone}: write 2027-01-31 or 2027-01-31T18:00:00Z, without quotes")
        return None

    def _texts(self, key: str) -> list[str] | None:
        """Reads one string or a list of them; None where the key is not there."""
        value = self._values.get(key)
        texts = value if isinstance(value, list) or value is None else [value]
        if texts is not None and not all(isinstance(text, str) for text in texts):
            self.refuse(key, "is no string, nor a list of strings")
        return texts

    def _line_of(self, key: str) -> int:
        """Finds the line of a key of this table, else that of its header; 0 where neither is found."""
        table, header = "", 0
        for number, line in enumerate(self._text.split("\n"), 1):
            if _HEADER.fullmatch(line.rstrip("\r")):
                table = _first_key(line.rstrip("\r"))
                header = header or (number if table == self._name else 0)
            elif "=" in line:
                name = line.partition("=")[0].strip().strip("\"'")
                if (table, name) == (self._name, key):
                    return number
                if not table and name == self._name:
                    return number
        return header


def _nearest(text: str, choices: Iterable[str]) -> str:
    return suggestion(text, choices) or f": there are {', '.join(choices)}"


def _first_key(line: str) -> str:
    try:
        return next(iter(tomllib.loads(line)), "")
    except tomllib.TOMLDecodeError:  # a line of an array
        return ""
