"""Sends calls over gRPC, by the client of this package without its retries."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from google.protobuf.message import DecodeError

from rerank_grpc.client import AsyncClient
from rerank_grpc.client.errors import TransportError, UnexpectedStatus
from rerank_grpc.errors import PermissionDenied, RerankError, UnknownModel
from rerank_grpc.loadtest.texts import CallTexts
from rerank_grpc.loadtest.transports.base import CallFailed, ReplyFigures
from rerank_grpc.v1 import rerank_pb2 as pb

_FACTS = (
    *("name", "revision", "family", "device", "precision", "attention", "max_tokens"),
    *("max_batch_tokens", "hub_id"),
)


class GrpcTransport:
    """Calls Rerank of one target."""

    name = "gRPC"

    def __init__(self, client: AsyncClient, model: str) -> None:
        self._client, self._model = client, model

    def body(self, texts: CallTexts) -> bytes:
        """Serializes a call."""
        documents = [pb.Document(text=text) for text in texts.documents]
        request = pb.RerankRequest(
            query=texts.query, documents=documents, model=self._model, instruction=texts.instruction
        )
        return request.SerializeToString()

    async def send(self, body: bytes) -> bytes:
        """Sends one call; raises CallFailed."""
        try:
            return await self._client.relay("Rerank", body)
        except RerankError as error:
            raise CallFailed(reason_of(error), error.message) from error

    def read(self, reply: bytes) -> ReplyFigures:
        """Reads a reply's usage; raises CallFailed where it is no reply."""
        try:
            read = pb.RerankResponse.FromString(reply)
        except DecodeError as error:
            raise CallFailed("unreadable reply", str(error)) from error
        return ReplyFigures(len(read.results), read.usage.input_tokens, read.usage.cached_pairs)

    async def facts(self) -> dict[str, Any]:
        """Finds the model that is asked in the list; an empty one where the token may not list."""
        try:
            models = await self._client.list_models()
        except PermissionDenied:
            return {}
        for model in models:
            if self._model in (model.name, *model.aliases) or (not self._model and model.is_default):
                return {name: value for name, value in asdict(model).items() if name in _FACTS and value}
        if self._model:
            raise UnknownModel(
                f"no model is named {self._model!r}; known: {', '.join(m.name for m in models)}"
            )
        return {}

    async def close(self) -> None:
        """Closes the channel."""
        await self._client.close()


def reason_of(error: RerankError) -> str:
    """Names a failure in a word: by the service's reason, else by what the client made of the status."""
    if isinstance(error, UnexpectedStatus):
        return error.code
    if isinstance(error, TransportError):
        return type(error).__name__
    return error.reason.value.removeprefix("ERROR_REASON_")
