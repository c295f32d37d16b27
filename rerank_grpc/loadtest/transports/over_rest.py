"""Sends calls over HTTP/1.1, each on a connection that no other call uses meanwhile."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import h11

from rerank_grpc.config.options import OptionError
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.loadtest.texts import CallTexts
from rerank_grpc.loadtest.transports.base import CallFailed, ReplyFigures

PATH = "/v1/rerank"
READ_BYTES = 1 << 16


class RestEndpoint(NamedTuple):
    """Where HTTP is spoken: the parts of a URL."""

    host: str
    port: int
    path: str
    secure: bool

    @classmethod
    def of(cls, url: str) -> RestEndpoint:
        """Reads a URL, of which the path alone may be missing; raises OptionError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise OptionError(f"--rest: {url!r} is no URL such as http://localhost:8080{PATH}")
        secure = parts.scheme == "https"
        path = parts.path if parts.path not in ("", "/") else PATH
        return cls(parts.hostname, port or (443 if secure else 80), path, secure)

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class RestTransport:
    """Posts to one URL in the shim's own dialect; connections are kept and opened as calls need them."""

    name = "REST"

    def __init__(
        self,
        endpoint: RestEndpoint,
        model: str,
        token: str | None,
        timeout: float,
        context: ssl.SSLContext | None,
    ) -> None:
        self._endpoint, self._model, self._timeout, self._context = endpoint, model, timeout, context
        self._headers = [
            ("Host", endpoint.authority),
            ("Content-Type", "application/json"),
            *([("Authorization", f"Bearer {token}")] if token else []),
        ]
        self._idle: deque[_Connection] = deque()

    def body(self, texts: CallTexts) -> bytes:
        """Makes the JSON of a call."""
        value: dict[str, Any] = {"query": texts.query, "documents": list(texts.documents)}
        if self._model:
            value["model"] = self._model
        if texts.instruction:
            value["instruction"] = texts.instruction
        return json.dumps(value).encode()

    async def send(self, body: bytes) -> bytes:
        """Sends one call; raises CallFailed."""
        status, reply = await self._ask("POST", self._endpoint.path, body)
        if status == 200:
            return reply
        code, text = _refusal(reply)
        raise CallFailed(f"HTTP {status} {code}".rstrip(), f"HTTP {status}: {text}")

    def read(self, reply: bytes) -> ReplyFigures:
        """Reads a reply's results and tokens; raises CallFailed where it is no reply."""
        try:
            value = json.loads(reply)
            return ReplyFigures(len(value["results"]), value.get("usage", {}).get("total_tokens"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CallFailed("unreadable reply", f"{type(error).__name__}: {error}") from error

    async def facts(self) -> dict[str, Any]:
        """Asks for the list of models, which a server of another kind may not have."""
        try:
            status, reply = await self._ask("GET", "/v1/models", b"")
        except CallFailed as error:
            where = f"{self._endpoint.authority}: {error}"
            raise ConfigurationError(
                f"REST at {where}: start the server, or name its URL by --rest"
            ) from None
        try:
            models = json.loads(reply)["data"] if status == 200 else []
            found = next((each for each in models if each["id"] == self._model), models[0] if models else {})
            return {"name": str(found["id"])} if found else {}
        except (ValueError, KeyError, TypeError):
            return {}

    async def close(self) -> None:
        """Closes the connections that no call uses."""
        for connection in self._idle:
            await connection.closed()
        self._idle.clear()

    async def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._kept() or await _Connection.open(self._endpoint, self._context)
                status, reply = await connection.ask(method, path, self._headers, body)
        except TimeoutError:
            raise CallFailed("timeout", f"no answer in {self._timeout:g} s") from None
        except (OSError, h11.ProtocolError, _ClosedEarly) as error:
            raise CallFailed(_reason(error), str(error)) from error
        else:
            if connection.may_be_kept():
                self._idle.append(connection)
                connection = None
            return status, reply
        finally:
            if connection is not None:
                connection.close()

    def _kept(self) -> _Connection | None:
        """Takes the connection used last that the server has not closed meanwhile."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open():
                return connection
            connection.close()
        return None


class _ClosedEarly(Exception):
    """The server has closed the connection before its answer was whole."""


class _Connection:
    """One connection of HTTP/1.1, for one call after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, endpoint: RestEndpoint, context: ssl.SSLContext | None) -> _Connection:
        """Connects; raises OSError."""
        return cls(*await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context))

    async def ask(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, bytes]:
        """Sends a request and reads the answer's status and body."""
        length = [("Content-Length", str(len(body)))] if body else []
        head = h11.Request(method=method, target=path, headers=[*headers, *length])
        parts = [self._http.send(head), self._http.send(h11.Data(data=body)) if body else b""]
        parts.append(self._http.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in parts if part))
        status, chunks = 0, list[bytes]()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(READ_BYTES)
                if not data and self._http.their_state is not h11.SEND_BODY:
                    raise _ClosedEarly("the server closed the connection before it answered")
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                chunks.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return status, b"".join(chunks)
            elif isinstance(event, h11.ConnectionClosed):
                raise _ClosedEarly("the server closed the connection before it answered")

    def may_be_kept(self) -> bool:
        """Makes the connection ready for the next call, unless one side wants to close it."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False

    def is_open(self) -> bool:
        """Whether the server has not closed it."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        """Closes it at once."""
        self._writer.close()

    async def closed(self) -> None:
        """Closes it and waits until it is."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def _reason(error: Exception) -> str:
    if isinstance(error, _ClosedEarly):
        return "connection closed"
    return "not HTTP" if isinstance(error, h11.ProtocolError) else type(error).__name__


def _refusal(reply: bytes) -> tuple[str, str]:
    """Reads the code and the text of an error's body; no code and the body's beginning where it has none."""
    try:
        error = json.loads(reply)["error"]
        return str(error["code"] or ""), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "", reply[:200].decode(errors="replace")
