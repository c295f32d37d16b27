"""Serve's gRPC ingress, given back what it drops: runs in the replica with HAProxy, else in the proxy.

grpc_options.grpc_servicer_functions names `add_services`. Handlers have no deserializer, because messages do
not pickle: the replica parses. Health and reflection go to the replica like all calls, so that tokens guard
them there and health is the replica's own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from rerank_grpc.errors import QueueFull, RerankError, ShuttingDown
from rerank_grpc.protocols import inference_pb2, tei_pb2
from rerank_grpc.ray.pins import DEAD_REPLICA, DIRECT_FACTORY, FACTORY, FULL_REPLICA
from rerank_grpc.v1 import rerank_pb2
from rerank_grpc.wire import status

# Metadata that the ingress adds: when the call must end, as Unix time, which method is called, and whether it
# comes through Serve's own proxy, as it does behind HAProxy too while no replica is up.
DEADLINE_KEY, METHOD_KEY, PROXIED_KEY = "x-rerank-deadline", "x-rerank-method", "x-rerank-proxied"
OWN_KEYS = (DEADLINE_KEY, METHOD_KEY, PROXIED_KEY)
# An RPC without a deadline reports None or 9.2e18 seconds, by grpcio's version.
ENDLESS_SECONDS = 1e9
# When a caller may come back whose replica is gone, or where all are full.
RETRY_SECONDS = 0.1

_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
_REFLECTION = "grpc.reflection.{}.ServerReflection"
Factory = Callable[..., Callable[..., Any]]


class IngressMethod(NamedTuple):
    """A method that replicas answer, and which side sends a stream."""

    service: str
    name: str
    takes_stream: bool
    gives_stream: bool


def methods() -> Iterator[IngressMethod]:
    """Yields every method of a replica.

    Health has no Watch: a watch would tell of one replica behind an address of many. gRPC's clients take a
    server without it for healthy (gRFC A17).
    """
    own: list[Any] = [rerank_pb2.DESCRIPTOR, tei_pb2.DESCRIPTOR, inference_pb2.DESCRIPTOR]
    admin = rerank_pb2.DESCRIPTOR.services_by_name["ModelAdminService"].full_name
    for descriptor in own:
        yield from (each for each in _methods_of(descriptor) if each.service != admin)
    yield from (each for each in _methods_of(health_pb2.DESCRIPTOR) if each.name == "Check")
    for each in _methods_of(reflection_pb2.DESCRIPTOR):
        yield from (each._replace(service=_REFLECTION.format(version)) for version in ("v1alpha", "v1"))


def _methods_of(descriptor: Any) -> Iterator[IngressMethod]:
    for service in descriptor.services_by_name.values():
        for method in service.methods:
            yield IngressMethod(
                service.full_name, method.name, method.client_streaming, method.server_streaming
            )


def add_services(servicer: Any, server: Any) -> None:
    """Registers all methods at a server of Serve's, which routes them to replicas; the servicer is a mock."""
    setattr(server, FACTORY, with_call_facts(getattr(server, FACTORY)))
    services: dict[str, dict[str, Any]] = {}
    for method in methods():
        handler: Any = _KINDS[method.takes_stream, method.gives_stream](getattr(servicer, method.name))
        services.setdefault(method.service, {})[method.name] = handler
    for name, handlers in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        server.add_registered_method_handlers(name, handlers)


def with_call_facts(factory: Factory) -> Factory:
    """Wraps Serve's factory of handlers: they tell the replica the deadline, and callers errors of ours."""
    proxied = getattr(factory, "__name__", "") != DIRECT_FACTORY

    def make(service_method: str, streaming_type: Any) -> Callable[..., Any]:
        handler = factory(service_method=service_method, streaming_type=streaming_type)

        async def answer(request: Any, context: Any) -> Any:
            reply = await handler(request, _IngressContext(context, service_method, proxied))
            _explain(context)
            return reply

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            told = _IngressContext(context, service_method, proxied)
            async with aclosing(handler(request, told)) as replies:
                async for reply in replies:
                    yield reply
            _explain(context)

        return stream if streaming_type.value.endswith("_stream") else answer

    return make


class _IngressContext:
    """A call's context, whose metadata also says when the call must end and what is called."""

    def __init__(self, context: Any, service_method: str, proxied: bool) -> None:
        self._context = context
        self._facts = [(METHOD_KEY, service_method), *([(PROXIED_KEY, "1")] if proxied else [])]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the caller's metadata, and the ingress' own in place of any by its keys."""
        sent = self._context.invocation_metadata() or ()
        own = [*self._facts]
        left = self._context.time_remaining()
        if left is not None and left < ENDLESS_SECONDS:
            own.append((DEADLINE_KEY, repr(time.time() + left)))
        return (*((key, value) for key, value in sent if key not in OWN_KEYS), *own)


def _explain(context: Any) -> None:
    """Gives an error of Serve's own the code and the details by which clients know it, and call again."""
    code, text = context.code(), context.details() or ""
    if not code or any(key == status.DETAILS_KEY for key, _ in context.trailing_metadata() or ()):
        return
    error: RerankError
    if code == grpc.StatusCode.INTERNAL and DEAD_REPLICA in text:
        error = ShuttingDown("the replica is gone: call again", retry_after=RETRY_SECONDS)
    elif code == grpc.StatusCode.RESOURCE_EXHAUSTED and FULL_REPLICA in text:
        error = QueueFull("the replica is full: retry later", retry_after=RETRY_SECONDS)
    elif code == grpc.StatusCode.UNAVAILABLE:
        error = ShuttingDown("no replica can be called now: retry later", retry_after=10 * RETRY_SECONDS)
    else:
        return
    context.set_code(status.CODES[type(error)])
    context.set_details(error.message)
    kept = [(key, value) for key, value in context.trailing_metadata() or () if key != status.PUSHBACK_KEY]
    context.set_trailing_metadata((*kept, *status.trailers_of(error, context.time_remaining())))
