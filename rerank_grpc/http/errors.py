"""Errors of HTTP alone, and how an app has them written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias


class HttpError(Exception):
    """An error of HTTP alone: a path, a method, a body too large or of a wrong kind."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


# Writes an error that comes before any app is asked: the content type of the answer, and its body.
Writer: TypeAlias = Callable[[HttpError], tuple[bytes, bytes]]


def in_text(error: HttpError) -> tuple[bytes, bytes]:
    """Writes an error as one line of text."""
    return b"text/plain; charset=utf-8", f"{error.message}\n".encode()
