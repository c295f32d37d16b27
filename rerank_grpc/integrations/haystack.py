"""A ranker component for Haystack's pipelines."""

# Without postponed annotations: Haystack 2 compares the types of a component's sockets as they stand.
import enum
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.core.errors import SerializationError
from haystack.utils import Secret

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.connection import (
    CallArguments,
    ClientOptions,
    Connection,
    RankerOptions,
    Scored,
    split,
)

# Of all rankers: a pipeline may run in several threads, and a ranker with a lock of its own cannot be copied.
_CONNECTING = threading.Lock()


@component
class RerankGrpcRanker:
    """Ranks documents by their relevance to a query, which becomes their score.

        RerankGrpcRanker(target="localhost:50051", top_k=3).run(query="query", documents=documents)

    The results are copies, with the id and the meta of the documents. `warm_up`, `close` and their
    asynchronous forms are called by a pipeline. A failed call raises a RerankError; see rerank_grpc.client.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        token: Secret | None = None,
        client: Client | None = None,
        async_client: AsyncClient | None = None,
        model: str | None = None,
        top_k: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        meta_data_separator: str = "\n",
        **options: Unpack[RankerOptions],
    ) -> None:
        """Makes a ranker; a `top_k` of None is all documents.

        `meta_fields_to_embed` are scored with the text, joined by `meta_data_separator`. `options` are those
        of Client and of Client.rerank. Raises ValueError for a `top_k` below 1, and for an address beside
        a client.
        """
        _check_top_k(top_k)
        self.target, self.token, self.model, self.top_k = target, token, model, top_k
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.meta_data_separator = meta_data_separator
        self.options = {name: _plain(each) for name, each in options.items() if each is not None}
        self._of_client, self._of_call = split(options)
        self._clients = client, async_client
        self._has_clients = client is not None or async_client is not None
        if self._has_clients and token is not None:
            raise ValueError("token: a client has its own; give either a client, or an address and these")
        self._connection: Connection | None = None
        if token is None:
            self._connection = Connection(target, client, async_client, **self._of_client)

    def warm_up(self) -> None:
        """Reads the token; raises ValueError where its environment variable is not set."""
        self._connected()

    def close(self) -> None:
        """Closes the client that the ranker made; the next run makes a new one."""
        if self._connection is not None:  # without it there is no client, and maybe no token
            self._connection.close()

    async def close_async(self) -> None:
        """Closes the client of this event loop, and what `close` closes."""
        if self._connection is not None:
            await self._connection.aclose()

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, instruction: str | None = None
    ) -> dict[str, list[Document]]:
        """Returns `documents`, best first; `top_k` and `instruction` win over the ranker's own.

        Raises ValueError for a `top_k` below 1.
        """
        call = self._arguments(top_k, instruction)
        return _ranked(documents, self._connected().rerank(query, self._texts(documents), **call))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None, instruction: str | None = None
    ) -> dict[str, list[Document]]:
        """Does the same without a thread."""
        call = self._arguments(top_k, instruction)
        return _ranked(documents, await self._connected().arerank(query, self._texts(documents), **call))

    def to_dict(self) -> dict[str, Any]:
        """Serializes the ranker; raises SerializationError for one that was given a client."""
        if self._has_clients:
            raise SerializationError("client: a client cannot be serialized; give an address (target=)")
        data: dict[str, Any] = default_to_dict(
            self,
            target=self.target,
            token=self.token.to_dict() if self.token else None,
            model=self.model,
            top_k=self.top_k,
            meta_fields_to_embed=self.meta_fields_to_embed,
            meta_data_separator=self.meta_data_separator,
            **self.options,
        )
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Makes a ranker of what `to_dict` has returned."""
        given = dict(data.get("init_parameters", {}))
        if isinstance(given.get("token"), Mapping):
            given["token"] = Secret.from_dict(dict(given["token"]))
        ranker: Self = default_from_dict(cls, {**data, "init_parameters": given})
        return ranker

    def _connected(self) -> Connection:
        with _CONNECTING:
            if self._connection is None:
                token = self.token.resolve_value() if self.token else None
                options: ClientOptions = {**self._of_client, "token": token}
                self._connection = Connection(self.target, *self._clients, **options)
            return self._connection

    def _arguments(self, top_k: int | None, instruction: str | None) -> CallArguments:
        _check_top_k(top_k)
        top_n = self.top_k if top_k is None else top_k
        call: CallArguments = {**self._of_call, "model": self.model, "top_n": top_n}
        if instruction is not None:
            call["instruction"] = instruction
        return call

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return [self.meta_data_separator.join(self._parts(document)) for document in documents]

    def _parts(self, document: Document) -> list[str]:
        values = [document.meta.get(field) for field in self.meta_fields_to_embed]
        return [*(str(each) for each in values if each), document.content or ""]


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: 1 or more, not {top_k}")


def _plain(option: object) -> object:
    """Writes an option as YAML can hold it: an enum by its name."""
    return option.name.lower() if isinstance(option, enum.Enum) else option


def _ranked(documents: Sequence[Document], results: Scored) -> dict[str, list[Document]]:
    ranked = [replace(documents[result.index], score=result.relevance_score) for result in results]
    return {"documents": ranked}
