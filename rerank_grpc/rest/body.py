"""Reads a request's body as JSON, and no more of it than is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from rerank_grpc.errors import Cancelled, InvalidRequest, QueueFull
from rerank_grpc.rest.errors import HttpError

# A list in a list costs 64 bytes of memory for 2 of the body: 12 MiB of those would take 400 MiB.
MAX_BRACKETS = 500_000
# How long a call waits that is refused for the bytes of others.
RETRY_SECONDS = 1.0
_NO_MARK = bytes(set(range(256)) - set(b'"[{'))


class BodyBudget:
    """How many bytes of bodies are inside at once, of all calls together.

    A byte counts from when it is read until its call is answered: what a call
    makes of its body is about as large.
    """

    def __init__(self, capacity: int) -> None:
        self._free = capacity

    @contextmanager
    def charging(self) -> Iterator[Callable[[int], None]]:
        """Gives what takes the bytes of one call; they come back at the end."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if count > self._free:
                raise QueueFull("too many bytes of requests are being answered", retry_after=RETRY_SECONDS)
            self._free -= count
            taken += count

        try:
            yield take
        finally:
            self._free += taken


async def read_json(request: Request, limit: int, take: Callable[[int], None]) -> dict[str, Any]:
    """Reads the body, which must be a JSON object of at most `limit` bytes.

    orjson refuses what is not JSON to the letter: NaN, lone surrogates, what is
    nested more than 1,024 deep. `take` is told of each byte before it is kept.
    Raises HttpError 413 or 415, InvalidRequest or QueueFull.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise HttpError(
            415, "send the body without Content-Encoding", headers={"accept-encoding": "identity"}
        )
    body = await _read(request, limit, take)
    if _has_too_many_brackets(body):
        raise HttpError(413, f"the body has more than {MAX_BRACKETS:,} lists and objects")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Says what and where, but nothing of the body.
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _has_too_many_brackets(body: bytearray) -> bool:
    """Tells whether more than MAX_BRACKETS lists and objects begin; brackets within texts do not count."""
    if body.count(b"[") + body.count(b"{") <= MAX_BRACKETS:
        return False
    if b"\\" in body:
        # A quote that is escaped ends no text, unless the backslash before it is escaped itself.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Texts without brackets, and ends of texts where the next begins, do not change what is within one.
    marks = body.translate(None, _NO_MARK).replace(b'""', b"")
    count = begin = 0
    # Between any two quotes there is a bracket now, so this ends after MAX_BRACKETS rounds.
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


async def _read(request: Request, limit: int, take: Callable[[int], None]) -> bytearray:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            take(len(chunk))
            body += chunk
    except ClientDisconnect:
        raise Cancelled("the caller has left") from None
    return body


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body has more than {limit:,} bytes")
