"""Authentication, the one thing that comes before a handler, and whoever observes all calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc

from rerank_grpc.errors import PermissionDenied, RerankError, Unauthenticated
from rerank_grpc.server.guard import UNKNOWN_METHOD, Edge
from rerank_grpc.server.handler import answering
from rerank_grpc.server.lanes import Handler, Pool, on_pool

MOST_DENIALS = 10_000


class Observer(grpc.ServerInterceptor):
    """An interceptor that sees every call of a server, refused ones too, and decides nothing."""

    def expect(self, methods: Iterable[str]) -> None:
        """Takes the full names of methods that the server has, such as "rerank.v1.RerankService/Rerank"."""
        raise NotImplementedError


class AccessInterceptor(grpc.ServerInterceptor):
    """Refuses calls that may not be answered, before they wait for a thread.

    It runs on grpcio's serving thread: no I/O and no lock. The sinks get the record of each refusal on
    another thread, by the name that `methods` has for the call's path; other paths are UNKNOWN_METHOD.
    """

    def __init__(self, edge: Edge, methods: Mapping[str, str]) -> None:
        assert edge.guard is not None
        # Refusals have threads of their own and wait behind no call that was let in.
        self._pool = Pool(8, "deny")
        self._edge = edge
        self._guard = edge.guard
        self._methods = methods
        self._denials: dict[tuple[str, str], Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Passes the call on, or answers it with UNAUTHENTICATED or PERMISSION_DENIED."""
        method = self._methods.get(handler_call_details.method, UNKNOWN_METHOD)
        try:
            self._guard.admit(method, handler_call_details.invocation_metadata)
        except (Unauthenticated, PermissionDenied) as error:
            return self._denial(method, error)
        return continuation(handler_call_details)

    def _denial(self, method: str, error: RerankError) -> Handler:
        """Finds the handler that refuses a call, one for each method and message."""
        key = method, error.message
        if len(self._denials) > MOST_DENIALS:  # names come and go with the file of tokens
            self._denials.clear()
        if key not in self._denials:
            self._denials[key] = self._make_denial(method, error.with_traceback(None))
        return self._denials[key]

    def _make_denial(self, method: str, error: RerankError) -> Handler:
        """Makes a handler that refuses, a stream's: grpcio runs it without waiting for a message."""

        def deny(_requests: Any, context: grpc.ServicerContext) -> NoReturn:
            with answering(context, method, self._edge):
                raise error
            raise AssertionError("answering returned")

        return grpc.stream_stream_rpc_method_handler(on_pool(deny, self._pool))
