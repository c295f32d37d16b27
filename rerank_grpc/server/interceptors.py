"""Authentication: the one thing that comes before a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import grpc

from rerank_grpc.access import AccessList, split_bearer
from rerank_grpc.errors import Unauthenticated
from rerank_grpc.server.handler import abort
from rerank_grpc.server.lanes import Handler, Pool, on_pool


class AccessInterceptor(grpc.ServerInterceptor):
    """Lets calls with an accepted Bearer token in; services named in `public` need none.

    It runs on grpcio's serving thread: no I/O and no lock.
    """

    def __init__(self, tokens: Iterable[str], *, public: Iterable[str]) -> None:
        # Refusals have threads of their own and wait behind no call that was let in.
        pool = Pool(8, "deny")
        self._missing = _denial("send a token as metadata: authorization: Bearer TOKEN", pool)
        self._twice = _denial("send one authorization, not several", pool)
        self._wrong = _denial("the token is wrong, or not of the form: Bearer TOKEN", pool)
        self._accepted = AccessList(tokens)
        self._public = tuple(f"/{service}/" for service in public)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Passes the call on, or answers it with UNAUTHENTICATED."""
        if handler_call_details.method.startswith(self._public):
            return continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata or ()
        values = [value for key, value in metadata if key == "authorization"]
        if len(values) != 1:
            return self._missing if not values else self._twice
        return continuation(handler_call_details) if self._accepts(values[0]) else self._wrong

    def _accepts(self, value: str | bytes) -> bool:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        before, scheme, token = split_bearer(text)
        return bool(scheme) and not before and token in self._accepted


def _denial(message: str, pool: Pool) -> Handler:
    """Makes a handler that refuses, a stream's: grpcio runs it without waiting for a message."""
    error = Unauthenticated(message)

    def deny(_requests: Any, context: grpc.ServicerContext) -> NoReturn:
        abort(context, error)
        raise AssertionError("abort returned")

    return grpc.stream_stream_rpc_method_handler(on_pool(deny, pool))
