"""The way from an adapter to the server: clients that it was given, or makes of an address."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, Self, TypedDict, Unpack

from rerank_grpc.client import AsyncClient, Client, RerankOptions, ScoredDocument

Scored = tuple[ScoredDocument, ...]


class ConnectionOptions(TypedDict, total=False):
    """The options of a client that an adapter makes, but its token; `ca`, `cert` and `key` are paths."""

    retries: int | None
    hang_timeout: float | None
    tls: bool | None
    ca: str | None
    cert: str | None
    key: str | None
    server_name: str | None


class ClientOptions(ConnectionOptions, total=False):
    """The same with the token."""

    token: str | None


class RankerOptions(ConnectionOptions, RerankOptions, total=False):
    """The options of an adapter but its token: those of its client, and those of each call."""


class AdapterOptions(RankerOptions, total=False):
    """The same with the token."""

    token: str | None


class CallArguments(RerankOptions, total=False):
    """The arguments of a call besides its query and its documents."""

    model: str | None
    top_n: int | None


class Connection:
    """The clients of one adapter; threads and event loops may share it, and copies of the adapter do.

    A client of its own is made by the first call that needs it: one for all threads, and one for each event
    loop, which is what grpc.aio's channels belong to. After `close` the next call makes a new one.
    """

    def __init__(
        self,
        target: str | None = None,
        client: Client | None = None,
        async_client: AsyncClient | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Keeps the clients or how to make them; raises ValueError for both, TypeError for another type."""
        for name, given, kind in (("client", client, Client), ("async_client", async_client, AsyncClient)):
            if given is not None and not isinstance(given, kind):
                raise TypeError(f"{name}: a {kind.__name__}, not {type(given).__name__}")
        self._options: dict[str, Any] = {name: each for name, each in options.items() if each is not None}
        if target is not None:
            self._options["target"] = target
        self._given = client is not None or async_client is not None
        if self._given and self._options:
            named = ", ".join(sorted(self._options))
            raise ValueError(f"{named}: a client has its own; give either a client, or an address and these")
        self._client, self._async_client = client, async_client
        self._own()

    def _own(self) -> None:
        self._lock = threading.Lock()
        self._made: Client | None = None
        self._of_loops: dict[asyncio.AbstractEventLoop, AsyncClient] = {}

    def rerank(self, query: str, texts: Sequence[str], **call: Unpack[CallArguments]) -> Scored:
        """Scores texts, best first; none are none, without a call. Raises what Client.rerank raises."""
        return self._sync().rerank(query, texts, **call).results if texts else ()

    async def arerank(self, query: str, texts: Sequence[str], **call: Unpack[CallArguments]) -> Scored:
        """Scores texts in the running event loop, or in a thread where the one client given is a Client."""
        if not texts:
            return ()
        if self._client is not None and self._async_client is None:
            return await asyncio.to_thread(self.rerank, query, texts, **call)
        return (await self._of_loop().rerank(query, texts, **call)).results

    def close(self) -> None:
        """Closes the client that was made for threads; a client that was given stays open."""
        with self._lock:
            made, self._made = self._made, None
            self._forget_ended_loops()
        if made is not None:
            made.close()

    async def aclose(self) -> None:
        """Closes the client that was made for the running event loop, and the one for threads."""
        self.close()
        with self._lock:
            made = self._of_loops.pop(asyncio.get_running_loop(), None)
        if made is not None:
            await made.close()

    def _sync(self) -> Client:
        if self._client is not None:
            return self._client
        if self._given:
            raise TypeError("client: a call without await needs a Client, and only async_client was given")
        with self._lock:
            if self._made is None:
                self._made = Client(**self._options)
            return self._made

    def _of_loop(self) -> AsyncClient:
        if self._async_client is not None:
            return self._async_client
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._of_loops:
                self._forget_ended_loops()
                self._of_loops[loop] = AsyncClient(**self._options)
            return self._of_loops[loop]

    def _forget_ended_loops(self) -> None:
        """Drops the clients that nothing can close any more; grpc.aio ends the channel of such a one."""
        self._of_loops = {loop: each for loop, each in self._of_loops.items() if not loop.is_closed()}

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self._given:
            raise TypeError("client: a client cannot be pickled; give the adapter an address (target=)")
        return self._options

    def __setstate__(self, options: dict[str, Any]) -> None:
        self._options, self._given = options, False
        self._client = self._async_client = None
        self._own()


class ClosesClients:
    """The methods by which an adapter closes the clients that it made: `close`, `aclose`, `with`."""

    _connection: Connection

    def close(self) -> None:
        """Closes the client that the adapter made; the next call makes a new one."""
        self._connection.close()

    async def aclose(self) -> None:
        """Closes the client that the adapter made for this event loop, and what `close` closes."""
        await self._connection.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def split(options: RankerOptions) -> tuple[ClientOptions, RerankOptions]:
    """Parts the options of a client from those of a call; raises TypeError for one that neither has."""
    of_client: ClientOptions = {}
    of_call: RerankOptions = {}
    for name, each in options.items():
        if name in ClientOptions.__annotations__:
            of_client[name] = each  # type: ignore[literal-required]
        elif name in RerankOptions.__annotations__:
            of_call[name] = each  # type: ignore[literal-required]
        else:
            known = sorted(AdapterOptions.__annotations__)
            raise TypeError(f"{name}: no such option; there are {', '.join(known)}")
    return of_client, of_call
