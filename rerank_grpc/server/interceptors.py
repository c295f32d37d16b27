"""Authentication, the one thing that comes before a handler, and whoever observes all calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import grpc

from rerank_grpc.access import AccessList, split_bearer
from rerank_grpc.errors import Unauthenticated
from rerank_grpc.server.handler import answering
from rerank_grpc.server.lanes import Handler, Pool, on_pool
from rerank_grpc.telemetry.records import Sink

MISSING = "send a token as metadata: authorization: Bearer TOKEN"
TWICE = "send one authorization, not several"
WRONG = "the token is wrong, or not of the form: Bearer TOKEN"
UNKNOWN_METHOD = "other"


class Observer(grpc.ServerInterceptor):
    """An interceptor that sees every call of a server, refused ones too, and decides nothing."""

    def expect(self, methods: Iterable[str]) -> None:
        """Takes the full names of methods that the server has, such as "rerank.v1.RerankService/Rerank"."""
        raise NotImplementedError


class AccessInterceptor(grpc.ServerInterceptor):
    """Lets calls with an accepted Bearer token in; services named in `public` need none.

    It runs on grpcio's serving thread: no I/O and no lock. The `sinks` get the record of each refusal on
    another thread, by the name that `methods` has for the call's path; other paths are UNKNOWN_METHOD.
    """

    def __init__(
        self,
        accepted: AccessList,
        *,
        public: Iterable[str],
        sinks: Sequence[Sink] = (),
        methods: Mapping[str, str] | None = None,
    ) -> None:
        # Refusals have threads of their own and wait behind no call that was let in.
        self._pool = Pool(8, "deny")
        self._sinks = sinks
        self._methods = {} if methods is None else methods
        self._denials: dict[tuple[str, str], Handler] = {}
        self._accepted = accepted
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
            return self._denial(handler_call_details.method, TWICE if values else MISSING)
        if not self._accepts(values[0]):
            return self._denial(handler_call_details.method, WRONG)
        return continuation(handler_call_details)

    def _accepts(self, value: str | bytes) -> bool:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        before, scheme, token = split_bearer(text)
        return bool(scheme) and not before and token in self._accepted

    def _denial(self, path: str, message: str) -> Handler:
        """Finds the handler that refuses a call, one for each method and message."""
        key = self._methods.get(path, UNKNOWN_METHOD), message
        if key not in self._denials:
            self._denials[key] = self._make_denial(*key)
        return self._denials[key]

    def _make_denial(self, method: str, message: str) -> Handler:
        """Makes a handler that refuses, a stream's: grpcio runs it without waiting for a message."""

        def deny(_requests: Any, context: grpc.ServicerContext) -> NoReturn:
            with answering(context, method, self._sinks):
                raise Unauthenticated(message)
            raise AssertionError("answering returned")

        return grpc.stream_stream_rpc_method_handler(on_pool(deny, self._pool))
