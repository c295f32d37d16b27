"""Request bodies: JSON within its limit, and the bytes of all bodies inside at once."""

from __future__ import annotations

import asyncio
import codecs
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from rerank_grpc.errors import Cancelled, InvalidRequest, QueueFull
from rerank_grpc.http.errors import HttpError
from rerank_grpc.limits import LIMITS
from rerank_grpc.units import in_bytes

# A list in a list costs 64 bytes of memory for 2 of the body: 12 MiB of those would take 400 MiB.
MAX_BRACKETS = 500_000
# Cut emojis in one body: two at the ends of each text, and many more.
MAX_SURROGATES = 100_000
LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:"
    rb"[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"  # a high one without a low one behind it
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"  # a low one without a high one
)
# A body that has been arriving for less than this is never given up for another one.
SAFE_SECONDS = 1.0
_NO_MARK = bytes(set(range(256)) - set(b'"[{'))


class BodyBudget:
    """The bytes that are left for bodies, each taken from its arrival until its call is answered.

    Beyond them the longest-arriving body is given up: a caller that withholds a byte would hold its share.
    """

    def __init__(self, capacity: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.free = capacity
        self.clock = clock
        # The bodies that are still arriving, the oldest first, and since when.
        self.arriving: dict[Charge, float] = {}

    @contextmanager
    def charging(self) -> Iterator[Charge]:
        """Gives the account of one call; its bytes come back at the end."""
        charge = Charge(self)
        try:
            yield charge
        finally:
            charge.give_back()


class Charge:
    """The bytes that one call has taken of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self.taken = 0
        self._budget = budget
        self._given_up = False
        self._reading = asyncio.Timeout(None)

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[None]:
        """Surrounds the reading of the body; raises QueueFull where it is given up for another one."""
        try:
            async with self._reading:
                yield
        finally:
            self._budget.arriving.pop(self, None)
            # The last byte may have come just before the reading was to end.
            self._check()

    def take(self, count: int) -> None:
        """Takes bytes before they are kept; raises QueueFull where no older body can be given up for them."""
        self._check()
        budget = self._budget
        budget.arriving.setdefault(self, budget.clock())
        while count > budget.free:
            oldest = next(iter(budget.arriving))
            if oldest is self or budget.clock() - budget.arriving[oldest] < SAFE_SECONDS:
                raise QueueFull("too many bytes of requests are being answered")
            oldest.give_up()
        budget.free -= count
        self.taken += count

    def give_up(self) -> None:
        """Ends the reading, and frees the bytes at once."""
        del self._budget.arriving[self]
        self.give_back()
        self._given_up = True
        self._reading.reschedule(-math.inf)

    def give_back(self) -> None:
        self._budget.free += self.taken
        self.taken = 0

    def _check(self) -> None:
        if self._given_up:
            raise QueueFull("the body came too slowly: others need its room")


async def read_json(request: Request, charge: Charge) -> dict[str, Any]:
    """Reads the body, a JSON object; `charge` pays for each byte before it is kept.

    Raises HttpError 413 or 415, InvalidRequest or QueueFull.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise HttpError(415, "send the body without Content-Encoding", {"accept-encoding": "identity"})
    return parse_json(await read_bytes(request, LIMITS.body_bytes, charge))


async def read_bytes(request: Request, limit: int, charge: Charge) -> bytearray:
    """Reads the body as it is, of at most `limit` bytes; raises HttpError 413 or QueueFull."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with charge.arriving():
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise _too_large(limit)
                if chunk:
                    charge.take(len(chunk))
                    body += chunk
    except ClientDisconnect:
        raise Cancelled("the caller has left") from None
    return body


def _too_large(limit: int) -> HttpError:
    texts = f"{in_bytes(LIMITS.message_bytes)} of text"
    return HttpError(413, f"the body has more than {in_bytes(limit)}; send fewer documents, at most {texts}")


def parse_json(body: bytearray) -> dict[str, Any]:
    """Parses a JSON object in UTF-8, whose byte order mark becomes spaces.

    A lone surrogate, half of an emoji that was cut in two, is read as U+FFFD. Raises HttpError 413 or
    InvalidRequest. orjson refuses NaN, and lists nested more than 1,024 deep.
    """
    encoding = json.detect_encoding(body[:4])
    if encoding.startswith(("utf-16", "utf-32")):
        raise InvalidRequest(f"the body is in {encoding[:6].upper()}: send JSON in UTF-8")
    if body.startswith(codecs.BOM_UTF8):
        body[: len(codecs.BOM_UTF8)] = b"   "  # positions in errors stay those of the body
    if _has_too_many_brackets(body):
        raise HttpError(413, f"the body has more than {MAX_BRACKETS:,} lists and objects")
    value, fault = _try_to_parse(body)
    if " surrogate in string" in fault:
        value, fault = _try_to_parse(_without_lone_surrogates(body))
    if fault:
        raise _not_json(body, fault)
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _try_to_parse(body: bytearray) -> tuple[Any, str]:
    """Returns the value, or what is wrong: a position, and nothing of the body."""
    try:
        return orjson.loads(body), ""
    except orjson.JSONDecodeError as error:
        return None, str(error)


def _without_lone_surrogates(body: bytearray) -> bytearray:
    """Puts U+FFFD in the place of lone surrogates, MAX_SURROGATES at most; each byte keeps its place."""
    if b"\0" in body:
        return body  # which no JSON holds
    # An escaped backslash is out of the way as two zeros.
    repaired = LONE_SURROGATE.sub(rb"\\ufffd", body.replace(rb"\\", b"\0\0"), MAX_SURROGATES)
    return bytearray(repaired.replace(b"\0\0", rb"\\"))


def _not_json(body: bytearray, fault: str) -> InvalidRequest:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        offset = error.start
    else:
        return InvalidRequest(f"the body is not JSON: {fault}")
    return InvalidRequest(f"the body is not UTF-8: see its byte at offset {offset}; send JSON in UTF-8")


def _has_too_many_brackets(body: bytearray) -> bool:
    """Tells whether too many lists and objects begin; brackets within texts do not count."""
    if body.count(b"[") + body.count(b"{") <= MAX_BRACKETS:
        return False
    if b"\\" in body:
        # An escaped quote ends no text, unless the backslash before it is escaped itself.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Texts without brackets, and ends of texts where the next begins, leave every bracket on its side.
    marks = body.translate(None, _NO_MARK).replace(b'""', b"")
    count = begin = 0
    # Now any two quotes have a bracket between them, so this ends after MAX_BRACKETS rounds.
    while count <= MAX_BRACKETS:
        opening = marks.find(b'"', begin)
        if opening < 0:
            return count + len(marks) - begin > MAX_BRACKETS
        count += opening - begin
        closing = marks.find(b'"', opening + 1)
        if closing < 0:
            return count > MAX_BRACKETS
        begin = closing + 1
    return True
