"""Routes that callers ask before they rerank: the models, the health, the need for an access token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from rerank_grpc import __version__
from rerank_grpc.access.accepted import AccessList
from rerank_grpc.callers import Right
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import PermissionDenied, Unauthenticated, UnknownModel
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.exchange import Exchange
from rerank_grpc.rest.forms.decoded import Json
from rerank_grpc.rest.upstream import Upstream, may_see
from rerank_grpc.types import LABEL, Health, ModelInfo, State

# A longer name is no model's, and fits no message that asks for its health.
LONGEST_NAME = 1_000

Endpoint = Callable[[Exchange], Awaitable[Json]]  # None has no body


class Unready(dict[str, Any]):
    """A health answer that goes out with 503."""


class Discovery:
    """The routes that only tell; with `health`, the server runs in this process and accepts `accepted`."""

    def __init__(self, upstream: Upstream, accepted: AccessList, health: Callable[[], Health] | None) -> None:
        self._upstream = upstream
        self._accepted = accepted
        self._own_health = health
        self._created = int(time.time())

    def routes(self) -> Iterator[tuple[str, str, Endpoint, Right | None]]:
        """Yields path, the method's name in records, endpoint, and the right it needs; None is public."""
        yield "/", "info", self.root, None
        yield "/health", "health", self.health, None
        yield "/ping", "health", self.health, None
        yield "/v1/cluster/auth", "info", self.cluster_auth, None
        yield "/v1/models", "models", self.models, Right.LIST
        yield "/v1/models/{model:path}", "models", self.model, Right.LIST
        yield "/models", "models", self.infinity_models, Right.LIST
        yield "/info", "info", self.info, Right.LIST
        yield "/model-info", "info", self.model_info, Right.LIST
        yield "/.well-known/live", "live", self.live, None
        yield "/.well-known/ready", "ready", self.ready, None
        yield "/meta", "info", self.model_info, Right.LIST

    async def root(self, _exchange: Exchange) -> Json:
        """Tells the models, where REST's own token lets it, and every caller may call all of them."""
        models: tuple[ModelInfo, ...] = ()
        try:
            if not self._accepted.restricts:
                models = await self._upstream.own_models()
            locked = await self._is_locked()
        except (Unauthenticated, PermissionDenied):
            locked = True
        return {
            "status": "running",
            "version": __version__,
            "loaded_models": [model.name for model in models if model.state is State.READY],
            "default_model": next((model.name for model in models if model.is_default), None),
            "supported_models": [name for model in models for name in _names(model)],
            "authentication": locked,
        }

    async def health(self, _exchange: Exchange) -> Json:
        """Tells whether a call of the default model would be answered, at once or after a load."""
        try:
            health = self._own_health() if self._own_health else await self._upstream.own_health()
        except (Unauthenticated, PermissionDenied):
            # Without a token the server tells neither the model nor its state.
            serving = await self._upstream.serving()
            return {"status": "healthy"} if serving else Unready(status="unhealthy")
        if self._accepted.restricts:
            return {"status": "healthy"} if health.serving else Unready(status="unhealthy")
        loaded = health.state is State.READY
        if not health.serving:
            return Unready(status="unhealthy", model=health.model, model_loaded=loaded)
        return {"status": "healthy", "model": health.model, "model_loaded": loaded, "version": health.version}

    async def live(self, _exchange: Exchange) -> Json:
        """Says nothing, in Weaviate's form, which is enough of this process."""

    async def ready(self, exchange: Exchange) -> Json:
        """Says nothing where the default model can be called, and else as `health` does."""
        health = await self.health(exchange)
        return health if isinstance(health, Unready) else None

    async def cluster_auth(self, _exchange: Exchange) -> Json:
        """Tells Xinference's clients whether to send their key."""
        return {"auth": await self._is_locked()}

    async def _is_locked(self) -> bool:
        if self._accepted or self._own_health is not None:
            return bool(self._accepted)
        return await self._upstream.needs_token()

    async def models(self, exchange: Exchange) -> Json:
        """Lists the models and their further names, as OpenAI and Xinference do."""
        models = await self._own(exchange)
        return {"object": "list", "data": [self._entry(name, m) for m in models for name in _names(m)]}

    async def model(self, exchange: Exchange) -> Json:
        """Describes the model that a call of this name would reach, listed or not.

        Raises UnknownModel, or PermissionDenied to a caller of some models alone.
        """
        wanted = exchange.request.path_params["model"]
        models = await self._own(exchange)
        listed = {name: model for model in models for name in _names(model)}
        called = wanted
        if wanted not in listed and len(wanted) <= LONGEST_NAME:
            try:
                called = (await self._upstream.health(exchange.token, wanted)).model
            except UnknownModel:
                exchange.caller.require_model("")  # the error would tell a caller of some models all others
                raise
        if called not in listed:  # also where, of several servers, another has answered
            exchange.caller.require_model("")
            raise UnknownModel("no model has that name: see /v1/models")
        return self._entry(wanted, listed[called])

    async def infinity_models(self, exchange: Exchange) -> Json:
        models = await self._own(exchange)
        stats = await asyncio.gather(*(self._stats(model, exchange.token) for model in models))
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "owned_by": "infinity",
                    "created": self._created,
                    "backend": "torch",
                    "capabilities": ["rerank"],
                    "stats": stat,
                }
                for model, stat in zip(models, stats, strict=True)
                for name in _names(model)
            ],
        }

    async def _stats(self, model: ModelInfo, token: str | None) -> Json:
        """Tells how full a model's queue is, in tokens; the number of waiting results is not known."""
        queued, capacity = 0, 1  # a model that is not in memory has no queue
        if model.state is State.READY:
            health = await self._upstream.health(token, model.name)
            queued, capacity = health.queue_tokens, max(1, health.queue_capacity_tokens)
        return {
            "queue_fraction": round(queued / capacity, 6),
            "queue_absolute": queued,
            "results_pending": None,
            "batch_size": model.max_batch_tokens,
        }

    async def info(self, exchange: Exchange) -> Json:
        """Describes the default model as TEI does."""
        model = await self._default(exchange)
        return {
            "model_id": model.hub_id or model.name,
            "model_sha": model.revision or None,
            "model_dtype": model.dtype,
            "served_model_name": model.name,
            "model_type": {"reranker": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
            # No call tells a server's settings: this is the default of --max-calls.
            "max_concurrent_requests": ServerSettings().max_calls,
            "max_input_length": model.max_tokens,
            "max_batch_tokens": model.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": LIMITS.documents,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }

    async def model_info(self, exchange: Exchange) -> Json:
        """Describes the default model for callers of the legacy batch form, and for Weaviate."""
        model = await self._default(exchange)
        return {
            "model": model.name,
            "model_name": model.name,
            "device": model.device,
            "max_length": model.max_tokens,
            "loaded": model.state is State.READY,
        }

    async def _own(self, exchange: Exchange) -> list[ModelInfo]:
        """Lists the models that the caller may call."""
        models = await self._upstream.models(exchange.token)
        return [model for model in models if may_see(exchange.caller, model.name, model.aliases)]

    async def _default(self, exchange: Exchange) -> ModelInfo:
        """Describes the default model; raises PermissionDenied where it is not the caller's."""
        found = [model for model in await self._own(exchange) if model.is_default]
        if not found:
            raise PermissionDenied("this caller may not call the default model: see /v1/models")
        return found[0]

    def _entry(self, name: str, model: ModelInfo) -> Json:
        """Describes a model under one of its names, which Xinference's callers look for in model_name."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "rerank-grpc",
            "root": model.hub_id or model.name,
            "model_type": "rerank",
            "model_name": name,
            "model_uid": name,
            "loaded": model.state is State.READY,
            "local_available": model.local_available,
            "activation": model.activation,
            "pooling": model.pooling,
            "prompt_source": model.prompt_source,
            **({"state_message": model.state_message} if model.state_message else {}),
        }


def _names(model: ModelInfo) -> tuple[str, ...]:
    return (model.name, *model.aliases)
